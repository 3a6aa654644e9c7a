// Moving bytes between cache tensors and buffers of ours: device to device, queued where the back end can queue.
#pragma once

#include "io.hpp"

#include "ggml-backend.h"
#include "ggml.h"

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

struct llama_context;

namespace lloyal {

// A back end could not allocate.
struct DeviceMemoryError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// One allocation on a device, seen as a tensor of bytes so that every type copies exactly.
class DeviceBuffer {
  public:
    DeviceBuffer(ggml_backend_buffer_type_t buft, size_t size);
    DeviceBuffer(const DeviceBuffer &) = delete;
    ~DeviceBuffer();

    ggml_backend_buffer_type_t buft() const { return buft_; }
    size_t size() const { return size_; }
    ggml_tensor * tensor() { return &tensor_; }

  private:
    ggml_backend_buffer_type_t buft_;
    size_t size_;
    ggml_backend_buffer_t buffer_;
    ggml_tensor tensor_{};
};

// Keeps freed buffers for the next save, so that a save in a loop does not allocate. It never holds more than the
// largest save so far took, and gives everything back when asked or when an allocation fails.
class BufferPool : public std::enable_shared_from_this<BufferPool> {
  public:
    std::shared_ptr<DeviceBuffer> acquire(ggml_backend_buffer_type_t buft, size_t size);
    // What the save that begins is going to acquire; `exact`: not a byte more than it asks for, as a budget counts.
    void expect(size_t bytes, bool exact);
    void trim();
    size_t idle_bytes() const;
    // Bytes in use per buffer type.
    std::map<ggml_backend_buffer_type_t, size_t> live_bytes() const;

  private:
    void give_back(DeviceBuffer * buffer);

    mutable std::mutex mutex_;
    std::vector<std::unique_ptr<DeviceBuffer>> idle_;
    size_t idle_bytes_ = 0;
    size_t largest_ = 0; // save
    bool exact_ = false;
    std::map<ggml_backend_buffer_type_t, size_t> live_;
};

struct Copy {
    ggml_tensor * src;
    size_t src_offset;
    ggml_tensor * dst;
    size_t dst_offset;
    size_t size;
};

// A list of copies that merges neighbours.
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
    void reserve(size_t n) { copies_.reserve(n); }
    size_t size() const { return copies_.size(); }

    // Queue every copy on the back ends of `context` and wait once.
    void run(llama_context & context) const;

  private:
    std::vector<Copy> copies_;
};

// Fault injection for tests: the n-th allocation or copy from now fails (0: the next); negative: none.
void fault_arm(int64_t n);
int64_t fault_remaining();

} // namespace lloyal
