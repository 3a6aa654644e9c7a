// Moving bytes between cache tensors and buffers of ours: device to device, queued where the back end can queue.
#pragma once

#include "memory/io.hpp"
#include "state/buffers.hpp"

#include "ggml-backend.h"
#include "ggml.h"

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

struct llama_context;

namespace lloyal {

struct Copy {
    ggml_tensor * src;
    size_t src_offset;
    ggml_tensor * dst;
    size_t dst_offset;
    size_t size;
};

// Where rows lie: piece `k` of row `r` at offset + k * pitch + r * piece.
struct RowPlace {
    ggml_tensor * tensor;
    size_t offset;
    size_t pitch;
    uint32_t n_rows; // there are, from the offset on
};

// Rows here and there, in the order that is wanted.
struct RowRuns {
    struct Run {
        uint32_t row;
        uint32_t n;
    };
    std::vector<Run> list;
    uint32_t n_rows = 0;

    void add(uint32_t row, uint32_t n) {
        if (!list.empty() && list.back().row + list.back().n == row) {
            list.back().n += n;
        } else {
            list.push_back({row, n});
        }
        n_rows += n;
    }
    template <typename F> void for_each(F && visit) const {
        for (const Run & run : list) {
            for (uint32_t row = run.row; row < run.row + run.n; ++row) {
                visit(row);
            }
        }
    }
};

// The rows of one tensor: gathered from `spread` into `packed`, or scattered the other way.
struct RowCopy {
    size_t piece; // bytes
    uint32_t n_pieces;
    RowPlace spread;
    RowPlace packed; // in order from its first row on
    std::shared_ptr<const RowRuns> rows;
    bool gather;
};

// The back ends of a context that compute in the memory of a device, and what was queued on them.
class Queues {
  public:
    explicit Queues(llama_context & context) : context_(context) {}
    Queues(const Queues &) = delete;
    ~Queues() { wait(); }

    ggml_backend_t of(const ggml_tensor * tensor); // null in host memory, or if nothing computes there
    void queued(ggml_backend_t backend, size_t bytes_from_host = 0);
    void wait();

  private:
    llama_context & context_;
    std::map<ggml_backend_buffer_type_t, ggml_backend_t> by_type_;
    std::map<ggml_backend_t, size_t> queued_; // bytes that a back end may hold a copy of
};

// A list of copies. Those of neighbouring bytes merge; rows that lie in many places take one operation a tensor.
class CopyList {
  public:
    void add(const Copy & copy) {
        if (copy.size == 0) {
            return;
        }
        if (!copies_.empty()) {
            Copy & last = copies_.back();
            if (last.src == copy.src && last.dst == copy.dst && last.src_offset + last.size == copy.src_offset &&
                last.dst_offset + last.size == copy.dst_offset) {
                last.size += copy.size;
                return;
            }
        }
        copies_.push_back(copy);
    }
    void add(const RowCopy & copy);

    // Queue everything on the back ends of `context` and wait once. `pool`: where indices come from.
    void run(llama_context & context, BufferPool & pool) const;

  private:
    std::vector<Copy> copies_;
    std::vector<RowCopy> row_copies_;
};

bool is_host(const ggml_tensor * tensor);
// Where piece `k` of row `row` lies.
inline size_t row_offset(const RowPlace & place, size_t piece, uint32_t row, uint32_t k) {
    return place.offset + k * place.pitch + row * piece;
}

} // namespace lloyal
