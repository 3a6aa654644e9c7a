// llama_io implementations of ours: where llama.cpp's memory writes its state to, and reads it from.
#pragma once

#include "llama-io.h"

#include "ggml-backend.h"
#include "ggml.h"

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace lloyal {

// `size` bytes of a cache tensor from `offset`.
struct Slice {
    ggml_tensor * tensor;
    size_t offset;
    size_t size;
};

// Collects what a state consists of: metadata bytes, and the tensor slices without copying them.
class Collector : public llama_io_write_i {
  public:
    std::vector<uint8_t> meta;
    std::vector<Slice> slices;

    void write(const void * src, size_t size) override {
        const auto * bytes = static_cast<const uint8_t *>(src);
        meta.insert(meta.end(), bytes, bytes + size);
    }
    void write_tensor(ggml_tensor * tensor, size_t offset, size_t size) override {
        if (size > 0) {
            slices.push_back({tensor, offset, size});
            n_tensor_bytes_ += size;
        }
    }
    size_t n_bytes() override { return meta.size() + n_tensor_bytes_; }
    size_t n_tensor_bytes() const { return n_tensor_bytes_; }

  private:
    size_t n_tensor_bytes_ = 0;
};

// Reads a state whose tensor data lies in the stream, from memory. The tensors are set by `apply`, after state_read has
// accepted everything, so that a refused state writes none.
class HostReader : public llama_io_read_i {
  public:
    HostReader(const uint8_t * data, size_t size) : data_(data), size_(size) {}

    void read(void * dst, size_t size) override { std::memcpy(dst, take(size), size); }
    void read_tensor(ggml_tensor * tensor, size_t offset, size_t size) override {
        const uint8_t * from = take(size);
        targets_.push_back({{tensor, offset, size}, from});
    }
    void discard() override { targets_.clear(); }
    size_t n_bytes() override { return pos_; }
    size_t n_left() const { return size_ - pos_; }

    void apply() {
        for (const Target & target : targets_) {
            ggml_backend_tensor_set(target.slice.tensor, target.from, target.slice.offset, target.slice.size);
        }
        targets_.clear();
    }

  private:
    struct Target {
        Slice slice;
        const uint8_t * from;
    };

    const uint8_t * take(size_t size) {
        if (size > size_ - pos_) {
            throw std::runtime_error("the state ends early");
        }
        const uint8_t * at = data_ + pos_;
        pos_ += size;
        return at;
    }

    const uint8_t * data_;
    size_t size_;
    size_t pos_ = 0;
    std::vector<Target> targets_;
};

// A made-up state stream: bytes to read, and the tensor slices llama.cpp asks to have filled.
class ScriptedReader : public llama_io_read_i {
  public:
    std::vector<uint8_t> script;
    std::vector<Slice> targets;

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

    template <typename T> void put(const T & value) {
        const auto * bytes = reinterpret_cast<const uint8_t *>(&value);
        script.insert(script.end(), bytes, bytes + sizeof(T));
    }

  private:
    size_t pos_ = 0;
};

} // namespace lloyal
