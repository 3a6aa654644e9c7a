#include "state/chunks.hpp"

#include "core/status.hpp"

#include "llama-kv-cache.h"

#include <algorithm>
#include <stdexcept>

namespace lloyal {

namespace {

constexpr size_t ALIGNMENT = 128; // what the strictest back end asks of a tensor's start

size_t aligned(size_t size) {
    return (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

} // namespace

size_t Chunk::meta_bytes() const {
    return sizeof(Chunk) + rows.list().size() * sizeof(Run) + ext.size() * sizeof ext[0] +
           places.size() * sizeof places[0] + buffers.size() * (sizeof buffers[0] + sizeof(DeviceBuffer));
}

size_t Blob::bytes() const {
    size_t n = 0;
    for (const auto & buffer : buffers) {
        n += buffer->size();
    }
    return n;
}

std::vector<Slice> Blob::slices() const {
    std::vector<Slice> found;
    for (const Piece & piece : pieces) {
        found.push_back({buffers[piece.buffer]->tensor(), piece.offset, piece.size});
    }
    return found;
}

void append(std::vector<Segment> & segments, Segment segment) {
    if (!segments.empty() && segments.back().continues(segment)) {
        segments.back().n += segment.n;
    } else {
        segments.push_back(std::move(segment));
    }
}

std::vector<Segment> slice(const std::vector<Segment> & segments, Pos begin, Pos end) {
    std::vector<Segment> found;
    for (const Segment & segment : segments) {
        const Pos from = std::max(begin, segment.pos);
        const Pos to = std::min(end, segment.pos + Pos(segment.n));
        if (from < to) {
            found.push_back({segment.chunk, segment.row + uint32_t(from - segment.pos), uint32_t(to - from), from});
        }
    }
    return found;
}

SegmentList::SegmentList(std::shared_ptr<const SegmentList> base, Segment last)
    : base_(std::move(base)), last_(std::move(last)), size_(1 + (base_ ? base_->size_ : 0)) {}

SegmentList::~SegmentList() {
    // One after the other: lists can be as long as there are tokens, and each would call the next.
    std::shared_ptr<const SegmentList> next = std::move(base_);
    while (next && next.use_count() == 1) {
        std::shared_ptr<const SegmentList> after = next->base_;
        next = std::move(after);
    }
}

std::shared_ptr<const SegmentList> SegmentList::make(const std::vector<Segment> & segments) {
    std::shared_ptr<const SegmentList> list;
    int tries = 4; // what has no beginning in common, as the rows of a window, shows soon
    for (size_t i = segments.size(); i-- > 0 && !list && tries > 0;) {
        // The longest beginning of what ends in this chunk that is a beginning of ours.
        const std::shared_ptr<const SegmentList> home = segments[i].chunk->home.lock();
        tries -= home != nullptr;
        const SegmentList * end = nullptr; // what comes before it agrees
        for (const SegmentList * at = home.get(); at; at = at->base_.get()) {
            if (at->size_ > segments.size() || !(at->last_ == segments[at->size_ - 1])) {
                end = at;
            }
        }
        list = end ? end->base_ : home;
    }
    for (size_t i = list ? list->size_ : 0; i < segments.size(); ++i) {
        list = std::make_shared<const SegmentList>(std::move(list), segments[i]);
        list->last_.chunk->home = list;
    }
    return list;
}

std::vector<Segment> SegmentList::all() const {
    std::vector<Segment> segments(size_);
    for (const SegmentList * list = this; list; list = list->base_.get()) {
        segments[list->size_ - 1] = list->last_;
    }
    return segments;
}

std::shared_ptr<const Chunk> ChunkIndex::add(std::unique_ptr<Chunk> owned) {
    Chunk * raw = owned.release();
    std::shared_ptr<const Chunk> chunk(raw, [index = shared_from_this()](const Chunk * c) {
        index->remove(c);
        delete c;
    });
    std::lock_guard<std::mutex> lock(mutex_);
    uint32_t row = 0;
    for (const Run & run : raw->rows.list()) {
        const uint32_t n = uint32_t(run.end - run.begin);
        // A chunk that another thread is freeing right now may still be listed, and would hide these rows.
        const auto last = entries_.lower_bound({run.epoch, run.first + n});
        for (auto at = entries_.lower_bound({run.epoch, run.first}); at != last;) {
            at = at->second.chunk.expired() ? entries_.erase(at) : std::next(at);
        }
        entries_.try_emplace({run.epoch, run.first}, Entry{run.first + n, row, chunk, raw});
        row += n;
    }
    return chunk;
}

bool ChunkIndex::remove(const Chunk * chunk) {
    std::lock_guard<std::mutex> lock(mutex_);
    bool was_there = false;
    for (const Run & run : chunk->rows.list()) {
        const auto found = entries_.find({run.epoch, run.first});
        if (found != entries_.end() && found->second.raw == chunk) {
            entries_.erase(found);
            was_there = true;
        }
    }
    return was_there;
}

void ChunkIndex::find(const Runs & rows, std::vector<Segment> & held, Runs & missing) const {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const Run & run : rows.list()) {
        Pos pos = run.begin;
        while (pos < run.end) {
            const uint64_t id = run.first + uint64_t(pos - run.begin);
            auto next = entries_.upper_bound({run.epoch, id});
            uint64_t until = run.first + uint64_t(run.end - run.begin);
            if (next != entries_.end() && next->first.first == run.epoch) {
                until = std::min(until, next->first.second);
            }
            std::shared_ptr<const Chunk> chunk;
            uint32_t row = 0;
            uint64_t last = until;
            if (next != entries_.begin()) {
                auto entry = std::prev(next);
                if (entry->first.first == run.epoch && id < entry->second.last) {
                    chunk = entry->second.chunk.lock();
                    row = entry->second.row + uint32_t(id - entry->first.second);
                    last = std::min(run.first + uint64_t(run.end - run.begin), entry->second.last);
                }
            }
            const uint32_t n = uint32_t((chunk ? last : until) - id);
            if (chunk) {
                append(held, {std::move(chunk), row, n, pos});
            } else {
                missing.append(Run{pos, pos + Pos(n), run.epoch, id});
            }
            pos += Pos(n);
        }
    }
}

Chunk::Place Packer::place(ggml_backend_buffer_type_t buft, size_t size) {
    const size_t most = ggml_backend_buft_get_max_size(buft);
    if (size > most) {
        throw DeviceMemoryError("one tensor of the state has " + std::to_string(size) + " bytes, " +
                                ggml_backend_buft_name(buft) + " allocates at most " + std::to_string(most));
    }
    for (size_t i = open_.size(); i-- > 0;) {
        Open & open = open_[i];
        if (open.buft == buft) {
            if (aligned(open.size) + size > most) {
                break; // the last one of this type is full
            }
            const size_t at = aligned(open.size);
            open.size = at + size;
            return {uint32_t(i), at};
        }
    }
    open_.push_back({buft, size});
    return {uint32_t(open_.size() - 1), 0};
}

std::vector<std::shared_ptr<DeviceBuffer>> Packer::allocate(BufferPool & pool) const {
    std::vector<std::shared_ptr<DeviceBuffer>> buffers;
    for (const Open & open : open_) {
        buffers.push_back(pool.acquire(open.buft, open.size));
    }
    return buffers;
}

std::unique_ptr<Chunk> take_chunk(const KvLayout & layout, SeqId seq, const Located & located, BufferPool & pool,
                                  bool host, CopyList & copies) {
    auto chunk = std::make_unique<Chunk>();
    chunk->rows = located.rows;
    chunk->host = host;
    chunk->n_rows = uint32_t(located.rows.size());
    if (layout.has_ext) {
        const llama_kv_cells & cells = layout.cache->get_cells(seq);
        for (const Segment & from : located.from) {
            for (uint32_t i = from.row; i < from.row + from.n; ++i) {
                chunk->ext.push_back(from.chunk ? from.chunk->ext[i] : cells.ext_get(i));
            }
        }
    }
    const std::vector<RowTensor> & tensors = layout.tensors(seq);
    Packer packer;
    for (const RowTensor & tensor : tensors) {
        chunk->places.push_back(packer.place(storage_for(tensor.tensor, host), tensor.row_bytes() * chunk->n_rows));
    }
    chunk->buffers = packer.allocate(pool);
    // What lies in one place, the cache or a chunk, is one operation for each tensor.
    struct Source {
        const Chunk * chunk;
        uint32_t row; // in the new chunk
        std::shared_ptr<RowRuns> rows;
    };
    std::vector<Source> sources;
    uint32_t row = 0;
    for (const Segment & from : located.from) {
        if (sources.empty() || sources.back().chunk != from.chunk.get()) {
            sources.push_back({from.chunk.get(), row, std::make_shared<RowRuns>()});
        }
        sources.back().rows->add(from.row, from.n);
        row += from.n;
    }
    if (row != chunk->n_rows) { // the copies would write over what is not the chunk's
        throw std::logic_error(text("a checkpoint of ", chunk->n_rows, " rows was to be copied from ", row));
    }
    for (size_t t = 0; t < tensors.size(); ++t) {
        const RowTensor & tensor = tensors[t];
        for (const Source & from : sources) {
            copies.add(RowCopy{tensor.piece, tensor.n_pieces,
                               from.chunk ? from.chunk->place(tensor, t) : tensor.place(),
                               chunk->place(tensor, t, from.row), from.rows, true});
        }
    }
    return chunk;
}

ggml_backend_buffer_type_t storage_for(const ggml_tensor * tensor, bool host) {
    ggml_backend_buffer_type_t buft = ggml_backend_buffer_get_type(tensor->buffer);
    if (!host) {
        return buft;
    }
    // Pinned, where the device has such memory: copies to it need not go by way of the driver's own.
    ggml_backend_dev_t device = ggml_backend_buft_is_host(buft) ? nullptr : ggml_backend_buft_get_device(buft);
    ggml_backend_buffer_type_t pinned = device ? ggml_backend_dev_host_buffer_type(device) : nullptr;
    return pinned ? pinned : ggml_backend_cpu_buffer_type();
}

} // namespace lloyal
