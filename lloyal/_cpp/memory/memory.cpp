// The operations on sequences: validated, exact or refused, with provenance kept.
#include "memory/memory.hpp"

#include "core/fault.hpp"
#include "core/handles.hpp"
#include "memory/io.hpp"

#include "llama-context.h"
#include "llama-kv-cache.h"
#include "llama-memory-recurrent.h"

#include <algorithm>
#include <tuple>

namespace lloyal {
namespace {

Pos open_begin(Pos p0) {
    return p0 < 0 ? 0 : p0;
}
Pos open_end(Pos p1) {
    return p1 < 0 ? POS_END : p1;
}

} // namespace

bool valid_seq(const ContextBox & box, SeqId seq, const char * name, Status & status) {
    const int32_t n = box.provenance.n_seq_max();
    if (seq >= 0 && seq < n) {
        return true;
    }
    status = Status(Code::invalid_argument, text(name, "=", seq, " is not a sequence of this context: it has 0 to ",
                                                 n - 1, " (raise n_seq_max for more)"));
    return false;
}

bool memory_can_shift(const ContextBox & box) {
    const MemoryMap & map = box.map;
    // The rows of other kinds are rotated by more than their positions, or not all by the same.
    const bool known = map.kind == MemoryKind::attention || map.kind == MemoryKind::sliding_window;
    return known && !map.shared && !map.mrope && map.keys_rotate && llama_memory_can_shift(box.memory);
}

Rollback memory_can_rollback(ContextBox & box, SeqId seq, int32_t n_tokens) {
    MemoryMap & map = box.map;
    const Runs & rows = box.provenance.of(seq);
    if (map.kind == MemoryKind::none || map.shared || rows.empty() || n_tokens < 0 ||
        n_tokens > rows.end() - rows.begin()) {
        return Rollback::none;
    }
    const Pos pos = rows.end() - n_tokens;
    const Runs rest = rows.slice(rows.begin(), pos);
    if (n_tokens == 0 || rest.empty()) {
        return Rollback::trim; // nothing goes, or everything: always possible
    }
    if (!map.window_complete(rest, seq)) {
        return Rollback::none;
    }
    if (map.has_state()) {
        return n_tokens <= map.ring_depth[seq] && !map.ring_pending[seq] ? Rollback::ring : Rollback::none;
    }
    return Rollback::trim;
}

namespace {

Status check_operation(const ContextBox & box) {
    if (!box.memory) {
        return Status(Code::unsupported, "this model keeps no memory between calls (encoder or diffusion model)");
    }
    if (box.map.shared) {
        return Status(Code::unsupported, "this context works on the memory of its parent: use the parent's");
    }
    return {};
}

// A checkpoint's cells are read-only to everybody else.
Status check_not_held(const ContextBox & box, SeqId seq) {
    if (seq >= 0 && size_t(seq) < box.leases.size() && box.leases[seq] == Lease::checkpoint) {
        return Status(Code::no_lease, text("sequence ", seq, " holds the cells of a checkpoint: release that first"));
    }
    return {};
}

// Every operation below decides completely before it changes anything: what is decided is what becomes of one sequence.
struct Removal {
    SeqId seq;
    Pos begin; // of the rows that go; negative: all
    Pos end;   // negative: to the end
    Rollback how = Rollback::trim;
    Runs rest{};
};

// Nothing in `out` if there is nothing to remove.
Status decide_removal(ContextBox & box, SeqId seq, Pos p0, Pos p1, std::vector<Removal> & out) {
    const Runs & rows = box.provenance.of(seq);
    const Pos begin = std::max(open_begin(p0), rows.begin());
    const Pos end = std::min(open_end(p1), rows.end());
    if (begin >= end || !rows.overlaps(begin, end)) {
        return {};
    }
    if (begin <= rows.begin() && end >= rows.end()) {
        out.push_back({seq, -1, -1});
        return {};
    }
    const bool tail = end == rows.end();
    Removal removal{seq, begin, tail ? -1 : end};
    if (tail) {
        removal.how = memory_can_rollback(box, seq, end - begin);
    } else if (box.map.has_state()) {
        removal.how = Rollback::none;
    }
    if (removal.how == Rollback::none) {
        return Status(Code::unsupported,
                      text("positions ", begin, " to ", end - 1, " of sequence ", seq, " cannot be taken out of ",
                           memory_kind_name(box.map.kind),
                           " memory: what the earlier tokens need is gone; "
                           "restore a checkpoint, or remove the whole sequence and decode it again"));
    }
    removal.rest = rows.without({{begin, end}});
    out.push_back(std::move(removal));
    return {};
}

Status remove(ContextBox & box, Removal & removal) {
    const SeqId seq = removal.seq;
    if (!box.memory->seq_rm(seq, removal.begin, removal.end)) {
        // Nothing that was decided is refused by llama.cpp at this pin; if one is, it has changed nothing.
        return Status(Code::unsupported, text("llama.cpp refused to remove positions ", removal.begin, " to ",
                                              removal.end, " of sequence ", seq));
    }
    box.provenance.assign(seq, std::move(removal.rest));
    if (removal.begin < 0) {
        box.map.reset_ring(seq);
    } else if (removal.how == Rollback::ring) {
        box.map.ring_depth[seq] = 0;
        box.map.ring_pending[seq] = true;
    }
    return {};
}

Status remove_all(ContextBox & box, std::vector<Removal> & removals) {
    for (Removal & removal : removals) {
        if (Status status = remove(box, removal); !status.ok()) {
            return status;
        }
    }
    return {};
}

} // namespace

Status memory_clear(ContextBox & box, bool data) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        if (Status bad = check_operation(box); !bad.ok()) {
            return bad;
        }
        llama_synchronize(box.ptr);
        box.memory->clear(data);
        box.provenance.clear();
        for (SeqId seq = 0; seq < box.provenance.n_seq_max(); ++seq) {
            box.map.reset_ring(seq);
        }
        return {};
    });
}

