#include "state/checkpoint.hpp"

#include "core/fork.hpp"
#include "core/lease.hpp"
#include "core/log.hpp"

#include "llama-context.h"
#include "llama-ext.h"
#include "llama-kv-cache.h"
#include "llama-memory-recurrent.h"

#include <algorithm>
#include <functional>
#include <tuple>

namespace lloyal {
namespace {

// Copy a state out whole, slice by slice.
Blob take_blob(std::vector<uint8_t> meta, const std::vector<Slice> & slices, BufferPool & pool, bool host,
               CopyList & copies) {
    Blob blob;
    Packer packer;
    for (const Slice & slice : slices) {
        const Chunk::Place place = packer.place(storage_for(slice.tensor, host), slice.size);
        blob.pieces.push_back({place.buffer, place.offset, slice.size});
    }
    blob.buffers = packer.allocate(pool);
    for (size_t i = 0; i < slices.size(); ++i) {
        const Blob::Piece & piece = blob.pieces[i];
        copies.add(
            {slices[i].tensor, slices[i].offset, blob.buffers[piece.buffer]->tensor(), piece.offset, slices[i].size});
    }
    blob.meta = std::move(meta);
    return blob;
}

// Which of the rows at one position comes first: what tells patches of an image apart (M-RoPE), then the cell.
bool before(const llama_kv_cells & cells, const std::pair<Pos, uint32_t> & a, const std::pair<Pos, uint32_t> & b) {
    const auto key = [&cells](const std::pair<Pos, uint32_t> & at) {
        const llama_kv_cell_ext & ext = cells.ext_get(at.second);
        return std::tuple(at.first, ext.y, ext.x, ext.tok, at.second);
    };
    return key(a) < key(b);
}

// Where `rows` of `seq` lie, row by row; false unless each has its cell. Few are looked up in the tree of positions; for many
// one pass over the cell table is faster, since the tree is never in the processor's cache.
bool find_cells(const llama_kv_cache & cache, SeqId seq, const Runs & rows, std::vector<Segment> & found) {
    found.clear();
    if (rows.empty()) {
        return true;
    }
    const llama_kv_cells & cells = cache.get_cells(seq);
    std::vector<Segment> held;
    // As `append`, but without making a Segment for every cell.
    const auto hold = [&held](Pos pos, uint32_t cell) {
        Segment * last = held.empty() ? nullptr : &held.back();
        if (last && last->row + last->n == cell && last->pos + Pos(last->n) == pos) {
            ++last->n;
        } else {
            held.push_back({nullptr, cell, 1, pos});
        }
    };
    if (size_t(rows.end() - rows.begin()) * 8 < cells.used_max_p1()) {
        const auto & by_pos = cells.seq_pos_get(seq);
        for (auto at = by_pos.lower_bound({rows.begin(), 0}); at != by_pos.end() && at->first < rows.end(); ++at) {
            hold(at->first, at->second);
        }
    } else {
        for (uint32_t i = 0; i < cells.used_max_p1(); ++i) {
            if (!cells.is_empty(i) && cells.seq_has(i, seq) && cells.pos_get(i) >= rows.begin() &&
                cells.pos_get(i) < rows.end()) {
                hold(cells.pos_get(i), i);
            }
        }
    }
    std::sort(held.begin(), held.end(), [](const Segment & a, const Segment & b) { return a.pos < b.pos; });
    const auto overlap = [](const Segment & a, const Segment & b) { return b.pos < a.pos + Pos(a.n); };
    if (std::adjacent_find(held.begin(), held.end(), overlap) != held.end()) {
        std::vector<std::pair<Pos, uint32_t>> each;
        for (const Segment & segment : held) {
            for (uint32_t i = 0; i < segment.n; ++i) {
                each.emplace_back(segment.pos + Pos(i), segment.row + i);
            }
        }
        std::sort(each.begin(), each.end(), [&](const auto & a, const auto & b) { return before(cells, a, b); });
        held.clear();
        for (const auto & [pos, cell] : each) {
            hold(pos, cell);
        }
    }
    // What is held may be more than what is asked for, by whole positions.
    size_t n_found = 0;
    for (const Span & span : rows.spans()) {
        for (Segment & piece : slice(held, span.begin, span.end)) {
            n_found += piece.n;
            append(found, std::move(piece));
        }
    }
    return n_found == size_t(rows.size());
}

} // namespace

Status checkpoint_guarded(const std::function<Status()> & body) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        try {
            return body();
        } catch (const DeviceMemoryError & e) {
            return Status(Code::out_of_device_memory, e.what());
        }
    });
}

bool is_base(const MemoryMap & map, size_t cache) {
    return map.kind == MemoryKind::attention || map.caches[cache] != map.window;
}

