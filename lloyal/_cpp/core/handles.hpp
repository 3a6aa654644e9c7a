// Owning handles. A handle is a shared_ptr to a box; the box holds the native object and the handles it depends on, so
// a parent outlives its children whatever order Python closes them in. Closing drops one reference, nothing more.
#pragma once

#include "core/log.hpp"
#include "core/status.hpp"
#include "memory/memory.hpp"
#include "memory/provenance.hpp"
#include "state/raw_state.hpp"

#include "llama.h"

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace lloyal {

// Live native objects by kind; every test checks that they return to where they were.
struct LiveCounts {
    std::atomic<int64_t> models{0};
    std::atomic<int64_t> contexts{0};
    std::atomic<int64_t> samplers{0};
    std::atomic<int64_t> adapters{0};
    std::atomic<int64_t> checkpoints{0};
    std::atomic<int64_t> branches{0};
    std::atomic<int64_t> connections{0};
};
LiveCounts & live_counts();

// Which tensors go to the memory of which device: patterns, and the null-terminated list llama.cpp takes.
struct TensorPlaces {
    std::vector<std::string> patterns;
    std::vector<llama_model_tensor_buft_override> list;
};

struct ModelBox {
    llama_model * ptr;
    // What llama_model_params only borrows: it must live as long as the model.
    std::vector<ggml_backend_dev_t> devices;
    std::vector<float> tensor_split;
    TensorPlaces places;
    // Of the file it came from: weights on a device cannot always be read back as they were. Empty without weights.
    std::vector<uint8_t> sample;
    bool extra_bufts = false; // whether weights may be repacked, as it was decided
    // Connections to the servers its devices are on.
    std::vector<std::shared_ptr<void>> keeps;
    // llama.cpp walks a model's list of adapters whenever a context plans its memory: shared for that, exclusive to
    // load or free an adapter.
    std::shared_mutex adapters_mutex;

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

struct AdapterBox;
struct SamplerBox; // sampler.hpp
using SamplerHandle = std::shared_ptr<SamplerBox>;
class CheckpointStore;

// Who holds a sequence id: nobody, a tenant of kv.Tenancy, or a checkpoint that keeps its cells there.
enum class Lease : uint8_t { none = 0, tenant, checkpoint };

// Whether somebody is inside a context, and was asked to stop: one value, so that a request for one call never meets another.
// Settling, a thread frees what was given up: others wait that moment instead of hearing Busy.
enum class Use : uint8_t { idle = 0, busy, stopping, settling };

// Which hidden rows of a token are kept beside its logits (decode/hidden.hpp): the inputs of layers, one after another.
struct HiddenSources {
    std::vector<int32_t> layers; // the number of layers stands for what a prediction head gets
    size_t width = 0;            // values of a token
    Pos most = 0;                // tokens of a branch whose rows wait to be asked for
};

struct ContextBox {
    ModelHandle model;
    // Whatever else the native context points into: a parent context.
    std::vector<std::shared_ptr<void>> keeps;
    // The LoRA adapters that are set, and their scales.
    std::vector<std::pair<std::shared_ptr<AdapterBox>, float>> adapters;
    bool control_vector_failed = false;
    std::map<SeqId, SamplerHandle> samplers; // the chains its back end runs, by sequence
    llama_context * ptr = nullptr;
    llama_memory_t memory = nullptr; // null for encoder-only models

    const uint64_t id; // random; names this context in device blobs and content ids
    std::atomic<Use> use{Use::idle};
    PollFn poll = nullptr;
    int64_t poll_after_us = 0;

    uint64_t generation = 0;           // counts everything that changes or invalidates the output buffers
    std::vector<int32_t> output_index; // batch index -> output of the last decode, -1 without one
    int32_t n_outputs = 0;
    bool graph_has_logits = true;  // some models have none, or none where there are embeddings
    bool has_logits = true;        // of the last batch
    std::vector<SeqId> output_seq; // output -> its sequence; only kept while there are `samplers`

    std::shared_ptr<const HiddenSources> hidden; // of what branches read; null: nothing is kept
    std::vector<float> hidden_rows;              // of the last batch, in its order; empty: not known
    bool in_slices = false;                      // the last batch was: hidden rows are those of the last slice

    std::vector<bool> encoded; // by sequence: the last encode() had tokens of it (encoder-decoder models)
    uint64_t encoding = 0;     // names what the last encode() left behind: every later row depends on it

    MemoryMap map;
    Provenance provenance;
    RawDeviceStates raw_states;

    std::vector<Lease> leases; // by sequence
    // Leases given up while somebody was inside: whoever enters next empties their sequences.
    mutable std::mutex lease_mutex;
    std::vector<SeqId> deferred_leases;
    std::atomic<bool> has_deferred_leases{false};

    std::shared_ptr<CheckpointStore> store; // what its checkpoints share

    ContextBox(ModelHandle model, llama_context * context, const llama_context_params & params,
               const MemoryMap * parent);
    ContextBox(const ContextBox &) = delete;
    ~ContextBox();

    void drop_outputs() {
        ++generation;
        output_index.clear();
        output_seq.clear();
        n_outputs = 0;
        hidden_rows.clear();
        in_slices = false;
    }
};
using ContextHandle = std::shared_ptr<ContextBox>;

Status model_load(const std::vector<std::string> & paths, llama_model_params params,
                  const std::vector<ggml_backend_dev_t> & devices, const std::vector<float> & tensor_split,
                  const std::vector<std::string> & patterns, const std::vector<ggml_backend_dev_t> & places,
                  bool choose_extra_bufts, ModelHandle & out) noexcept;
Status model_save(ModelBox & model, const std::string & path) noexcept;
// `parent`, or null, is the context whose results or memory the new one uses.
Status context_create(ModelHandle model, llama_context_params params, ContextHandle parent, PollFn poll,
                      ContextHandle & out) noexcept;

// After a change that makes llama.cpp plan its memory again: do so now instead of inside the next decode. Throws.
void context_reserve(ContextBox & box);
Status synchronize(ContextBox & box) noexcept;

void lease_settle(ContextBox & box) noexcept;

// One caller at a time: false if another thread is inside.
inline bool context_enter(ContextBox & box) {
    log_mark(); // what llama.cpp says from here on is about this call
    Use expected = Use::idle;
    while (!box.use.compare_exchange_strong(expected, Use::busy, std::memory_order_acquire)) {
        if (expected != Use::settling) {
            return false;
        }
        std::this_thread::yield();
        expected = Use::idle;
    }
    if (box.has_deferred_leases.load(std::memory_order_acquire)) {
        lease_settle(box);
    }
    return true;
}
inline void context_leave(ContextBox & box) {
    box.use.store(Use::idle, std::memory_order_release);
}

// Stop what runs in the context now, from any thread.
inline void context_request_abort(ContextBox & box) {
    Use expected = Use::busy;
    box.use.compare_exchange_strong(expected, Use::stopping, std::memory_order_relaxed);
}

} // namespace lloyal
