#include "handles.hpp"

#include "checkpoint.hpp"

#include "fence.hpp"
#include "fork.hpp"
#include "log.hpp"

#include "llama-arch.h"
#include "llama-context.h"
#include "llama-graph.h"
#include "llama-kv-cells.h"
#include "llama-model.h"

#include "gguf.h"

#include <algorithm>
#include <cmath>
#include <ctime>
#include <memory>
#include <regex>
#include <string_view>

namespace lloyal {
namespace {

constexpr int64_t POLL_INTERVAL_US = 20'000; // Ctrl-C must stop a prefill within 200 ms

// On the scale of llama_time_us. It is read between all graph nodes of every token: a clock of a few milliseconds will do,
// and costs a fraction.
int64_t coarse_time_us() {
#ifdef CLOCK_MONOTONIC_COARSE
    timespec t;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    return int64_t(t.tv_sec) * 1'000'000 + t.tv_nsec / 1000;
#else
    return llama_time_us();
#endif
}

// llama.cpp calls this between graph nodes, on the thread that called decode.
bool on_abort_check(void * data) {
    auto & box = *static_cast<ContextBox *>(data);
    if (box.use.load(std::memory_order_relaxed) == Use::stopping || exiting()) {
        return true;
    }
    if (box.poll) {
        const int64_t now = coarse_time_us();
        if (now >= box.poll_after_us) {
            box.poll_after_us = now + POLL_INTERVAL_US;
            if (box.poll()) {
                context_request_abort(box);
                return true;
            }
        }
    }
    return false;
}

} // namespace

LiveCounts & live_counts() {
    static LiveCounts counts;
    return counts;
}

ContextBox::ContextBox(ModelHandle parent, llama_context * context, const llama_context_params & params)
    : model(std::move(parent)), ptr(context), memory(llama_get_memory(context)), id(random_epoch()),
      map(*model->ptr, *context, memory, params), provenance(id, int32_t(llama_n_seq_max(context))),
      leases(llama_n_seq_max(context), Lease::none) {
    deferred_leases.reserve(leases.size());
    graph_has_logits = ptr->get_gf_res_reserve()->get_logits() != nullptr;
    llama_set_abort_callback(ptr, on_abort_check, this);
    ++live_counts().contexts;
}

ContextBox::~ContextBox() {
    llama_free(ptr);
    --live_counts().contexts;
}

namespace {

// Values of the file's metadata that llama.cpp takes as they are, and aborts or hangs on when it computes.
Status check_hparams(const llama_model & model) {
    const llama_hparams & hparams = model.hparams;
    if (hparams.vocab_only) {
        return {};
    }
    const std::pair<const char *, float> eps[] = {{"layer_norm_epsilon", hparams.f_norm_eps},
                                                  {"layer_norm_rms_epsilon", hparams.f_norm_rms_eps},
                                                  {"group_norm_epsilon", hparams.f_norm_group_eps}};
    for (const auto & [key, value] : eps) {
        if (!std::isfinite(value) || value < 0) {
            return Status(Code::load_failed, text("the metadata's attention.", key, " is ", value,
                                                  ": it must be finite and not "
                                                  "negative"));
        }
    }
    for (uint32_t il = 0; llama_model_rope_type(&model) != LLAMA_ROPE_TYPE_NONE && il < hparams.n_layer(); ++il) {
        const uint32_t n_rot = hparams.n_rot(il);
        const bool rotates = hparams.n_head(il) > 0 && !hparams.is_recr(il);
        if (rotates &&
            (n_rot == 0 || n_rot % 2 != 0 || n_rot > std::max(hparams.n_embd_head_k(il), hparams.n_embd_head_v(il)))) {
            return Status(Code::load_failed,
                          text("the metadata's rope.dimension_count is ", int32_t(n_rot), " in layer ", il,
                               ": it must be even, from 2 to the ", hparams.n_embd_head_k(il), " values of a head"));
        }
    }
    return {};
}

Status place_tensors(const std::vector<std::string> & patterns, const std::vector<ggml_backend_dev_t> & places,
                     TensorPlaces & out) {
    if (patterns.size() >= llama_max_tensor_buft_overrides()) {
        return Status(Code::invalid_argument, text("tensor_buft_overrides has ", patterns.size(),
                                                   " patterns, there may be ", llama_max_tensor_buft_overrides() - 1));
    }
    out.patterns = patterns;
    for (size_t i = 0; i < patterns.size(); ++i) {
        try {
            (void)std::regex(patterns[i]);
        } catch (const std::regex_error & e) {
            return Status(Code::invalid_argument,
                          "tensor_buft_overrides: '" + patterns[i] + "' is no regular expression: " + e.what());
        }
        out.list.push_back({out.patterns[i].c_str(), ggml_backend_dev_buffer_type(places[i])});
    }
    if (!out.list.empty()) {
        out.list.push_back({nullptr, nullptr});
    }
    return {};
}

// A context can only compute on the processor and on the devices of its model.
Status check_places(const llama_model & model, const std::vector<std::string> & patterns,
                    const std::vector<ggml_backend_dev_t> & places) {
    for (size_t i = 0; i < places.size(); ++i) {
        bool known = ggml_backend_dev_type(places[i]) == GGML_BACKEND_DEVICE_TYPE_CPU;
        for (int device = 0; device < llama_model_n_devices(&model); ++device) {
            known = known || llama_model_get_device(&model, device) == places[i];
        }
        if (!known) {
            return Status(Code::invalid_argument, "tensor_buft_overrides: '" + patterns[i] + "' goes to " +
                                                      ggml_backend_dev_name(places[i]) +
                                                      ", which the model does not use: name it in devices= too");
        }
    }
    return {};
}

// Values llama.cpp divides by while it loads.
Status check_divisors(const std::string & path, const llama_model_kv_override * overrides) {
    constexpr std::string_view KEY = ".full_attention_interval";
    const auto zero = [](const std::string & key) {
        return Status(Code::load_failed, key + " is 0: it must be at least 1");
    };
    for (; overrides && overrides->key[0]; ++overrides) {
        const std::string key = overrides->key;
        if (key.ends_with(KEY)) {
            return overrides->tag == LLAMA_KV_OVERRIDE_TYPE_INT && uint32_t(overrides->val_i64) == 0 ? zero(key)
                                                                                                     : Status();
        }
    }
    const std::unique_ptr<gguf_context, void (*)(gguf_context *)> file(
        gguf_init_from_file(path.c_str(), {true, nullptr}), gguf_free);
    for (int64_t i = 0; file && i < gguf_get_n_kv(file.get()); ++i) {
        const std::string key = gguf_get_key(file.get(), i);
        if (key.ends_with(KEY) && gguf_get_kv_type(file.get(), i) == GGUF_TYPE_UINT32 &&
            gguf_get_val_u32(file.get(), i) == 0) {
            return zero(key);
        }
    }
    return {};
}

} // namespace

Status model_load(const std::vector<std::string> & paths, llama_model_params params,
                  const std::vector<ggml_backend_dev_t> & devices, const std::vector<float> & tensor_split,
                  const std::vector<std::string> & patterns, const std::vector<ggml_backend_dev_t> & places,
                  ModelHandle & out) noexcept {
    return fenced(Code::load_failed, [&]() -> Status {
        log_mark();
        std::vector<ggml_backend_dev_t> owned_devices = devices;
        std::vector<float> owned_split = tensor_split;
        if (!owned_devices.empty()) {
            owned_devices.push_back(nullptr);
            params.devices = owned_devices.data();
        }
        TensorPlaces owned_places;
        if (Status bad = place_tensors(patterns, places, owned_places); !bad.ok()) {
            return bad;
        }
        if (!owned_places.list.empty()) {
            params.tensor_buft_overrides = owned_places.list.data();
        }
        if (!owned_split.empty()) {
            owned_split.resize(llama_max_devices(), 0.0f);
            params.tensor_split = owned_split.data();
        }
        if (Status bad = check_divisors(paths[0], params.kv_overrides); !bad.ok()) {
            return bad;
        }
        llama_model * model;
        if (paths.size() == 1) {
            model = llama_model_load_from_file(paths[0].c_str(), params);
        } else {
            std::vector<const char *> names;
            for (const std::string & path : paths) {
                names.push_back(path.c_str());
            }
            model = llama_model_load_from_splits(names.data(), names.size(), params);
        }
        if (!model) {
            return Status(Code::load_failed, "llama.cpp could not load it");
        }
        out = make_handle<ModelBox>(model);
        out->devices = std::move(owned_devices);
        out->tensor_split = std::move(owned_split);
        out->places = std::move(owned_places); // moving keeps the strings where the list points
        Status bad = check_hparams(*model);
        if (bad.ok()) {
            bad = check_places(*model, patterns, places);
        }
        if (!bad.ok()) {
            out.reset();
        }
        return bad;
    });
}

Status model_save(ModelBox & model, const std::string & path) noexcept {
    return fenced(Code::decode_failed, [&]() -> Status {
        log_mark();
        llama_model_save_to_file(model.ptr, path.c_str());
        return {};
    });
}

Status model_tensor_sample(ModelBox & model, std::vector<uint8_t> & out) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        constexpr size_t SAMPLE = 64;
        out.clear();
        for (const auto & [name, tensor] : model.ptr->tensors_by_name) {
            const auto append = [&out](const void * data, size_t size) {
                const auto * bytes = static_cast<const uint8_t *>(data);
                out.insert(out.end(), bytes, bytes + size);
            };
            append(name.data(), name.size() + 1);
            append(&tensor->type, sizeof tensor->type);
            append(tensor->ne, sizeof tensor->ne);
            // From the middle: the first rows of an embedding often belong to unused tokens.
            const size_t size = ggml_nbytes(tensor);
            const size_t n = std::min(SAMPLE, size);
            uint8_t sample[SAMPLE];
            ggml_backend_tensor_get(tensor, sample, (size - n) / 2, n);
            append(sample, n);
        }
        return {};
    });
}

