// What checkpoints are made of. The rows of an attention cache live in chunks, shared by every checkpoint that holds the
// same content; a recurrent state, or a memory we do not take apart, is a blob of its own.
#pragma once

#include "memory/provenance.hpp"
#include "state/copy.hpp"
#include "state/layout.hpp"

#include "llama-kv-cells.h"

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

class llama_kv_cache;

namespace lloyal {

class SegmentList;

// Rows of one cache, copied out. Immutable; the content of row i is `rows` at its i-th position.
struct Chunk {
    Runs rows;
    uint32_t n_rows = 0;
    bool host = false;
    std::vector<llama_kv_cell_ext> ext; // M-RoPE coordinates, where the cache keeps them

    struct Place {
        uint32_t buffer;
        size_t offset;
    };
    std::vector<Place> places; // by tensor of the layout
    std::vector<std::shared_ptr<DeviceBuffer>> buffers;
    mutable std::weak_ptr<const SegmentList> home; // a list that ends in it; for whoever is in the context

    size_t meta_bytes() const;
    // Where the rows from `row` on of tensor `t` lie.
    RowPlace place(const RowTensor & tensor, size_t t, uint32_t row = 0) const {
        return {buffers[places[t].buffer]->tensor(), places[t].offset + row * tensor.piece, n_rows * tensor.piece,
                n_rows - row};
    }
};

// `n` rows of a chunk from `row`, at the positions from `pos` on without a hole.
struct Segment {
    std::shared_ptr<const Chunk> chunk; // null: `row` is a cell of the cache
    uint32_t row;
    uint32_t n;
    Pos pos; // position of the first

    bool operator==(const Segment &) const = default;
    // True if `next` lies right behind this one and takes the next positions.
    bool continues(const Segment & next) const {
        return chunk == next.chunk && row + n == next.row && pos + Pos(n) == next.pos;
    }
};

// Append, merging with the last.
void append(std::vector<Segment> & segments, Segment segment);
// What lies at the positions [begin, end).
std::vector<Segment> slice(const std::vector<Segment> & segments, Pos begin, Pos end);

// The segments of a checkpoint, in order of position: the last one, and the list before it. Immutable, so that lists which
// begin alike share that: checkpoints along one sequence cost what each adds. (A window's lists begin differently each.)
class SegmentList {
  public:
    // For whoever is in the context. Null if there are no segments.
    static std::shared_ptr<const SegmentList> make(const std::vector<Segment> & segments);
    SegmentList(std::shared_ptr<const SegmentList> base, Segment last);
    ~SegmentList();

    size_t size() const { return size_; }
    const Segment & last() const { return last_; }
    const std::shared_ptr<const SegmentList> & base() const { return base_; }
    std::vector<Segment> all() const;

  private:
    std::shared_ptr<const SegmentList> base_;
    Segment last_;
    size_t size_;
};

// Rows, and where each lies.
struct Located {
    Runs rows;
    std::vector<Segment> from;
};

// Finds live chunks by content id.
class ChunkIndex : public std::enable_shared_from_this<ChunkIndex> {
  public:
    // Takes ownership; the chunk leaves the index when its last user goes.
    std::shared_ptr<const Chunk> add(std::unique_ptr<Chunk> chunk);
    // Split `rows` into segments that live chunks hold and the rest.
    void find(const Runs & rows, std::vector<Segment> & held, Runs & missing) const;
    // No longer find it; true if it was there.
    bool remove(const Chunk * chunk);

  private:
    struct Entry {
        uint64_t last; // id after the last
        uint32_t row;
        std::weak_ptr<const Chunk> chunk;
        const Chunk * raw;
    };

    mutable std::mutex mutex_;
    std::map<std::pair<uint64_t, uint64_t>, Entry> entries_; // by (epoch, first id)
};

// Tensors of a state that is always copied whole, in the order llama.cpp writes them.
struct Blob {
    std::vector<uint8_t> meta;
    struct Piece {
        uint32_t buffer;
        size_t offset;
        size_t size;
    };
    std::vector<Piece> pieces;
    std::vector<std::shared_ptr<DeviceBuffer>> buffers;

    size_t bytes() const;
    std::vector<Slice> slices() const;
};

// Puts pieces into as few buffers per buffer type as its maximum size allows.
class Packer {
  public:
    // Returns (buffer index, offset); call `allocate` when all are placed.
    Chunk::Place place(ggml_backend_buffer_type_t buft, size_t size);
    std::vector<std::shared_ptr<DeviceBuffer>> allocate(BufferPool & pool) const;

  private:
    struct Open {
        ggml_backend_buffer_type_t buft;
        size_t size;
    };
    std::vector<Open> open_;
};

// Copy rows, wherever each lies, into a new chunk; those in cells are of `seq`.
std::unique_ptr<Chunk> take_chunk(const KvLayout & layout, SeqId seq, const Located & located, BufferPool & pool,
                                  bool host, CopyList & copies);

// Empty a sequence and give it cells for `rows`, the first free ones, as llama.cpp does when it reads a state; false if that is
// better left to llama.cpp. `placed`: which cells.
bool place_rows(const KvLayout & layout, SeqId seq, const Runs & rows, RowRuns & placed);
// Make these empty cells rows of a sequence.
void put_rows(llama_kv_cache & cache, SeqId seq, const std::vector<uint32_t> & cells,
              const std::vector<Pos> & positions);

// Copy the rows of `segments` into these cells.
void scatter_rows(CopyList & copies, const RowRuns & cells, const std::vector<RowTensor> & tensors,
                  const std::vector<Segment> & segments);

// The buffer type a tensor's copy lives in: beside it, or in host memory.
ggml_backend_buffer_type_t storage_for(const ggml_tensor * tensor, bool host);

} // namespace lloyal