Status memory_seq_rm_any(ContextBox & box, SeqId seq, Pos p0, Pos p1) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        Status bad = check_operation(box);
        std::vector<Removal> removals;
        if (bad.ok() && valid_seq(box, seq, "seq_id", bad)) {
            bad = decide_removal(box, seq, p0, p1, removals);
        }
        return bad.ok() ? remove_all(box, removals) : bad;
    });
}

Status memory_seq_rm(ContextBox & box, SeqId seq, Pos p0, Pos p1) noexcept {
    if (Status bad = check_not_held(box, seq); !bad.ok()) {
        return bad;
    }
    if (seq != -1) {
        return memory_seq_rm_any(box, seq, p0, p1);
    }
    // Every sequence but those that hold cells of checkpoints: one by one, since recurrent memory refuses -1.
    return guarded(Code::decode_failed, [&]() -> Status {
        Status bad = check_operation(box);
        std::vector<Removal> removals;
        for (SeqId s = 0; bad.ok() && s < box.provenance.n_seq_max(); ++s) {
            if (check_not_held(box, s).ok()) {
                bad = decide_removal(box, s, p0, p1, removals);
            }
        }
        return bad.ok() ? remove_all(box, removals) : bad;
    });
}

Status memory_seq_keep(ContextBox & box, SeqId seq) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        Status bad = check_operation(box);
        std::vector<Removal> removals;
        if (bad.ok() && valid_seq(box, seq, "seq_id", bad)) {
            // One by one: llama_memory_seq_keep cleans only the sequence's own stream when kv_unified is off.
            for (SeqId s = 0; bad.ok() && s < box.provenance.n_seq_max(); ++s) {
                if (s != seq && check_not_held(box, s).ok()) {
                    bad = decide_removal(box, s, -1, -1, removals);
                }
            }
        }
        return bad.ok() ? remove_all(box, removals) : bad;
    });
}