namespace {

// A cache that cannot exist: llama.cpp fills its table of cells before it asks for the rest, and the system kills the
// process for that. Counted is what is certain: the table, and K of the layers that keep every row.
Status check_memory(const llama_model & model, const llama_context_params & params, uint32_t n_ctx) {
    constexpr uint64_t CELL = sizeof(llama_pos) * 2 + sizeof(llama_kv_cell_ext) + sizeof(llama_kv_cells::seq_set_t);
    uint64_t row = 0;
    for (uint32_t il = 0; il < model.hparams.n_layer(); ++il) {
        if (model.hparams.has_kv(il) && !model.hparams.is_recr(il) && !model.hparams.is_swa(il)) {
            row += uint64_t(model.hparams.n_embd_k_gqa(il)) * ggml_type_size(params.type_k) /
                   ggml_blck_size(params.type_k);
        }
    }
    const uint64_t need = row > 0 ? n_ctx * (row + CELL) : 0;
    uint64_t have = 0;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        size_t free = 0;
        size_t total = 0;
        ggml_backend_dev_memory(ggml_backend_dev_get(i), &free, &total);
        have += total;
    }
    if (need > have) {
        return Status(Code::invalid_argument, text("n_ctx=", n_ctx, " takes at least ", need >> 20,
                                                   " MiB of cache, all "
                                                   "devices together have ",
                                                   have >> 20, " MiB"));
    }
    return {};
}

