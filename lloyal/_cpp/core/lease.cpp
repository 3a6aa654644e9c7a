#include "core/lease.hpp"

#include "llama-memory.h"

namespace lloyal {

void lease_settle(ContextBox & box) noexcept {
    std::lock_guard<std::mutex> lock(box.lease_mutex);
    for (const SeqId seq : box.deferred_leases) {
        memory_seq_rm_any(box, seq, -1, -1);
        box.leases[seq] = Lease::none;
    }
    box.deferred_leases.clear();
    box.has_deferred_leases.store(false, std::memory_order_release);
}

Status lease_acquire(ContextBox & box, Lease kind, SeqId & out) noexcept {
    return guarded(Code::no_lease, [&]() -> Status {
        if (!box.memory) {
            return Status(Code::unsupported,
                          "this model keeps no memory between calls: there are no sequences to lease");
        }
        for (SeqId seq = box.provenance.n_seq_max() - 1; seq >= 0; --seq) {
            if (box.leases[seq] == Lease::none && box.provenance.of(seq).empty() && box.memory->seq_pos_max(seq) < 0) {
                box.leases[seq] = kind;
                out = seq;
                return {};
            }
        }
        return Status(Code::no_lease,
                      text("all ", box.provenance.n_seq_max(),
                           " sequences are leased or in use: release one, or raise n_seq_max (at most 256)"));
    });
}

void lease_release(ContextBox & box, SeqId seq) noexcept {
    if (seq < 0 || size_t(seq) >= box.leases.size()) {
        return;
    }
    {
        std::lock_guard<std::mutex> lock(box.lease_mutex);
        box.deferred_leases.push_back(seq); // never more than there are sequences, for which there is room
        box.has_deferred_leases.store(true, std::memory_order_release);
    }
    Use expected = Use::idle;
    if (box.use.compare_exchange_strong(expected, Use::settling, std::memory_order_acquire)) {
        lease_settle(box);
        context_leave(box);
    }
}

Status count_available_leases(ContextBox & box, int32_t & out) noexcept {
    return guarded(Code::no_lease, [&]() -> Status {
        out = 0;
        for (SeqId seq = 0; seq < box.provenance.n_seq_max(); ++seq) {
            out += box.leases[seq] == Lease::none && box.provenance.of(seq).empty();
        }
        return {};
    });
}

} // namespace lloyal