namespace {

// The positions in [begin, end) that `src` has in a cache and `dst` has not.
std::vector<Span> missing_in(const llama_kv_cache & cache, SeqId src, SeqId dst, Pos begin, Pos end) {
    const auto & from = cache.get_cells(src).seq_pos_get(src);
    const auto & to = cache.get_cells(dst).seq_pos_get(dst);
    if (to.lower_bound({begin, 0}) == to.lower_bound({end, 0})) {
        return from.lower_bound({begin, 0}) == from.lower_bound({end, 0}) ? std::vector<Span>{}
                                                                          : std::vector<Span>{{begin, end}};
    }
    std::vector<Span> found;
    auto there = to.lower_bound({begin, 0});
    for (auto at = from.lower_bound({begin, 0}); at != from.end() && at->first < end; ++at) {
        while (there != to.end() && there->first < at->first) {
            ++there;
        }
        if (there != to.end() && there->first == at->first) {
            continue;
        }
        if (!found.empty() && found.back().end >= at->first) {
            found.back().end = at->first + 1;
        } else {
            found.push_back({at->first, at->first + 1});
        }
    }
    return found;
}

// Copy part of a tensor to another part of it, where it is.
void copy_within(const Slice & from, const Slice & to) {
    ggml_init_params params = {2 * ggml_tensor_overhead(), nullptr, true};
    const std::unique_ptr<ggml_context, decltype(&ggml_free)> room(ggml_init(params), ggml_free);
    const auto part = [&](const Slice & slice) {
        const int64_t n = int64_t(slice.size / ggml_type_size(slice.tensor->type)) * ggml_blck_size(slice.tensor->type);
        ggml_tensor * view = ggml_view_1d(room.get(), slice.tensor, n, slice.offset);
        ggml_backend_view_init(view);
        return view;
    };
    ggml_backend_tensor_copy(part(from), part(to));
}

// A fork does not carry a rollback that waits for the next decode; writing the state out and back applies it. What is to be
// read again is the snapshot where it lies, so nothing leaves the device.
void apply_rollback(ContextBox & box, SeqId seq) {
    llama_memory_recurrent & memory = *box.map.recurrent;
    const auto before = std::make_tuple(memory.cells, memory.rs_idx, memory.head, memory.used);
    Collector from;
    ScriptedReader to;
    try {
        memory.state_write(from, seq, 0);
        to.script = std::move(from.meta);
        memory.state_read(to, seq, 0);
        llama_synchronize(box.ptr);
        for (size_t i = 0; i < from.slices.size(); ++i) {
            fault_point();
            copy_within(from.slices[i], to.targets.at(i));
        }
    } catch (...) { // the snapshot is still where it was
        std::tie(memory.cells, memory.rs_idx, memory.head, memory.used) = before;
        box.map.distrust_empty_cells(); // but one may hold a part of it
        throw;
    }
}

// The same where what is behind the interface is not known, through the host.
void apply_rollback_by_state(ContextBox & box, SeqId seq) {
    constexpr llama_state_seq_flags flags = LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY;
    std::vector<uint8_t> state(llama_state_seq_get_size_ext(box.ptr, seq, flags));
    if (llama_state_seq_get_data_ext(box.ptr, state.data(), state.size(), seq, flags) != state.size() ||
        llama_state_seq_set_data_ext(box.ptr, state.data(), state.size(), seq, flags) == 0) {
        throw std::runtime_error(text("the pending rollback of sequence ", seq, " could not be applied"));
    }
}

// A copy that takes the whole of `src`, and leaves `dst` exactly that: a state, or a buffer of its own.
Status copy_whole(ContextBox & box, SeqId src, SeqId dst) {
    MemoryMap & map = box.map;
    const Runs & rows = box.provenance.of(src);
    if (!rows.holds(box.provenance.of(dst))) {
        return Status(Code::invalid_argument,
                      text("sequence ", dst, " holds rows that sequence ", src, " does not: with ",
                           map.has_state() ? text(memory_kind_name(map.kind), " memory") : "kv_unified=False",
                           " the copy would replace them; seq_rm them first"));
    }
    if (map.ring_pending[src]) {
        map.recurrent ? apply_rollback(box, src) : apply_rollback_by_state(box, src);
        map.reset_ring(src);
    }
    box.memory->seq_rm(dst, -1, -1); // or rows it holds in cells of its own would be there twice
    box.memory->seq_cp(src, dst, -1, -1);
    if (!map.unified) {
        // Without this the copy waits for the next decode, and a save before it stores garbage.
        box.ptr->memory_update(false);
    }
    box.provenance.assign_copy(dst, src);
    map.reset_ring(src);
    map.reset_ring(dst);
    return {};
}

// Share the rows of [begin, end): only what `dst` has not, cache by cache, or it would be there twice.
Status copy_rows(ContextBox & box, SeqId src, SeqId dst, Pos begin, Pos end) {
    MemoryMap & map = box.map;
    const Runs taken = box.provenance.of(src).slice(begin, end);
    Runs now = box.provenance.of(dst);
    if (!now.agrees(taken)) {
        return Status(Code::invalid_argument, text("sequence ", dst, " already holds other rows between positions ",
                                                   begin, " and ", end - 1, ": seq_rm them first"));
    }
    now.merge(taken);
    std::vector<std::vector<Span>> missing;
    for (const llama_kv_cache * cache : map.caches) {
        missing.push_back(missing_in(*cache, src, dst, begin, end));
        if (cache != map.window) {
            continue;
        }
        const Pos window_begin = map.window_begin(now.end());
        int64_t n = MemoryMap::n_rows(*cache, dst, window_begin, now.end());
        for (const Span & span : missing.back()) {
            n += MemoryMap::n_rows(*cache, src, std::max(span.begin, window_begin), std::min(span.end, now.end()));
        }
        if (n != now.slice(window_begin, now.end()).size()) {
            return Status(Code::unsupported,
                          text("positions ", begin, " to ", end - 1, " of sequence ", src,
                               " cannot be copied: a token behind them would attend to rows that the sliding window of "
                               "the source has passed and lost; restore a checkpoint taken there"));
        }
    }
    for (size_t i = 0; i < map.caches.size(); ++i) {
        for (const Span & span : missing[i]) {
            map.caches[i]->seq_cp(src, dst, span.begin, span.end);
        }
    }
    if (now == box.provenance.of(src)) {
        box.provenance.assign_copy(dst, src);
    } else {
        box.provenance.assign(dst, std::move(now));
    }
    return {};
}

} // namespace

