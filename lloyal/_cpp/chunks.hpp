// What checkpoints are made of. The rows of an attention cache live in chunks, shared by every checkpoint that holds the
// same content; a recurrent state, or a memory we do not take apart, is a blob of its own.
#pragma once

#include "copy.hpp"
#include "provenance.hpp"

#include "llama-kv-cells.h"

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

class llama_kv_cache;

namespace lloyal {

// One K or V tensor of a cache: how to find the bytes of a cell in it.
struct RowTensor {
    ggml_tensor * tensor;
    size_t        piece;  // bytes of one piece of a cell: a whole row, or one element where V is transposed
    uint32_t      n_pieces; // pieces per cell: 1, or the width of V where it is transposed
    size_t        stride; // bytes from one piece of a cell to its next

    size_t row_bytes() const { return piece * n_pieces; }
    size_t offset(uint32_t cell, uint32_t k) const { return k * stride + cell * piece; }
};

// The tensors of one cache as its state is written, found by writing out one cell of an empty cache.
struct KvLayout {
    llama_kv_cache *                    cache = nullptr;
    uint32_t                            n_stream = 1;
    bool                                has_ext = false;
    std::vector<uint8_t>                header;  // what follows the cell table: layer count, types, row sizes
    std::vector<std::vector<RowTensor>> streams; // by stream: the tensors differ, their shapes do not

    explicit KvLayout(llama_kv_cache * cache);
    const std::vector<RowTensor> & tensors(SeqId seq) const;
    size_t row_bytes() const;
    bool   fits(const KvLayout & other) const;
};

// Rows of one cache, copied out. Immutable; the content of row i is `rows` at its i-th position.
struct Chunk {
    Runs     rows;
    uint32_t n_rows = 0;
    bool     host   = false;
    std::vector<llama_kv_cell_ext> ext; // M-RoPE coordinates, where the cache keeps them

    struct Place {
        uint32_t buffer;
        size_t   offset;
    };
    std::vector<Place>                         places; // by tensor of the layout
    std::vector<std::shared_ptr<DeviceBuffer>> buffers;

    size_t bytes() const;
    // Where piece `k` of row `row` of tensor `t` lies.
    size_t offset(const RowTensor & tensor, size_t t, uint32_t row, uint32_t k) const {
        return places[t].offset + (size_t(k) * n_rows + row) * tensor.piece;
    }
};

// `n` rows of a chunk from `row`, at the positions from `pos` on without a hole.
struct Segment {
    std::shared_ptr<const Chunk> chunk;
    uint32_t row;
    uint32_t n;
    Pos      pos; // position of the first
};

// Finds live chunks by content id.
class ChunkIndex : public std::enable_shared_from_this<ChunkIndex> {
  public:
    // Takes ownership; the chunk leaves the index when its last user goes.
    std::shared_ptr<const Chunk> add(std::unique_ptr<Chunk> chunk);
    // Split `rows` into segments that live chunks hold and the rest.
    void find(const Runs & rows, std::vector<Segment> & held, Runs & missing) const;
    size_t size() const;

  private:
    struct Entry {
        uint64_t                   last; // id after the last
        uint32_t                   row;
        std::weak_ptr<const Chunk> chunk;
        const Chunk *              raw;
    };
    void remove(const Chunk * chunk);

    mutable std::mutex                               mutex_;
    std::map<std::pair<uint64_t, uint64_t>, Entry>   entries_; // by (epoch, first id)
};

// Tensors of a state that is always copied whole, in the order llama.cpp writes them.
struct Blob {
    std::vector<uint8_t> meta;
    struct Piece {
        uint32_t buffer;
        size_t   offset;
        size_t   size;
    };
    std::vector<Piece>                         pieces;
    std::vector<std::shared_ptr<DeviceBuffer>> buffers;

    size_t bytes() const;
};

// Puts pieces into as few buffers per buffer type as its maximum size allows.
class Packer {
  public:
    // Returns (buffer index, offset); call `allocate` when all are placed.
    Chunk::Place place(ggml_backend_buffer_type_t buft, size_t size);
    std::vector<std::shared_ptr<DeviceBuffer>> allocate(BufferPool & pool) const;
    size_t n_bytes() const;

  private:
    struct Open {
        ggml_backend_buffer_type_t buft;
        size_t                     size;
    };
    std::vector<Open> open_;
};

// The buffer type a tensor's copy lives in: beside it, or in host memory.
ggml_backend_buffer_type_t storage_for(const ggml_tensor * tensor, bool host);

} // namespace lloyal
