#include "core/handles.hpp"

#include "state/checkpoint.hpp"

#include "core/fault.hpp"
#include "core/fence.hpp"
#include "core/fork.hpp"
#include "core/log.hpp"
#include "model/cpu.hpp"
#include "model/graph_check.hpp"

#include "llama-arch.h"
#include "llama-context.h"
#include "llama-graph.h"
#include "llama-kv-cells.h"
#include "llama-model.h"

#include <algorithm>
#include <ctime>
#include <memory>

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
    if (box.use.load(std::memory_order_relaxed) == Use::stopping || exiting() || abort_now()) {
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

ContextBox::ContextBox(ModelHandle weights, llama_context * context, const llama_context_params & params,
                       const MemoryMap * parent)
    : model(std::move(weights)), ptr(context), memory(llama_get_memory(context)), id(random_epoch()),
      map(*model->ptr, *context, memory, params, parent), provenance(id, int32_t(llama_n_seq_max(context))),
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
                                                   " MiB of cache, all devices together have ", have >> 20, " MiB"));
    }
    return {};
}

// Pooling takes every row of a micro-batch; the graph that llama.cpp plans for one has `n_ubatch` rows rounded up to a
// multiple of the sequences, or of what else there is room for.
Status fit_pooling(const llama_model & model, llama_context_params & params, uint32_t n_ubatch, uint32_t limit) {
    const enum llama_pooling_type pooling =
        params.pooling_type == LLAMA_POOLING_TYPE_UNSPECIFIED ? model.hparams.pooling_type : params.pooling_type;
    if (pooling == LLAMA_POOLING_TYPE_UNSPECIFIED || pooling == LLAMA_POOLING_TYPE_NONE) {
        return {};
    }
    const uint32_t rest = n_ubatch % params.n_seq_max;
    if (rest != 0) {
        const uint32_t more = n_ubatch + params.n_seq_max - rest;
        n_ubatch = more <= limit ? more : n_ubatch - rest;
    }
    if (n_ubatch == 0) {
        return Status(Code::invalid_argument, text("n_seq_max=", params.n_seq_max,
                                                   " is more than the tokens of a micro-batch, and the context pools: "
                                                   "raise n_ctx, n_batch and n_ubatch, or lower n_seq_max"));
    }
    if (params.n_outputs_max != 0 && params.n_outputs_max < n_ubatch) {
        return Status(Code::invalid_argument, text("n_outputs_max=", params.n_outputs_max, " must be at least ",
                                                   n_ubatch, " in a context that pools (a micro-batch), or 0"));
    }
    params.n_ubatch = n_ubatch;
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
    if (Status bad = fit_pooling(model, params, std::min(n_ubatch, n_ctx), std::min(n_batch, n_ctx)); !bad.ok()) {
        return bad;
    }
    if (params.n_rs_seq > 0 && llm_arch_supports_rs_rollback(model.arch) && n_ubatch <= params.n_rs_seq + 1) {
        return Status(Code::invalid_argument,
                      text("n_rs_seq=", params.n_rs_seq,
                           " needs micro-batches of more than n_rs_seq + 1 tokens: n_ctx, n_batch and n_ubatch leave ",
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
    return fenced(Input::file, Code::load_failed, [&]() -> Status {
        log_mark();
        if (Status bad = fit_sizes(*model->ptr, params); !bad.ok()) {
            return bad;
        }
        params.ctx_other = parent ? parent->ptr : nullptr;
        if (params.flash_attn_type == LLAMA_FLASH_ATTN_TYPE_AUTO) {
            if (parent && !ggml_is_quantized(params.type_v)) { // whose rows it may share
                params.flash_attn_type =
                    parent->map.v_trans ? LLAMA_FLASH_ATTN_TYPE_DISABLED : LLAMA_FLASH_ATTN_TYPE_ENABLED;
            } else if (flash_attention_is_slow(*model->ptr, params)) {
                params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
            }
        }
        std::shared_lock<std::shared_mutex> lock(model->adapters_mutex);
        llama_context * context = llama_init_from_model(model->ptr, params);
        lock.unlock();
        if (!context) {
            return Status(Code::load_failed, "llama.cpp could not");
        }
        ContextHandle box = make_handle<ContextBox>(std::move(model), context, params, parent ? &parent->map : nullptr);
        graph_check_install(*context);
        graph_check(*context);
        draft_check(*context, parent ? parent->ptr : nullptr);
        if (params.embeddings) {
            embeddings_check(*context);
        }
        box->poll = poll;
        box->store = std::make_shared<CheckpointStore>(*box);
        if (parent) {
            box->keeps.push_back(std::move(parent));
        }
        out = std::move(box);
        return {};
    });
}

void context_reserve(ContextBox & box) {
    std::shared_lock<std::shared_mutex> lock(box.model->adapters_mutex);
    box.ptr->sched_reserve();
}

Status synchronize(ContextBox & box) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        llama_synchronize(box.ptr);
        return {};
    });
}

} // namespace lloyal