// Sizes that llama.cpp asserts on, after it has cut them to each other.
Status fit_sizes(const llama_model & model, llama_context_params & params) {
    const uint32_t n_ctx = params.n_ctx ? params.n_ctx : model.hparams.n_ctx_train;
    const bool causal = params.attention_type == LLAMA_ATTENTION_TYPE_UNSPECIFIED
                            ? model.hparams.causal_attn
                            : params.attention_type == LLAMA_ATTENTION_TYPE_CAUSAL;
    const uint32_t n_batch = causal ? std::min(n_ctx, params.n_batch) : params.n_batch;
    const uint32_t n_ubatch = std::min(n_batch, params.n_ubatch ? params.n_ubatch : n_batch);
    if (llama_model_has_encoder(&model)) {
        if (n_batch < params.n_seq_max) {
            return Status(Code::invalid_argument, text("n_batch=", n_batch, " must be at least n_seq_max=",
                                                       params.n_seq_max, " for a model with an encoder"));
        }
    } else if (params.n_outputs_max != 0 && params.n_outputs_max < params.n_seq_max) {
        return Status(Code::invalid_argument, text("n_outputs_max=", params.n_outputs_max,
                                                   " must be at least n_seq_max=", params.n_seq_max, ", or 0"));
    } else if (params.n_outputs_max == 0) {
        // llama.cpp takes n_batch, and wants room for one output of every sequence.
        params.n_outputs_max = std::max(n_batch, params.n_seq_max);
    }
    if (params.n_rs_seq > 0 && llm_arch_supports_rs_rollback(model.arch) && n_ubatch <= params.n_rs_seq + 1) {
        return Status(Code::invalid_argument, text("n_rs_seq=", params.n_rs_seq,
                                                   " needs micro-batches of more than n_rs_seq + 1 tokens: n_ctx, "
                                                   "n_batch and n_ubatch leave ",
                                                   n_ubatch));
    }
    if (model.arch == LLM_ARCH_T5 && !params.kv_unified && params.n_seq_max > 1) {
        return Status(Code::unsupported, text("kv_unified=False with n_seq_max=", params.n_seq_max,
                                              ": the decoder of an encoder-decoder model needs a unified cache"));
    }
    return check_memory(model, params, n_ctx);
}

} // namespace

Status context_create(ModelHandle model, llama_context_params params, ContextHandle parent, PollFn poll,
                      ContextHandle & out) noexcept {
    return fenced(Code::load_failed, [&]() -> Status {
        log_mark();
        if (Status bad = fit_sizes(*model->ptr, params); !bad.ok()) {
            return bad;
        }
        params.ctx_other = parent ? parent->ptr : nullptr;
        std::shared_lock<std::shared_mutex> lock(model->adapters_mutex);
        llama_context * context = llama_init_from_model(model->ptr, params);
        lock.unlock();
        if (!context) {
            return Status(Code::load_failed, "llama.cpp could not create a context");
        }
        out = make_handle<ContextBox>(std::move(model), context, params);
        out->poll = poll;
        out->store = std::make_shared<CheckpointStore>(*out); // while the memory is empty
        if (parent) {
            out->keeps.push_back(std::move(parent));
        }
        return {};
    });
}

void context_reserve(ContextBox & box) {
    std::shared_lock<std::shared_mutex> lock(box.model->adapters_mutex);
    box.ptr->sched_reserve();
}

} // namespace lloyal
