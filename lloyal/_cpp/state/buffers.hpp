// Memory for checkpoints: buffers on a device or a host, and the pool that keeps them for the next save.
#pragma once

#include "ggml-backend.h"
#include "ggml.h"

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

namespace lloyal {

// A back end could not allocate.
struct DeviceMemoryError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// What a back end allocates at once: one buffer of ours, or many small ones.
class Slab {
  public:
    Slab(ggml_backend_buffer_type_t buft, size_t size);
    Slab(const Slab &) = delete;
    ~Slab();

    ggml_backend_buffer_type_t buft() const { return buft_; }
    size_t size() const { return size_; }
    size_t used() const { return used_; }
    ggml_backend_buffer_t buffer() const { return buffer_; }
    // The smallest free piece that holds `size` bytes; 0 if there is none.
    size_t best_fit(size_t size) const;
    size_t take(size_t size); // its offset
    void give_back(size_t offset, size_t size);

  private:
    ggml_backend_buffer_type_t buft_;
    size_t size_;
    size_t used_ = 0;
    ggml_backend_buffer_t buffer_;
    std::map<size_t, size_t> free_; // offset -> size; neighbours are merged
};

// A part of a slab, seen as a tensor of bytes so that every type copies exactly.
class DeviceBuffer {
  public:
    DeviceBuffer(std::shared_ptr<Slab> slab, size_t size);
    DeviceBuffer(const DeviceBuffer &) = delete;
    ~DeviceBuffer() { slab_->give_back(offset_, size_); }

    ggml_backend_buffer_type_t buft() const { return slab_->buft(); }
    size_t size() const { return size_; }
    ggml_tensor * tensor() { return &tensor_; }
    const std::shared_ptr<Slab> & slab() const { return slab_; }

  private:
    std::shared_ptr<Slab> slab_;
    size_t size_;
    size_t offset_;
    ggml_tensor tensor_{};
};

// Keeps freed memory for the next save, so that a save in a loop does not allocate. What is idle is never more than the
// largest save so far took, and one slab a device; everything goes back when asked or when an allocation fails.
//
// Small buffers on a device share slabs: allocating there, and freeing even more, waits for all that it computes. A host
// allocator does the same by itself, and a large buffer is worth a call of its own.
class BufferPool : public std::enable_shared_from_this<BufferPool> {
  public:
    std::shared_ptr<DeviceBuffer> acquire(ggml_backend_buffer_type_t buft, size_t size);
    // What the save that begins is going to acquire; `exact`: not a byte more than it asks for, as a budget counts.
    void expect(size_t bytes, bool exact);
    void trim();
    size_t idle_bytes() const;
    // Bytes in use per buffer type.
    std::map<ggml_backend_buffer_type_t, size_t> live_bytes() const;

    // Bytes of every device that are left to the computation, which ends the process where it cannot get them; negative:
    // a fiftieth of the device, 256 MiB at least.
    int64_t reserve() const;
    void set_reserve(int64_t bytes);

  private:
    std::shared_ptr<Slab> find(ggml_backend_buffer_type_t buft, size_t size);
    std::shared_ptr<Slab> allocate(ggml_backend_buffer_type_t buft, size_t size, size_t at_least);
    void give_back(DeviceBuffer * buffer);

    mutable std::mutex mutex_;
    std::vector<std::shared_ptr<Slab>> whole_;  // idle slabs that held one buffer, in order of age
    std::vector<std::shared_ptr<Slab>> shared_; // slabs of many, in use or not
    size_t largest_ = 0;                        // save
    bool exact_ = false;
    int64_t reserve_ = -1;
    std::map<ggml_backend_buffer_type_t, size_t> live_;
};

} // namespace lloyal