Status memory_seq_cp_any(ContextBox & box, SeqId src, SeqId dst, Pos p0, Pos p1) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        Status bad = check_operation(box);
        if (!bad.ok() || !valid_seq(box, src, "seq_id_src", bad) || !valid_seq(box, dst, "seq_id_dst", bad)) {
            return bad;
        }
        const Runs & rows = box.provenance.of(src);
        const Pos begin = std::max(open_begin(p0), rows.begin());
        const Pos end = std::min(open_end(p1), rows.end());
        if (src == dst || begin >= end) {
            return {};
        }
        if (!box.map.has_state() && box.map.unified) {
            return copy_rows(box, src, dst, begin, end);
        }
        if (begin > rows.begin() || end < rows.end()) {
            return Status(Code::unsupported,
                          text("positions ", begin, " to ", end - 1, " of sequence ", src, " cannot be copied alone: ",
                               box.map.has_state() ? "recurrent or compressed memory copies the whole state"
                                                   : "kv_unified=False copies whole sequences only"));
        }
        return copy_whole(box, src, dst);
    });
}

Status memory_seq_cp(ContextBox & box, SeqId src, SeqId dst, Pos p0, Pos p1) noexcept {
    if (Status bad = check_not_held(box, dst); !bad.ok()) {
        return bad;
    }
    return memory_seq_cp_any(box, src, dst, p0, p1);
}

namespace {

// Move the rows of [p0, p1) to `to(position)`, which keeps their order; `change` is llama.cpp's call.
template <typename To, typename Change>
Status shift(ContextBox & box, SeqId seq, Pos p0, Pos p1, const char * what, To && to, Change && change) {
    MemoryMap & map = box.map;
    const Runs & rows = box.provenance.of(seq);
    const Pos begin = std::max(open_begin(p0), rows.begin());
    const Pos end = std::min(open_end(p1), rows.end());
    const Runs moved = rows.slice(begin, end);
    if (begin >= end || moved.empty()) {
        return {};
    }
    if (to(int64_t(moved.begin())) < 0 || to(int64_t(moved.end() - 1)) >= POS_END - 1) {
        return Status(Code::invalid_argument,
                      text(what, " moves positions ", moved.begin(), " to ", moved.end() - 1, " out of range"));
    }
    Runs now = rows.without({{begin, end}});
    std::vector<Pos> there;
    for (const Run & run : moved.list()) {
        const Pos first = Pos(to(int64_t(run.begin))), last = Pos(to(int64_t(run.end - 1)));
        if (now.overlaps(first, last + 1)) {
            return Status(Code::invalid_argument, text(what, " moves positions ", run.begin, " to ", run.end - 1,
                                                       " onto others of sequence ", seq));
        }
        for (Pos pos = run.begin; pos < run.end; ++pos) {
            there.push_back(Pos(to(int64_t(pos))));
        }
    }
    // Other content now: keys are rotated to their new positions.
    now.merge(box.provenance.fresh_at(there));
    if (map.shares_cells(seq, begin, end)) {
        return Status(Code::unsupported, text(what, ": sequence ", seq, " shares rows between positions ", begin,
                                              " and ", end - 1, " with another, which would move too"));
    }
    if (map.window) {
        const Pos window_begin = map.window_begin(now.end());
        int64_t n = 0;
        for (const Pos pos : MemoryMap::positions(*map.window, seq)) {
            n += (pos >= begin && pos < end ? to(int64_t(pos)) : pos) >= window_begin;
        }
        if (n != now.slice(window_begin, now.end()).size()) {
            return Status(Code::unsupported, text(what, " would bring rows of sequence ", seq,
                                                  " back into the sliding window that it has passed and lost"));
        }
    }
    change(begin, end);
    box.poll_after_us = INT64_MAX; // half shifted is lost: nothing to stop for
    box.ptr->memory_update(false); // shift K now, so that a save sees what the positions say
    if (std::any_of(map.caches.begin(), map.caches.end(), [](const auto * cache) { return cache->get_has_shift(); })) {
        box.memory->seq_rm(seq, -1, -1);
        box.provenance.assign(seq, {});
        return Status(Code::decode_failed,
                      text(what, ": the keys could not be rotated; sequence ", seq, " is now empty"));
    }
    box.provenance.assign(seq, std::move(now));
    return {};
}

Status check_shift(ContextBox & box, SeqId seq, const char * what) {
    Status bad = check_operation(box);
    if (!bad.ok() || !valid_seq(box, seq, "seq_id", bad)) {
        return bad;
    }
    if (box.map.mrope) {
        return Status(Code::unsupported, text(what, ": models with M-RoPE positions cannot be shifted"));
    }
    if (Status held = check_not_held(box, seq); !held.ok()) {
        return held;
    }
    if (!memory_can_shift(box)) {
        return Status(Code::unsupported, text(what, ": ", memory_kind_name(box.map.kind), " memory of this model",
                                              box.map.keys_rotate ? "" : " with this type_k",
                                              " cannot be shifted (ctx.memory.can_shift is False)"));
    }
    return {};
}

} // namespace