Status check_checkpointable(const ContextBox & box, SeqId seq, const char * name) {
    Status bad;
    if (!box.memory) {
        return Status(Code::unsupported, "this model keeps no memory between calls, so there is nothing to checkpoint");
    }
    if (box.map.shared) {
        return Status(Code::unsupported, "this context works on the memory of its parent: checkpoint the parent's");
    }
    if (box.map.split) {
        return Status(
            Code::unsupported,
            "split_mode=\"tensor\" spreads each row over several devices, which cannot be copied out exactly: "
            "load the model with another split_mode");
    }
    return valid_seq(box, seq, name, bad) ? Status() : bad;
}

namespace {

// What a checkpoint is to hold, and where that is now.
struct Plan {
    std::vector<Located> missing; // by part: rows that no live chunk holds
    std::vector<uint8_t> recurrent_meta, whole_meta;
    std::vector<Slice> recurrent, whole;
};

double seconds_since(int64_t start_us) {
    return double(llama_time_us() - start_us) * 1e-6;
}

Status take_cells(ContextBox & box, CheckpointBox & ck) {
    if (!box.map.unified) {
        return Status(Code::unsupported, "where=\"cells\" needs kv_unified=True: separate buffers cannot share cells");
    }
    SeqId lease = -1;
    if (Status status = lease_acquire(box, Lease::checkpoint, lease); !status.ok()) {
        return status;
    }
    // Cells no later token needs would stay shared, and shared cells are never reused.
    box.map.drop_stale_window(ck.seq, ck.rows.end());
    if (Status status = memory_seq_cp_any(box, ck.seq, lease, -1, -1); !status.ok()) {
        box.leases[lease] = Lease::none;
        return status;
    }
    ck.lease = lease;
    return {};
}

// Split `rows` of a cache into what live chunks hold and what has to be copied from the cache; false if that is not there.
bool locate(ContextBox & box, CheckpointBox & ck, size_t cache, const Runs & rows, Located & missing) {
    std::vector<Segment> held;
    missing = {};
    box.store->chunks(cache, ck.where == Where::host).find(rows, held, missing.rows);
    if (!find_cells(*box.map.caches[cache], ck.seq, missing.rows, missing.from)) {
        return false;
    }
    // Held from here on, whoever else gives these chunks up.
    ck.parts.push_back({cache, rows, SegmentList::make(held)});
    return true;
}

// Plan the parts of a memory whose caches we know; false if this sequence has to be copied whole.
bool plan_parts(ContextBox & box, CheckpointBox & ck, Plan & plan) {
    const MemoryMap & map = box.map;
    ck.window_begin = map.window ? map.window_begin(ck.pos_max) : 0;
    for (size_t i = 0; i < map.caches.size(); ++i) {
        Located missing;
        if (is_base(map, i)) {
            if (ck.partial) {
                continue;
            }
            if (map.caches[i]->get_cells(ck.seq).seq_pos_get(ck.seq).size() != size_t(ck.rows.size()) ||
                !locate(box, ck, i, ck.rows, missing)) {
                return false;
            }
        } else if (!locate(box, ck, i, ck.rows.slice(ck.window_begin, POS_END), missing)) {
            // Rows that no later token attends to, only one in place of the last, may be gone: their cells get reused.
            ck.window_begin = map.window_begin(ck.rows.end());
            const Runs rows = ck.rows.slice(ck.window_begin, POS_END);
            if (rows.empty() || !locate(box, ck, i, rows, missing)) {
                return false;
            }
        }
        plan.missing.push_back(std::move(missing));
    }
    if (map.recurrent) {
        Collector state;
        map.recurrent->state_write(state, ck.seq, 0);
        plan.recurrent = std::move(state.slices);
        plan.recurrent_meta = std::move(state.meta);
    }
    return true;
}

void plan_whole(ContextBox & box, CheckpointBox & ck, Plan & plan) {
    Collector state;
    box.memory->state_write(state, ck.seq, 0);
    plan.whole = std::move(state.slices);
    plan.whole_meta = std::move(state.meta);
    for (size_t i = 0; i < box.map.caches.size(); ++i) {
        if (box.map.caches[i] != box.map.window) {
            ck.whole_cells = std::max(ck.whole_cells, box.map.caches[i]->get_cells(ck.seq).seq_pos_get(ck.seq).size());
        }
    }
}

// The same content as `from`, copied out of it.
void plan_from(ContextBox & box, const CheckpointBox & from, CheckpointBox & ck, Plan & plan) {
    for (const CheckpointBox::Part & part : from.parts) {
        std::vector<Segment> held;
        Located missing;
        box.store->chunks(part.cache, ck.where == Where::host).find(part.rows, held, missing.rows);
        const std::vector<Segment> segments = part.segments();
        for (const Span & span : missing.rows.spans()) { // runs may share a position, and each would bring all of it
            for (Segment & piece : slice(segments, span.begin, span.end)) {
                append(missing.from, std::move(piece));
            }
        }
        ck.parts.push_back({part.cache, part.rows, SegmentList::make(held)});
        plan.missing.push_back(std::move(missing));
    }
    if (from.recurrent) {
        plan.recurrent = from.recurrent->slices();
        plan.recurrent_meta = from.recurrent->meta;
    }
    if (from.whole) {
        plan.whole = from.whole->slices();
        plan.whole_meta = from.whole->meta;
    }
}

size_t missing_bytes(const CheckpointStore & store, const CheckpointBox & ck, const Plan & plan) {
    size_t n = 0;
    for (size_t p = 0; p < plan.missing.size(); ++p) {
        n += size_t(plan.missing[p].rows.size()) * store.layouts[ck.parts[p].cache].row_bytes();
    }
    for (const auto & slices : {&plan.recurrent, &plan.whole}) {
        for (const Slice & slice : *slices) {
            n += slice.size;
        }
    }
    return n;
}

// Make room, copy, and let others find the new chunks.
Status fill(ContextBox & box, CheckpointBox & ck, Plan & plan) {
    CheckpointStore & store = *box.store;
    const bool host = ck.where == Where::host;
    const size_t need = missing_bytes(store, ck, plan);
    if (Status status = store.make_room(need, ck); !status.ok()) {
        return status;
    }
    store.pool->expect(need, store.budget_bytes >= 0);
    const int64_t start_us = llama_time_us();
    CopyList copies;
    std::vector<std::unique_ptr<Chunk>> fresh(ck.parts.size());
    const auto take = [&] {
        copies = {};
        for (size_t p = 0; p < plan.missing.size(); ++p) {
            if (!plan.missing[p].rows.empty()) {
                const KvLayout & layout = store.layouts[ck.parts[p].cache];
                fresh[p] = take_chunk(layout, ck.seq, plan.missing[p], *store.pool, host, copies);
            }
        }
        if (!plan.recurrent_meta.empty()) {
            ck.recurrent = take_blob(plan.recurrent_meta, plan.recurrent, *store.pool, host, copies);
        }
        if (!plan.whole_meta.empty()) {
            ck.whole = take_blob(plan.whole_meta, plan.whole, *store.pool, host, copies);
        }
    };
    try {
        take();
    } catch (const DeviceMemoryError &) {
        // The device is full, whatever the budget says.
        if (host || !store.evict || !store.drop(need, ck, true)) {
            throw;
        }
        std::fill_n(fresh.begin(), fresh.size(), nullptr); // what was allocated of it, too
        ck.recurrent.reset();
        store.pool->trim();
        take();
    }
    copies.run(*box.ptr, *box.store->pool);
    if (!host && need > 0) {
        store.device_speed.add(seconds_since(start_us), double(need));
    }
    for (size_t p = 0; p < ck.parts.size(); ++p) {
        CheckpointBox::Part & part = ck.parts[p];
        ChunkIndex & index = store.chunks(part.cache, host);
        const std::shared_ptr<const Chunk> added = fresh[p] ? index.add(std::move(fresh[p])) : nullptr;
        std::vector<Segment> segments;
        Runs none;
        index.find(part.rows, segments, none);
        if (!none.empty()) {
            throw std::runtime_error("a checkpoint lost rows it had just copied");
        }
        part.list = SegmentList::make(segments);
    }
    return {};
}

CheckpointHandle new_checkpoint(const ContextHandle & context, SeqId seq, Where where, bool partial,
                                const Runs & rows) {
    auto ck = make_handle<CheckpointBox>();
    ck->context = context;
    ck->where = where;
    ck->partial = partial;
    ck->seq = seq;
    ck->rows = rows;
    ck->encoding = context->encoding;
    ck->pos_min = ck->rows.empty() ? -1 : ck->rows.begin();
    ck->pos_max = ck->rows.empty() ? -1 : ck->rows.end() - 1;
    ck->used_at = context->store->tick();
    return ck;
}

void plan_copies(ContextBox & box, CheckpointBox & ck, Plan & plan) {
    if (!box.store->whole_only && plan_parts(box, ck, plan)) {
        return;
    }
    ck.parts.clear();
    plan = {};
    // Rows of sparse attention without a window can simply be trimmed; everything else is copied whole.
    if (!(ck.partial && box.map.kind == MemoryKind::sparse_attention && !box.map.window)) {
        plan_whole(box, ck, plan);
    }
}

} // namespace

