// Owning handles. A handle is a shared_ptr to a box; the box holds the native object and the handles it depends on, so
// a parent outlives its children whatever order Python closes them in. Closing drops one reference, nothing more.
#pragma once

#include "memory.hpp"
#include "provenance.hpp"
#include "raw_state.hpp"
#include "status.hpp"

#include "llama.h"

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace lloyal {

// Live native objects by kind; every test checks that they return to where they were.
struct LiveCounts {
    std::atomic<int64_t> models{0};
    std::atomic<int64_t> contexts{0};
    std::atomic<int64_t> samplers{0};
    std::atomic<int64_t> adapters{0};
    std::atomic<int64_t> checkpoints{0};
};
LiveCounts & live_counts();

struct ModelBox {
    llama_model * ptr;
    // What llama_model_params only borrows: it must live as long as the model.
    std::vector<ggml_backend_dev_t> devices;
    std::vector<float>              tensor_split;

    explicit ModelBox(llama_model * model) : ptr(model) { ++live_counts().models; }
    ModelBox(const ModelBox &) = delete;
    ~ModelBox() {
        llama_model_free(ptr);
        --live_counts().models;
    }
};
using ModelHandle = std::shared_ptr<ModelBox>;

// Asked from the abort callback, on the thread that called decode: true means stop. Set by Python to look for signals.
using PollFn = bool (*)();

struct ContextBox {
    ModelHandle     model;
    // Whatever else the native context points into: samplers attached to it, a parent context, adapters.
    std::vector<std::shared_ptr<void>> keeps;
    llama_context * ptr = nullptr;
    llama_memory_t  memory = nullptr; // null for encoder-only models

    const uint64_t    id; // random; names this context in device blobs and content ids
    std::atomic<bool> busy{false};
    std::atomic<bool> abort_requested{false};
    PollFn            poll = nullptr;
    int64_t           poll_after_us = 0;

    uint64_t             generation = 0;  // counts everything that changes or invalidates the output buffers
    std::vector<int32_t> output_row;      // batch index -> output row of the last decode, -1 without output
    int32_t              n_outputs = 0;
    bool                 outputs_are_pooled = false;

    MemoryMap       map;
    Provenance      provenance;
    RawDeviceStates raw_states;

    ContextBox(ModelHandle parent, llama_context * context);
    ContextBox(const ContextBox &) = delete;
    ~ContextBox();
};
using ContextHandle = std::shared_ptr<ContextBox>;

struct SamplerBox {
    llama_sampler * ptr;
    ModelHandle     model; // grammar, DRY and infill samplers read the vocabulary

    SamplerBox(llama_sampler * sampler, ModelHandle parent) : ptr(sampler), model(std::move(parent)) {
        ++live_counts().samplers;
    }
    SamplerBox(const SamplerBox &) = delete;
    ~SamplerBox() {
        llama_sampler_free(ptr);
        --live_counts().samplers;
    }
};
using SamplerHandle = std::shared_ptr<SamplerBox>;

Status model_load(const std::vector<std::string> & paths, llama_model_params params,
                  const std::vector<ggml_backend_dev_t> & devices, const std::vector<float> & tensor_split,
                  ModelHandle & out) noexcept;
Status context_create(ModelHandle model, llama_context_params params, PollFn poll, ContextHandle & out) noexcept;

// One caller at a time: false if another thread is inside.
inline bool context_enter(ContextBox & box) {
    return !box.busy.exchange(true, std::memory_order_acquire);
}
inline void context_leave(ContextBox & box) {
    box.busy.store(false, std::memory_order_release);
}

// Stop what runs in the context now, from any thread.
inline void context_request_abort(ContextBox & box) {
    box.abort_requested.store(true, std::memory_order_relaxed);
}

} // namespace lloyal