Status memory_seq_add(ContextBox & box, SeqId seq, Pos p0, Pos p1, Pos delta) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        if (Status bad = check_shift(box, seq, "seq_add"); !bad.ok() || delta == 0) {
            return bad;
        }
        return shift(
            box, seq, p0, p1, text("seq_add: delta=", delta).c_str(), [=](int64_t pos) { return pos + delta; },
            [&](Pos begin, Pos end) { box.memory->seq_add(seq, begin, end, delta); });
    });
}

Status memory_seq_div(ContextBox & box, SeqId seq, Pos p0, Pos p1, int d) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        if (Status bad = check_shift(box, seq, "seq_div"); !bad.ok()) {
            return bad;
        }
        if (d < 1) {
            return Status(Code::invalid_argument, text("seq_div: d=", d, " must be 1 or more"));
        }
        if (d == 1) {
            return {};
        }
        return shift(
            box, seq, p0, p1, text("seq_div: d=", d).c_str(), [=](int64_t pos) { return pos / d; },
            [&](Pos begin, Pos end) { box.memory->seq_div(seq, begin, end, d); });
    });
}

Status memory_seq_pos(ContextBox & box, SeqId seq, Pos & pos_min, Pos & pos_max) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        Status bad;
        if (!box.memory) {
            pos_min = pos_max = -1;
            return {};
        }
        if (!valid_seq(box, seq, "seq_id", bad)) {
            return bad;
        }
        pos_min = box.memory->seq_pos_min(seq);
        pos_max = box.memory->seq_pos_max(seq);
        return {};
    });
}

Status memory_cells(ContextBox & box, int64_t & n_cells, int64_t & n_used) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        n_cells = n_used = 0;
        for (const llama_kv_cache * cache : box.map.caches) {
            int64_t size = 0, used = 0;
            for (uint32_t stream = 0; stream < cache->get_n_stream(); ++stream) {
                const llama_kv_cells & cells = cache->get_cells(SeqId(stream));
                size += cells.size();
                used += cells.get_used();
            }
            if (n_cells == 0 || size - used < n_cells - n_used) {
                n_cells = size;
                n_used = used;
            }
        }
        if (box.map.caches.empty() && box.map.recurrent) {
            n_cells = box.map.recurrent->size;
            n_used = box.map.recurrent->used;
        }
        return {};
    });
}

Status rollback_kind(ContextBox & box, SeqId seq, int32_t n_tokens, int & kind) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        Status status;
        if (valid_seq(box, seq, "seq_id", status)) {
            kind = int(memory_can_rollback(box, seq, n_tokens));
        }
        return status;
    });
}

Status known_rows(ContextBox & box, SeqId seq, std::vector<Run> & out) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        Status status;
        if (valid_seq(box, seq, "seq_id", status)) {
            const auto & runs = box.provenance.of(seq).list();
            out.assign(runs.begin(), runs.end());
        }
        return status;
    });
}

Status known_version(ContextBox & box, SeqId seq, uint64_t & out) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        Status status;
        if (valid_seq(box, seq, "seq_id", status)) {
            out = box.provenance.version(seq);
        }
        return status;
    });
}

} // namespace lloyal
