#include "checkpoint.hpp"

#include "fork.hpp"
#include "log.hpp"

#include "llama-context.h"
#include "llama-kv-cache.h"
#include "llama-memory-recurrent.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>

namespace lloyal {
namespace {

// Copy a state out whole, as llama.cpp writes it.
Blob take_blob(Collector & state, BufferPool & pool, bool host, CopyList & copies) {
    Blob blob;
    Packer packer;
    for (const Slice & slice : state.slices) {
        const Chunk::Place place = packer.place(storage_for(slice.tensor, host), slice.size);
        blob.pieces.push_back({place.buffer, place.offset, slice.size});
    }
    blob.buffers = packer.allocate(pool);
    for (size_t i = 0; i < state.slices.size(); ++i) {
        const Slice & slice = state.slices[i];
        const Blob::Piece & piece = blob.pieces[i];
        copies.add({slice.tensor, slice.offset, blob.buffers[piece.buffer]->tensor(), piece.offset, slice.size});
    }
    blob.meta = std::move(state.meta);
    return blob;
}

// Cells that follow each other and hold rows that do.
struct CellRange {
    Pos      pos;
    uint32_t cell;
    uint32_t n;
};

// Where `rows` of `seq` lie, in order of position; false unless each has exactly one cell. Few are looked up in the tree
// of positions; for many one pass over the cell table is faster, since the tree is never in the processor's cache.
bool find_cells(const llama_kv_cache & cache, SeqId seq, const Runs & rows, std::vector<CellRange> & ranges) {
    ranges.clear();
    if (rows.empty()) {
        return true;
    }
    const llama_kv_cells & cells = cache.get_cells(seq);
    std::vector<CellRange> held;
    const auto hold = [&held](Pos pos, uint32_t cell) {
        CellRange * last = held.empty() ? nullptr : &held.back();
        if (last && last->cell + last->n == cell && last->pos + Pos(last->n) == pos) {
            ++last->n;
        } else {
            held.push_back({pos, cell, 1});
        }
    };
    if (size_t(rows.end() - rows.begin()) * 8 < cells.used_max_p1()) {
        const auto & by_pos = cells.seq_pos_get(seq);
        for (auto at = by_pos.lower_bound({rows.begin(), 0}); at != by_pos.end() && at->first < rows.end(); ++at) {
            hold(at->first, at->second);
        }
    } else {
        for (uint32_t i = 0; i < cells.used_max_p1(); ++i) {
            if (!cells.is_empty(i) && cells.seq_has(i, seq) && cells.pos_get(i) >= rows.begin() && cells.pos_get(i) < rows.end()) {
                hold(cells.pos_get(i), i);
            }
        }
    }
    std::sort(held.begin(), held.end(), [](const CellRange & a, const CellRange & b) { return a.pos < b.pos; });
    for (size_t i = 1; i < held.size(); ++i) {
        if (held[i].pos < held[i - 1].pos + Pos(held[i - 1].n)) {
            return false; // a position repeats
        }
    }
    auto at = held.begin();
    for (const Run & run : rows.list()) {
        for (Pos pos = run.begin; pos < run.end;) {
            while (at != held.end() && at->pos + Pos(at->n) <= pos) {
                ++at;
            }
            if (at == held.end() || at->pos > pos) {
                return false;
            }
            const uint32_t skip = uint32_t(pos - at->pos);
            const uint32_t n = std::min(at->n - skip, uint32_t(run.end - pos));
            ranges.push_back({pos, at->cell + skip, n});
            pos += Pos(n);
        }
    }
    return true;
}

// Copy the rows that no live chunk holds, and that lie in `ranges`, into a new one.
std::unique_ptr<Chunk> take_chunk(const KvLayout & layout, SeqId seq, const Runs & rows, const std::vector<CellRange> & ranges,
                                  BufferPool & pool, bool host, CopyList & copies) {
    auto chunk = std::make_unique<Chunk>();
    chunk->rows = rows;
    chunk->host = host;
    chunk->n_rows = uint32_t(rows.size());
    if (layout.has_ext) {
        const llama_kv_cells & cells = layout.cache->get_cells(seq);
        for (const CellRange & range : ranges) {
            for (uint32_t i = 0; i < range.n; ++i) {
                chunk->ext.push_back(cells.ext_get(range.cell + i));
            }
        }
    }
    const std::vector<RowTensor> & tensors = layout.tensors(seq);
    Packer packer;
    for (const RowTensor & tensor : tensors) {
        chunk->places.push_back(packer.place(storage_for(tensor.tensor, host), tensor.row_bytes() * chunk->n_rows));
    }
    chunk->buffers = packer.allocate(pool);
    for (size_t t = 0; t < tensors.size(); ++t) {
        const RowTensor & tensor = tensors[t];
        ggml_tensor * to = chunk->buffers[chunk->places[t].buffer]->tensor();
        for (uint32_t k = 0; k < tensor.n_pieces; ++k) {
            uint32_t row = 0;
            for (const CellRange & range : ranges) {
                copies.add({tensor.tensor, tensor.offset(range.cell, k), to, chunk->offset(tensor, t, row, k),
                            range.n * tensor.piece});
                row += range.n;
            }
        }
    }
    return chunk;
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
        return Status(Code::unsupported, "this context borrows another context's memory: checkpoint that one");
    }
    return valid_seq(box, seq, name, bad) ? Status() : bad;
}

CheckpointStore::CheckpointStore(ContextBox & box) : whole_only(false), pool(std::make_shared<BufferPool>()) {
    if (box.map.shared) {
        return;
    }
    switch (box.map.kind) {
        case MemoryKind::attention:
        case MemoryKind::sliding_window:
        case MemoryKind::recurrent:
        case MemoryKind::hybrid:
        case MemoryKind::hybrid_sliding_window:
            break;
        default:
            whole_only = true; // caches that mirror each other or fold rows: copied as one
            return;
    }
    for (llama_kv_cache * cache : box.map.caches) {
        layouts.emplace_back(cache);
        device_chunks.push_back(std::make_shared<ChunkIndex>());
        host_chunks.push_back(std::make_shared<ChunkIndex>());
    }
}

std::vector<CheckpointHandle> CheckpointStore::live() {
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<CheckpointHandle> found;
    std::erase_if(checkpoints_, [&](const std::weak_ptr<CheckpointBox> & weak) {
        CheckpointHandle handle = weak.lock();
        if (handle && !handle->evicted) {
            found.push_back(handle);
        }
        return !handle;
    });
    return found;
}

void CheckpointStore::track(const CheckpointHandle & checkpoint) {
    std::lock_guard<std::mutex> lock(mutex_);
    std::erase_if(checkpoints_, [](const std::weak_ptr<CheckpointBox> & weak) { return weak.expired(); });
    checkpoints_.push_back(checkpoint);
}

size_t CheckpointStore::live_bytes() const {
    size_t n = 0;
    for (const auto & [buft, bytes] : pool->live_bytes()) {
        n += bytes;
    }
    return n;
}

Status CheckpointStore::make_room(size_t bytes) {
    if (budget_bytes < 0) {
        return {};
    }
    std::vector<CheckpointHandle> candidates = evict ? live() : std::vector<CheckpointHandle>{};
    std::erase_if(candidates, [](const CheckpointHandle & c) { return c->pinned || c->where == Where::cells; });
    std::sort(candidates.begin(), candidates.end(),
              [](const CheckpointHandle & a, const CheckpointHandle & b) { return a->used_at < b->used_at; });
    for (size_t i = 0; live_bytes() + bytes > size_t(budget_bytes); ++i) {
        if (i == candidates.size()) {
            return Status(Code::out_of_device_memory,
                          text("the budget of ", budget_bytes, " bytes has ", live_bytes(), " in use, the checkpoint needs ",
                               bytes, " more", evict ? " and nothing is left to evict" : ": release some, or set evict=True"));
        }
        // One that another thread is reading right now is in use.
        if (std::unique_lock<std::mutex> lock(candidates[i]->content, std::try_to_lock); lock) {
            candidates[i]->drop();
            candidates[i]->evicted = true;
        }
    }
    return {};
}

CheckpointStore & store_of(ContextBox & box) {
    return *box.store;
}

CheckpointBox::~CheckpointBox() {
    drop();
    --live_counts().checkpoints;
}

void CheckpointBox::drop() {
    parts.clear();
    recurrent.reset();
    whole.reset();
    if (lease >= 0) {
        lease_release(*context, std::exchange(lease, -1));
    }
}

size_t CheckpointBox::nbytes() const {
    std::lock_guard<std::mutex> lock(content);
    size_t n = (recurrent ? recurrent->bytes() : 0) + (whole ? whole->bytes() : 0);
    for (const Part & part : parts) {
        n += size_t(part.rows.size()) * context->store->layouts[part.cache].row_bytes();
    }
    return n;
}

std::map<ggml_backend_buffer_type_t, size_t> CheckpointBox::buffers() const {
    std::lock_guard<std::mutex> lock(content);
    std::map<ggml_backend_buffer_type_t, size_t> found;
    for (const Part & part : parts) {
        const std::vector<RowTensor> & tensors = context->store->layouts[part.cache].streams[0];
        for (const Segment & segment : part.segments) {
            for (size_t t = 0; t < tensors.size(); ++t) {
                found[segment.chunk->buffers[segment.chunk->places[t].buffer]->buft()] += segment.n * tensors[t].row_bytes();
            }
        }
    }
    for (const auto & blob : {&recurrent, &whole}) {
        if (*blob) {
            for (const auto & buffer : (*blob)->buffers) {
                found[buffer->buft()] += buffer->size();
            }
        }
    }
    return found;
}

size_t CheckpointBox::n_segments() const {
    std::lock_guard<std::mutex> lock(content);
    size_t n = 0;
    for (const Part & part : parts) {
        n += part.segments.size();
    }
    return n;
}

size_t CheckpointBox::meta_bytes() const {
    std::lock_guard<std::mutex> lock(content);
    size_t n = sizeof(CheckpointBox) + rows.list().size() * sizeof(Run);
    for (const Part & part : parts) {
        n += sizeof(Part) + part.segments.capacity() * sizeof(Segment) + part.rows.list().size() * sizeof(Run);
    }
    for (const auto & blob : {&recurrent, &whole}) {
        if (*blob) {
            n += (*blob)->meta.size() + (*blob)->pieces.size() * sizeof(Blob::Piece);
        }
    }
    return n;
}

namespace {

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

// Take the parts of a memory whose caches we know; false if this sequence has to be copied whole.
bool take_parts(ContextBox & box, CheckpointStore & store, CheckpointBox & ck, Status & status) {
    const MemoryMap & map = box.map;
    const bool host = ck.where == Where::host;
    struct Fresh {
        size_t                 part;
        std::unique_ptr<Chunk> chunk;
    };
    size_t need = 0;
    for (size_t i = 0; i < map.caches.size(); ++i) {
        const bool base = is_base(map, i);
        if (ck.partial && base) {
            continue;
        }
        ck.window_begin = map.window ? map.window_begin(ck.pos_max) : 0;
        const Runs rows = base ? ck.rows : ck.rows.slice(ck.window_begin, POS_END);
        if (base && map.caches[i]->get_cells(ck.seq).seq_pos_get(ck.seq).size() != size_t(rows.size())) {
            return false; // positions repeat (M-RoPE images)
        }
        ck.parts.push_back({i, rows, {}});
    }
    std::vector<Runs> missing(ck.parts.size());
    std::vector<std::vector<CellRange>> ranges(ck.parts.size());
    for (size_t p = 0; p < ck.parts.size(); ++p) {
        CheckpointBox::Part & part = ck.parts[p];
        auto & index = (host ? store.host_chunks : store.device_chunks)[part.cache];
        index->find(part.rows, part.segments, missing[p]);
        if (!find_cells(*map.caches[part.cache], ck.seq, missing[p], ranges[p])) {
            // Rows that no later token attends to, only one in place of the last, may be gone: their cells get reused.
            ck.window_begin = map.window_begin(ck.rows.end());
            part.rows = part.rows.slice(ck.window_begin, POS_END);
            part.segments.clear();
            missing[p] = Runs();
            index->find(part.rows, part.segments, missing[p]);
            if (is_base(map, part.cache) || part.rows.empty() ||
                !find_cells(*map.caches[part.cache], ck.seq, missing[p], ranges[p])) {
                return false;
            }
        }
        need += size_t(missing[p].size()) * store.layouts[part.cache].row_bytes();
    }
    Collector recurrent;
    if (map.recurrent) {
        map.recurrent->state_write(recurrent, ck.seq, 0);
        need += recurrent.n_tensor_bytes();
    }
    if (status = store.make_room(need); !status.ok()) {
        return true;
    }
    CopyList copies;
    std::vector<Fresh> fresh;
    for (size_t p = 0; p < ck.parts.size(); ++p) {
        if (!missing[p].empty()) {
            fresh.push_back({p, take_chunk(store.layouts[ck.parts[p].cache], ck.seq, missing[p], ranges[p], *store.pool, host, copies)});
        }
    }
    if (map.recurrent) {
        ck.recurrent = take_blob(recurrent, *store.pool, host, copies);
    }
    copies.run(*box.ptr);
    for (Fresh & f : fresh) {
        CheckpointBox::Part & part = ck.parts[f.part];
        auto & index = (host ? store.host_chunks : store.device_chunks)[part.cache];
        const auto chunk = index->add(std::move(f.chunk));
        Runs none;
        // Still held: whoever else has these chunks may give them up meanwhile, on another thread or to the budget.
        const std::vector<Segment> held = std::exchange(part.segments, {});
        index->find(part.rows, part.segments, none);
        if (!none.empty()) {
            throw std::runtime_error("a checkpoint lost rows it had just copied");
        }
    }
    for (CheckpointBox::Part & part : ck.parts) {
        part.segments.shrink_to_fit();
    }
    return true;
}

Status take_whole(ContextBox & box, CheckpointStore & store, CheckpointBox & ck) {
    Collector state;
    box.memory->state_write(state, ck.seq, 0);
    if (Status status = store.make_room(state.n_tensor_bytes()); !status.ok()) {
        return status;
    }
    CopyList copies;
    ck.whole = take_blob(state, *store.pool, ck.where == Where::host, copies);
    for (size_t i = 0; i < box.map.caches.size(); ++i) {
        if (box.map.caches[i] != box.map.window) {
            ck.whole_cells = std::max(ck.whole_cells, box.map.caches[i]->get_cells(ck.seq).seq_pos_get(ck.seq).size());
        }
    }
    copies.run(*box.ptr);
    return {};
}

} // namespace

Status checkpoint_take(ContextHandle context, SeqId seq, Where where, bool partial, CheckpointHandle & out) noexcept {
    return checkpoint_guarded([&]() -> Status {
        ContextBox & box = *context;
        if (Status status = check_checkpointable(box, seq, "seq_id"); !status.ok()) {
            return status;
        }
        llama_synchronize(box.ptr);
        CheckpointStore & store = store_of(box);
        auto ck = make_handle<CheckpointBox>();
        ck->context = context;
        ck->where = where;
        ck->partial = partial;
        ck->seq = seq;
        ck->rows = box.provenance.of(seq);
        ck->pos_min = ck->rows.empty() ? -1 : ck->rows.begin();
        ck->pos_max = ck->rows.empty() ? -1 : ck->rows.end() - 1;
        ck->used_at = ++store.clock;
        Status status;
        if (ck->rows.empty()) {
            // nothing but the fact that it was empty
        } else if (where == Where::cells) {
            status = take_cells(box, *ck);
        } else if (store.whole_only || !take_parts(box, store, *ck, status)) {
            ck->parts.clear();
            // Rows of sparse attention without a window can simply be trimmed; everything else is copied whole.
            if (!(partial && box.map.kind == MemoryKind::sparse_attention && !box.map.window)) {
                status = take_whole(box, store, *ck);
            }
        }
        if (!status.ok()) {
            return status;
        }
        store.track(ck);
        out = std::move(ck);
        return {};
    });
}

} // namespace lloyal
