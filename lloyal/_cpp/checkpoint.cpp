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

constexpr Pos POS_END = std::numeric_limits<Pos>::max();

Status checkpoint_guarded(const std::function<Status()> & body) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        try {
            return body();
        } catch (const DeviceMemoryError & e) {
            return Status(Code::out_of_device_memory, e.what());
        }
    });
}

void outputs_gone(ContextBox & box) {
    ++box.generation;
    box.output_row.clear();
    box.n_outputs = 0;
}

// A made-up state stream: bytes to read, and the tensor slices llama.cpp asks to have filled.
class ScriptedReader : public llama_io_read_i {
  public:
    std::vector<uint8_t> script;
    std::vector<Slice>   targets;

    void read(void * dst, size_t size) override {
        if (size > script.size() - pos_) {
            throw std::runtime_error("the checkpoint ends early");
        }
        std::memcpy(dst, script.data() + pos_, size);
        pos_ += size;
    }
    void read_tensor(ggml_tensor * tensor, size_t offset, size_t size) override {
        if (size > 0) {
            targets.push_back({tensor, offset, size});
        }
    }
    size_t n_bytes() override { return pos_; }
    bool   done() const { return pos_ == script.size(); }

    template <typename T> void put(const T & value) {
        const auto * bytes = reinterpret_cast<const uint8_t *>(&value);
        script.insert(script.end(), bytes, bytes + sizeof(T));
    }

  private:
    size_t pos_ = 0;
};

// The state of one sequence's rows as llama.cpp's cache reads it.
void script_rows(ScriptedReader & reader, const KvLayout & layout, const Runs & rows, const std::vector<Segment> & segments) {
    const uint32_t n = uint32_t(rows.size());
    reader.script.reserve(16 + size_t(n) * (layout.has_ext ? 24 : 12) + layout.header.size());
    reader.put(layout.n_stream);
    for (uint32_t s = 0; s < layout.n_stream; ++s) {
        reader.put(s == 0 ? n : uint32_t(0));
        if (s > 0 || n == 0) {
            continue;
        }
        size_t segment = 0;
        uint32_t in_segment = 0;
        for (const Run & run : rows.list()) {
            for (Pos pos = run.begin; pos < run.end; ++pos) {
                reader.put(pos);
                reader.put(uint32_t(1));
                if (layout.has_ext) {
                    while (in_segment == segments[segment].n) {
                        ++segment;
                        in_segment = 0;
                    }
                    const Segment & from = segments[segment];
                    reader.put(from.chunk->ext[from.row + in_segment++]);
                }
                reader.put(SeqId(0)); // read and dropped: the destination's id is used
            }
        }
        reader.script.insert(reader.script.end(), layout.header.begin(), layout.header.end());
    }
}

// Pair what llama.cpp asked to fill (rows in order, tensor by tensor) with where the rows lie.
void copy_rows(CopyList & copies, const ScriptedReader & reader, const std::vector<RowTensor> & tensors, uint32_t n_rows,
               const std::vector<Segment> & segments) {
    size_t next = 0;
    for (size_t t = 0; t < tensors.size(); ++t) {
        const RowTensor & tensor = tensors[t];
        for (uint32_t k = 0; k < tensor.n_pieces; ++k) {
            uint32_t row = 0;
            size_t segment = 0;
            uint32_t in_segment = 0;
            while (row < n_rows) {
                if (next == reader.targets.size() || reader.targets[next].tensor != tensor.tensor) {
                    throw std::runtime_error("llama.cpp asked for other tensors than the checkpoint holds");
                }
                const Slice & target = reader.targets[next++];
                uint32_t left = uint32_t(target.size / tensor.piece);
                size_t at = target.offset;
                row += left;
                while (left > 0) {
                    if (in_segment == segments[segment].n) {
                        ++segment;
                        in_segment = 0;
                    }
                    const Segment & from = segments[segment];
                    const uint32_t n = std::min(left, from.n - in_segment);
                    const Chunk::Place & place = from.chunk->places[t];
                    copies.add({from.chunk->buffers[place.buffer]->tensor(),
                                from.chunk->offset(tensor, t, from.row + in_segment, k), tensor.tensor, at,
                                n * tensor.piece});
                    at += n * tensor.piece;
                    in_segment += n;
                    left -= n;
                }
            }
        }
    }
    if (next != reader.targets.size()) {
        throw std::runtime_error("llama.cpp asked for more tensors than the checkpoint holds");
    }
}

