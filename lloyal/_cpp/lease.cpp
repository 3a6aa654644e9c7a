#include "checkpoint.hpp"

#include "llama-memory.h"

#include <algorithm>

namespace lloyal {
namespace {

void free_lease(ContextBox & box, SeqId seq) {
    memory_seq_rm_any(box, seq, -1, -1);
    box.leases[seq] = Lease::none;
}

} // namespace

void lease_settle(ContextBox & box) noexcept {
    if (!box.has_deferred_leases.load(std::memory_order_acquire)) {
        return;
    }
    std::vector<SeqId> waiting;
    {
        std::lock_guard<std::mutex> lock(box.lease_mutex);
        waiting.swap(box.deferred_leases);
        box.has_deferred_leases.store(false, std::memory_order_release);
    }
    for (const SeqId seq : waiting) {
        free_lease(box, seq);
    }
}

Status lease_acquire(ContextBox & box, Lease kind, SeqId & out) noexcept {
    return guarded(Code::no_lease, [&]() -> Status {
        lease_settle(box);
        if (!box.memory) {
            return Status(Code::unsupported, "this model keeps no memory between calls: there are no sequences to lease");
        }
        for (SeqId seq = box.provenance.n_seq_max() - 1; seq >= 0; --seq) {
            if (box.leases[seq] == Lease::none && box.provenance.of(seq).empty() && box.memory->seq_pos_max(seq) < 0) {
                box.leases[seq] = kind;
                out = seq;
                return {};
            }
        }
        return Status(Code::no_lease, text("all ", box.provenance.n_seq_max(), " sequences are leased or in use: release "
                                           "one, or raise n_seq_max (at most 256)"));
    });
}

// May come from any thread (garbage collection): if somebody is inside the context, whoever enters next does it.
void lease_release(ContextBox & box, SeqId seq) noexcept {
    if (context_enter(box)) {
        free_lease(box, seq);
        context_leave(box);
        return;
    }
    std::lock_guard<std::mutex> lock(box.lease_mutex);
    box.deferred_leases.push_back(seq);
    box.has_deferred_leases.store(true, std::memory_order_release);
}

int32_t lease_available(const ContextBox & box) {
    int32_t n = 0;
    {
        std::lock_guard<std::mutex> lock(box.lease_mutex);
        n += int32_t(box.deferred_leases.size());
    }
    for (SeqId seq = 0; seq < box.provenance.n_seq_max(); ++seq) {
        n += box.leases[seq] == Lease::none && box.provenance.of(seq).empty();
    }
    return n;
}

} // namespace lloyal