Status checkpoint_take(ContextHandle context, SeqId seq, Where where, bool partial, CheckpointHandle & out) noexcept {
    return checkpoint_guarded([&]() -> Status {
        ContextBox & box = *context;
        if (Status status = check_checkpointable(box, seq, "seq_id"); !status.ok()) {
            return status;
        }
        llama_synchronize(box.ptr);
        CheckpointHandle ck = new_checkpoint(context, seq, where, partial, box.provenance.of(seq));
        Status status;
        if (ck->rows.empty()) {
            // nothing but the fact that it was empty
        } else if (where == Where::cells) {
            const int64_t start_us = llama_time_us();
            status = take_cells(box, *ck);
            box.store->cells_speed.add(seconds_since(start_us), double(ck->rows.size()));
        } else {
            Plan plan;
            plan_copies(box, *ck, plan);
            status = fill(box, *ck, plan);
        }
        if (!status.ok()) {
            return status;
        }
        box.store->track(ck);
        out = std::move(ck);
        return {};
    });
}

Status checkpoint_to_host(ContextBox & box, CheckpointBox & ck, CheckpointHandle & out) noexcept {
    if (ck.context.get() != &box) {
        return Status(Code::invalid_argument, "this checkpoint belongs to another context");
    }
    if (ck.lease >= 0) {
        if (Status status = check_lease(ck); !status.ok()) {
            return status;
        }
        const Status status = checkpoint_take(ck.context, ck.lease, Where::host, ck.partial, out);
        if (status.ok()) {
            out->seq = ck.seq;
            out->encoding = ck.encoding;
        }
        return status;
    }
    return checkpoint_guarded([&]() -> Status {
        // Nobody can evict it meanwhile: that takes being in its context, where we are.
        if (Status status = check_not_evicted(ck); !status.ok()) {
            return status;
        }
        CheckpointHandle copy = new_checkpoint(ck.context, ck.seq, Where::host, ck.partial, ck.rows);
        copy->encoding = ck.encoding;
        copy->window_begin = ck.window_begin;
        copy->whole_cells = ck.whole_cells;
        if (ck.where == Where::host) {
            copy->parts = ck.parts;
            copy->recurrent = ck.recurrent;
            copy->whole = ck.whole;
        } else {
            Plan plan;
            plan_from(box, ck, *copy, plan);
            // Or making room might drop what is being copied.
            const std::shared_ptr<void> pinned(nullptr,
                                               [&ck, was = ck.pinned.exchange(true)](void *) { ck.pinned = was; });
            const Status status = fill(box, *copy, plan);
            if (!status.ok()) {
                return status;
            }
        }
        box.store->track(copy);
        out = std::move(copy);
        return {};
    });
}