void copy_blob(CopyList & copies, const ScriptedReader & reader, const Blob & blob) {
    size_t piece = 0;
    size_t used = 0;
    for (const Slice & target : reader.targets) {
        size_t done = 0;
        while (done < target.size) {
            if (piece == blob.pieces.size()) {
                throw std::runtime_error("llama.cpp asked for more tensor bytes than the checkpoint holds");
            }
            const Blob::Piece & from = blob.pieces[piece];
            const size_t n = std::min(target.size - done, from.size - used);
            copies.add({blob.buffers[from.buffer]->tensor(), from.offset + used, target.tensor, target.offset + done, n});
            done += n;
            used += n;
            if (used == from.size) {
                ++piece;
                used = 0;
            }
        }
    }
    if (piece != blob.pieces.size()) {
        throw std::runtime_error("llama.cpp asked for fewer tensor bytes than the checkpoint holds");
    }
}

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

// Copy the rows that no live chunk holds into a new one.
std::unique_ptr<Chunk> take_chunk(const KvLayout & layout, SeqId seq, const Runs & rows, BufferPool & pool, bool host,
                                  CopyList & copies) {
    const llama_kv_cells & cells = layout.cache->get_cells(seq);
    const auto & by_pos = cells.seq_pos_get(seq);
    auto chunk = std::make_unique<Chunk>();
    chunk->rows = rows;
    chunk->host = host;
    chunk->n_rows = uint32_t(rows.size());

    struct CellRange {
        uint32_t cell;
        uint32_t n;
    };
    std::vector<CellRange> ranges;
    for (const Run & run : rows.list()) {
        auto at = by_pos.lower_bound({run.begin, 0});
        for (Pos pos = run.begin; pos < run.end; ++pos, ++at) {
            const uint32_t cell = at->second;
            if (!ranges.empty() && ranges.back().cell + ranges.back().n == cell) {
                ++ranges.back().n;
            } else {
                ranges.push_back({cell, 1});
            }
            if (layout.has_ext) {
                chunk->ext.push_back(cells.ext_get(cell));
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

// True if `seq` has exactly one cell for each of `rows` in this cache.
bool has_rows(const llama_kv_cache & cache, SeqId seq, const Runs & rows) {
    const auto & by_pos = cache.get_cells(seq).seq_pos_get(seq);
    for (const Run & run : rows.list()) {
        auto at = by_pos.lower_bound({run.begin, 0});
        for (Pos pos = run.begin; pos < run.end; ++pos, ++at) {
            if (at == by_pos.end() || at->first != pos) {
                return false;
            }
        }
        if (at != by_pos.end() && at->first < run.end) {
            return false; // a position repeats
        }
    }
    return true;
}

bool is_base(const MemoryMap & map, size_t cache) {
    return map.kind == MemoryKind::attention || map.caches[cache] != map.window;
}

void drop_sequence(ContextBox & box, SeqId seq) {
    for (llama_kv_cache * cache : box.map.caches) {
        cache->seq_rm(seq, -1, -1);
    }
    if (box.map.recurrent) {
        box.map.recurrent->seq_rm(seq, -1, -1);
    }
    box.memory->seq_rm(seq, -1, -1); // whatever else this memory keeps by sequence
}

void forget_sequence(ContextBox & box, SeqId seq) {
    drop_sequence(box, seq);
    box.provenance.remove(seq, 0, POS_END);
    box.map.reset_ring(seq);
}

size_t free_cells(const MemoryMap & map, size_t index, SeqId dest) {
    const llama_kv_cache & cache = *map.caches[index];
    const llama_kv_cells & cells = cache.get_cells(dest);
    size_t n = cells.size() - cells.get_used();
    if (map.caches[index] == map.window) {
        // Cells outside their only sequence's window are overwritten as if free.
        for (uint32_t i = 0; i < cells.size(); ++i) {
            if (!cells.is_empty(i) && cells.seq_count(i) == 1) {
                const SeqId owner = cells.seq_get(i);
                n += owner != dest && cells.pos_get(i) < map.window_begin(cells.seq_pos_max(owner) + 1);
            }
        }
    }
    return n;
}

size_t own_cells(const llama_kv_cache & cache, SeqId seq) {
    const llama_kv_cells & cells = cache.get_cells(seq);
    size_t n = 0;
    for (const auto & [pos, cell] : cells.seq_pos_get(seq)) {
        n += cells.seq_count(cell) == 1;
    }
    return n;
}

SeqId find_spare(const ContextBox & box, SeqId dest) {
    for (SeqId seq = box.provenance.n_seq_max() - 1; seq >= 0; --seq) {
        if (seq != dest && box.provenance.of(seq).empty() && box.leases[seq] == Lease::none &&
            box.memory->seq_pos_max(seq) < 0) {
            return seq;
        }
    }
    return -1;
}

} // namespace

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
        candidates[i]->drop();
        candidates[i]->evicted = true;
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
    size_t n = (recurrent ? recurrent->bytes() : 0) + (whole ? whole->bytes() : 0);
    for (const Part & part : parts) {
        n += size_t(part.rows.size()) * context->store->layouts[part.cache].row_bytes();
    }
    return n;
}

std::map<ggml_backend_buffer_type_t, size_t> CheckpointBox::buffers() const {
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
    size_t n = 0;
    for (const Part & part : parts) {
        n += part.segments.size();
    }
    return n;
}

size_t CheckpointBox::meta_bytes() const {
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

Status check_context(const ContextBox & box, SeqId seq, const char * name) {
    Status bad;
    if (!box.memory) {
        return Status(Code::unsupported, "this model keeps no memory between calls, so there is nothing to checkpoint");
    }
    if (box.map.shared) {
        return Status(Code::unsupported, "this context borrows another context's memory: checkpoint that one");
    }
    return valid_seq(box, seq, name, bad) ? Status() : bad;
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
        const Runs rows = base ? ck.rows : ck.rows.slice(map.window_begin(ck.pos_max), POS_END);
        if (base && map.caches[i]->get_cells(ck.seq).seq_pos_get(ck.seq).size() != size_t(rows.size())) {
            return false; // positions repeat (M-RoPE images)
        }
        ck.parts.push_back({i, rows, {}});
    }
    std::vector<Runs> missing(ck.parts.size());
    for (size_t p = 0; p < ck.parts.size(); ++p) {
        CheckpointBox::Part & part = ck.parts[p];
        auto & index = (host ? store.host_chunks : store.device_chunks)[part.cache];
        index->find(part.rows, part.segments, missing[p]);
        if (!has_rows(*map.caches[part.cache], ck.seq, missing[p])) {
            return false;
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
            fresh.push_back({p, take_chunk(store.layouts[ck.parts[p].cache], ck.seq, missing[p], *store.pool, host, copies)});
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
    copies.run(*box.ptr);
    return {};
}

} // namespace

Status checkpoint_take(ContextHandle context, SeqId seq, Where where, bool partial, CheckpointHandle & out) noexcept {
    return checkpoint_guarded([&]() -> Status {
        ContextBox & box = *context;
        if (Status status = check_context(box, seq, "seq_id"); !status.ok()) {
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

namespace {

// A restore in the making: what is read where, and how it is swapped in.
struct Restore {
    ContextBox &      box;
    CheckpointStore & store;
    CheckpointBox &   ck;
    SeqId             dest;

    SeqId source = -1; // the sequence whose rows [.., shared_end) are the checkpoint's own
    Pos   shared_end = 0;

    struct KvRead {
        size_t               cache;
        Runs                 rows;
        std::vector<Segment> segments;
    };
    std::vector<KvRead> reads;

    // Split a part's segments at `begin`.
    static KvRead read_from(const CheckpointBox::Part & part, Pos begin) {
        KvRead read{part.cache, part.rows.slice(begin, POS_END), {}};
        for (const Segment & segment : part.segments) {
            const Pos skip = std::max(0, std::min(Pos(segment.n), begin - segment.pos));
            if (skip < Pos(segment.n)) {
                read.segments.push_back({segment.chunk, segment.row + uint32_t(skip), segment.n - uint32_t(skip), segment.pos + skip});
            }
        }
        return read;
    }

    void find_shared() {
        if (!box.map.unified || ck.partial) {
            return;
        }
        for (SeqId i = 0; i <= box.provenance.n_seq_max(); ++i) {
            const SeqId seq = i == 0 ? dest : i - 1;
            const Pos end = box.provenance.of(seq).common_end(ck.rows);
            if (end > shared_end && end > ck.rows.begin()) {
                source = seq;
                shared_end = end;
            }
        }
    }

    void plan(bool sharing) {
        reads.clear();
        for (const CheckpointBox::Part & part : ck.parts) {
            const bool shares = sharing && is_base(box.map, part.cache) && source >= 0;
            reads.push_back(read_from(part, shares ? shared_end : 0));
        }
    }

    bool reads_rows() const {
        return std::any_of(reads.begin(), reads.end(), [](const KvRead & read) { return !read.rows.empty(); });
    }

    bool fits(bool giving_up_dest) const {
        return std::all_of(reads.begin(), reads.end(), [&](const KvRead & read) {
            size_t n = free_cells(box.map, read.cache, dest);
            n += giving_up_dest ? own_cells(*box.map.caches[read.cache], dest) : 0;
            return size_t(read.rows.size()) <= n;
        });
    }

    // Let llama.cpp place every part in `seq`, then issue the copies.
    void read_into(SeqId seq) {
        CopyList copies;
        for (const KvRead & read : reads) {
            const KvLayout & layout = store.layouts[read.cache];
            if (read.rows.empty()) {
                layout.cache->seq_rm(seq, -1, -1);
                continue;
            }
            ScriptedReader reader;
            script_rows(reader, layout, read.rows, read.segments);
            layout.cache->state_read(reader, seq, 0);
            copy_rows(copies, reader, layout.tensors(seq), uint32_t(read.rows.size()), read.segments);
        }
        script_state(seq, copies);
        copies.run(*box.ptr);
    }

    void read_state_into(SeqId seq) {
        CopyList copies;
        script_state(seq, copies);
        copies.run(*box.ptr);
    }

    void script_state(SeqId seq, CopyList & copies) {
        if (ck.recurrent) {
            ScriptedReader reader;
            reader.script = ck.recurrent->meta;
            box.map.recurrent->state_read(reader, seq, 0);
            copy_blob(copies, reader, *ck.recurrent);
        }
    }

    // Make `dest` what the checkpoint was, from the shared rows and what `spare` holds. Nothing here can fail.
    void swap_in(SeqId spare) {
        for (size_t i = 0; i < box.map.caches.size(); ++i) {
            llama_kv_cache & cache = *box.map.caches[i];
            const auto read = std::find_if(reads.begin(), reads.end(), [i](const KvRead & r) { return r.cache == i; });
            if (ck.partial && read == reads.end()) {
                if (box.provenance.of(dest).end() > ck.rows.end()) {
                    cache.seq_rm(dest, ck.rows.end(), -1);
                }
                continue;
            }
            const bool shares = source >= 0 && is_base(box.map, i);
            if (shares && source == dest) {
                cache.seq_rm(dest, shared_end, -1);
            } else {
                cache.seq_rm(dest, -1, -1);
                if (shares) {
                    cache.seq_cp(source, dest, -1, shared_end);
                }
            }
            if (spare >= 0 && read != reads.end() && !read->rows.empty()) {
                cache.seq_cp(spare, dest, -1, -1);
                cache.seq_rm(spare, -1, -1);
            }
        }
        if (ck.recurrent && spare >= 0) {
            box.map.recurrent->seq_rm(dest, -1, -1);
            box.map.recurrent->seq_cp(spare, dest, -1, -1);
            box.map.recurrent->seq_rm(spare, -1, -1);
        }
    }

    void finish() {
        box.provenance.assign(dest, ck.rows);
        box.map.reset_ring(dest);
    }
};

Status restore_failed(SeqId dest, const std::exception & e) {
    const auto * memory = dynamic_cast<const DeviceMemoryError *>(&e);
    return Status(memory ? Code::out_of_device_memory : Code::decode_failed,
                  text(e.what(), "; there was no spare sequence or no free cells to prepare the state in, so sequence ",
                       dest, " is now empty"));
}

Status restore_parts(Restore & restore) {
    ContextBox & box = restore.box;
    const SeqId dest = restore.dest;
    restore.find_shared();
    restore.plan(true);
    if (!restore.ck.recurrent && !restore.reads_rows()) {
        restore.swap_in(-1);
        restore.finish();
        return {};
    }
    const SeqId spare = box.map.unified ? find_spare(box, dest) : -1;
    if (spare >= 0 && restore.fits(false)) {
        try {
            restore.read_into(spare);
        } catch (...) {
            drop_sequence(box, spare);
            throw;
        }
        restore.swap_in(spare);
        restore.finish();
        return {};
    }
    const auto read_or_empty = [&](auto && read) -> Status {
        try {
            read();
            return {};
        } catch (const std::exception & e) {
            const Status status = restore_failed(dest, e);
            forget_sequence(box, dest);
            return status;
        }
    };
    // No room beside the destination: everything that has to be read goes straight into it.
    if (!restore.reads_rows()) {
        if (Status status = read_or_empty([&] { restore.read_state_into(dest); }); !status.ok()) {
            return status;
        }
        restore.swap_in(-1);
        restore.finish();
        return {};
    }
    restore.source = -1;
    restore.shared_end = 0;
    restore.plan(false);
    if (!restore.fits(true)) {
        return Status(Code::cache_full,
                      text("the state has ", restore.ck.rows.size(), " rows, and there are too few free cells even without "
                           "what sequence ", dest, " holds: free another sequence, or raise n_ctx"));
    }
    if (Status status = read_or_empty([&] { restore.read_into(dest); }); !status.ok()) {
        return status;
    }
    if (restore.ck.partial) {
        for (size_t i = 0; i < box.map.caches.size(); ++i) {
            if (is_base(box.map, i)) {
                box.map.caches[i]->seq_rm(dest, restore.ck.rows.end(), -1);
            }
        }
    }
    restore.finish();
    return {};
}

Status restore_whole(ContextBox & box, CheckpointBox & ck, SeqId dest) {
    for (size_t i = 0; i < box.map.caches.size(); ++i) {
        const size_t room = free_cells(box.map, i, dest) + own_cells(*box.map.caches[i], dest);
        const bool counted = box.map.kind != MemoryKind::compressed && box.map.caches[i] != box.map.window;
        if (counted && size_t(ck.rows.size()) > room) {
            return Status(Code::cache_full, text("the state has ", ck.rows.size(), " rows, there is room for ", room));
        }
    }
    try {
        ScriptedReader reader;
        reader.script = ck.whole->meta;
        box.memory->state_read(reader, dest, 0);
        CopyList copies;
        copy_blob(copies, reader, *ck.whole);
        copies.run(*box.ptr);
    } catch (const std::exception & e) {
        const Status status = restore_failed(dest, e);
        forget_sequence(box, dest);
        return status;
    }
    box.provenance.assign(dest, ck.rows);
    box.map.reset_ring(dest);
    return {};
}

Status restore_cells(ContextBox & box, CheckpointBox & ck, SeqId dest) {
    if (!(box.provenance.of(ck.lease) == ck.rows)) {
        return Status(Code::stale_checkpoint,
                      text("the cells of this checkpoint (sequence ", ck.lease, ") were changed: the memory was cleared or "
                           "restored as a whole"));
    }
    if (Status status = memory_seq_rm(box, dest, -1, -1); !status.ok()) {
        return status;
    }
    return memory_seq_cp_any(box, ck.lease, dest, -1, -1);
}

// Why a checkpoint of one context cannot be read into another.
Status check_layout(ContextBox & from, ContextBox & to) {
    if (&from == &to) {
        return {};
    }
    std::vector<uint8_t> a, b;
    if (Status status = layout_signature(from, a); !status.ok()) {
        return status;
    }
    if (Status status = layout_signature(to, b); !status.ok()) {
        return status;
    }
    if (a != b) {
        return Status(Code::state_mismatch,
                      "the other context's cache is laid out differently: it needs the same model, cache types, flash "
                      "attention and kv_unified");
    }
    return {};
}

} // namespace

Status checkpoint_restore(CheckpointBox & ck, ContextBox & box, SeqId dest) noexcept {
    return checkpoint_guarded([&]() -> Status {
        if (Status status = check_context(box, dest, "seq_id"); !status.ok()) {
            return status;
        }
        if (ck.evicted) {
            return Status(Code::stale_checkpoint, "this checkpoint was evicted to keep the budget (pin it to keep it)");
        }
        if (box.leases[dest] == Lease::checkpoint) {
            return Status(Code::no_lease, text("sequence ", dest, " holds the cells of a checkpoint"));
        }
        if (Status status = check_layout(*ck.context, box); !status.ok()) {
            return status;
        }
        const bool elsewhere = ck.context.get() != &box;
        if (elsewhere && ck.where == Where::cells) {
            return Status(Code::unsupported, "where=\"cells\" lives in the cache of its own context: take it with where=\"device\"");
        }
        llama_synchronize(box.ptr);
        CheckpointStore & store = store_of(box);
        ck.used_at = ++ck.context->store->clock;
        if (ck.rows.empty()) {
            outputs_gone(box);
            forget_sequence(box, dest);
            return {};
        }
        const bool needs_prefix = ck.partial && ck.where != Where::cells && !ck.whole && box.map.kind != MemoryKind::recurrent;
        if (needs_prefix && !box.provenance.of(dest).holds(ck.rows)) {
            return Status(Code::stale_checkpoint,
                          text("a partial checkpoint needs the rows it was taken on: sequence ", dest, " no longer holds "
                               "the same rows up to position ", ck.pos_max));
        }
        outputs_gone(box);
        if (ck.where == Where::cells) {
            return restore_cells(box, ck, dest);
        }
        if (ck.whole) {
            return restore_whole(box, ck, dest);
        }
        if (store.whole_only) {
            // partial on sparse attention: positions only
            return memory_seq_rm(box, dest, ck.rows.end(), -1);
        }
        Restore restore{box, store, ck, dest};
        return restore_parts(restore);
    });
}

} // namespace lloyal
