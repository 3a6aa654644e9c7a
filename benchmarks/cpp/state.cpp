// What a C++ program would do for a checkpoint: llama.cpp's own ON_DEVICE state, seq_cp, or a plain memcpy. And the
// copies of a checkpoint of ours by themselves.
#include "twin.hpp"

#include "state/copy.hpp"
#include "memory/io.hpp"

#include "llama-memory.h"

#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

namespace {

llama_memory_t memory(Twin * twin) {
    return llama_get_memory(twin->ctx);
}

} // namespace

// All of the memory, from and to a state in host memory (llama_state_set_data, llama_state_seq_get_data).
TWIN_API size_t twin_set_state(Twin * twin, const uint8_t * data, size_t size) {
    const Quiet quiet;
    return llama_state_set_data(twin->ctx, data, size);
}

TWIN_API size_t twin_seq_state_size(Twin * twin, int32_t seq) {
    return llama_state_seq_get_size(twin->ctx, seq);
}

TWIN_API size_t twin_seq_state(Twin * twin, int32_t seq, uint8_t * out, size_t size) {
    return llama_state_seq_get_data(twin->ctx, out, size, seq);
}

// The raw flag: nanoseconds of one save or restore, negative if it failed. `blob` holds the host part; `size` bytes of
// it are used. Sizing and saving are timed together: a caller needs both.
TWIN_API int64_t twin_save(Twin * twin, int32_t seq, uint32_t flags, uint8_t * blob, size_t capacity, size_t * size) {
    const Quiet quiet;
    const Clock clock;
    const size_t need = llama_state_seq_get_size_ext(twin->ctx, seq, flags);
    *size = need <= capacity ? llama_state_seq_get_data_ext(twin->ctx, blob, need, seq, flags) : 0;
    llama_synchronize(twin->ctx);
    return *size > 0 ? clock.ns() : -1;
}

TWIN_API int64_t twin_restore(Twin * twin, int32_t seq, uint32_t flags, const uint8_t * blob, size_t size) {
    const Quiet quiet;
    const Clock clock;
    const size_t read = llama_state_seq_set_data_ext(twin->ctx, blob, size, seq, flags);
    llama_synchronize(twin->ctx);
    return read > 0 ? clock.ns() : -1;
}

TWIN_API int64_t twin_seq_cp(Twin * twin, int32_t from, int32_t to) {
    const Clock clock;
    llama_memory_seq_cp(memory(twin), from, to, -1, -1);
    return clock.ns();
}

TWIN_API int64_t twin_seq_rm(Twin * twin, int32_t seq) {
    const Clock clock;
    llama_memory_seq_rm(memory(twin), seq, -1, -1);
    return clock.ns();
}

// Slices of one save of `seq`: its tensors times the runs of cells it lies in.
TWIN_API size_t twin_slices(Twin * twin, int32_t seq) {
    lloyal::Collector state;
    memory(twin)->state_write(state, seq, 0);
    return state.slices.size();
}

// Copies of `size` bytes between two blocks, both in memory already.
class Blocks {
  public:
    explicit Blocks(size_t size) : from_(size, 1), to_(size, 2) {}
    int64_t copy() {
        const Clock clock;
        std::memcpy(to_.data(), from_.data(), from_.size());
        return clock.ns();
    }
    bool equal() const { return from_ == to_; }

  private:
    std::vector<uint8_t> from_, to_;
};

TWIN_API Blocks * blocks_new(size_t size) {
    return new Blocks(size);
}
TWIN_API void blocks_free(Blocks * blocks) {
    delete blocks;
}
TWIN_API int64_t blocks_copy(Blocks * blocks) {
    return blocks->copy();
}
TWIN_API bool blocks_equal(Blocks * blocks) {
    return blocks->equal();
}

// The copies of one full save by our copy list, planned beforehand: tensors of the cache into one buffer each type.
class Copies {
  public:
    Copies(Twin * twin, int32_t seq) : ctx_(twin->ctx) {
        lloyal::Collector state;
        memory(twin)->state_write(state, seq, 0);
        const size_t n = state.n_tensor_bytes();
        buffer_ = pool_->acquire(ggml_backend_buffer_get_type(state.slices.at(0).tensor->buffer), n);
        size_t at = 0;
        for (const lloyal::Slice & slice : state.slices) {
            list_.add({slice.tensor, slice.offset, buffer_->tensor(), at, slice.size});
            at += slice.size;
        }
    }
    int64_t run() {
        const Clock clock;
        list_.run(*ctx_, *pool_);
        return clock.ns();
    }

  private:
    llama_context * ctx_;
    std::shared_ptr<lloyal::BufferPool> pool_ = std::make_shared<lloyal::BufferPool>();
    std::shared_ptr<lloyal::DeviceBuffer> buffer_;
    lloyal::CopyList list_;
};

TWIN_API Copies * copies_new(Twin * twin, int32_t seq) {
    return new Copies(twin, seq);
}
TWIN_API void copies_free(Copies * copies) {
    delete copies;
}
TWIN_API int64_t copies_run(Copies * copies) {
    return copies->run();
}