Status checkpoint_estimate(ContextHandle context, SeqId seq, bool partial, Estimate & out) noexcept {
    return checkpoint_guarded([&]() -> Status {
        ContextBox & box = *context;
        if (Status status = check_checkpointable(box, seq, "seq_id"); !status.ok()) {
            return status;
        }
        const CheckpointHandle ck = new_checkpoint(context, seq, Where::device, partial, box.provenance.of(seq));
        out.rows = ck->rows.size();
        if (ck->rows.empty()) {
            return {};
        }
        llama_synchronize(box.ptr);
        const CheckpointStore & store = *box.store;
        Plan plan;
        plan_copies(box, *ck, plan);
        out.copied_bytes = missing_bytes(store, *ck, plan);
        for (size_t i = 0; i < box.map.caches.size(); ++i) {
            if (is_base(box.map, i)) {
                const llama_kv_cells & cells = box.map.caches[i]->get_cells(seq);
                out.n_cells = cells.size();
                out.free_cells = int64_t(cells.size()) - int64_t(cells.get_used());
            }
        }
        for (const auto & [buft, bytes] : llama_get_memory_breakdown(box.ptr)) {
            ggml_backend_dev_t device = ggml_backend_buft_get_device(buft);
            if (bytes.context > 0 && device && !ggml_backend_buft_is_host(buft)) {
                size_t free = 0, total = 0;
                ggml_backend_dev_memory(device, &free, &total);
                out.device_free = std::min(out.device_free, free);
                out.is_host = false;
            }
        }
        if (store.device_speed.units > 0) {
            out.device_seconds = store.device_speed.seconds / store.device_speed.units * double(out.copied_bytes);
        }
        if (store.cells_speed.units > 0) {
            out.cells_seconds = store.cells_speed.seconds / store.cells_speed.units * double(out.rows);
        }
        return {};
    });
}

} // namespace lloyal
