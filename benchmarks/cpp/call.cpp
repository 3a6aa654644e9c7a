// The token loop a C++ program would write: decode, pick the largest logit, decode that.
#include "twin.hpp"

#include "core/handles.hpp"

#include "llama-context.h"

#include <algorithm>
#include <vector>

TWIN_API void use_thread_time(bool on) {
    clock_in_use = on ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC;
}

Bare::Bare(llama_context * ctx) : ctx_(ctx), callback_(ctx->abort_callback), data_(ctx->abort_callback_data) {
    llama_set_abort_callback(ctx_, nullptr, nullptr);
}

Bare::~Bare() {
    llama_set_abort_callback(ctx_, callback_, data_);
}

TWIN_API void twin_close(Twin * twin) {
    const Quiet quiet;
    if (twin->borrowed) {
        delete twin;
        return;
    }
    llama_free(twin->ctx);
    llama_model_free(twin->model);
    delete twin;
}

// Null if the model or the context cannot be made. The parameters are those the Python side names; the rest are
// llama.cpp's defaults, except that weights are not repacked and performance is not counted, as on the Python side.
TWIN_API Twin * twin_open(const char * path, uint32_t n_ctx, uint32_t n_batch, uint32_t n_ubatch, uint32_t n_seq_max,
                          bool flash_attn) {
    const Quiet quiet;
    auto * twin = new Twin;
    llama_model_params model = llama_model_default_params();
    model.use_extra_bufts = false;
    twin->model = llama_model_load_from_file(path, model);
    if (!twin->model) {
        delete twin;
        return nullptr;
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx = n_ctx;
    params.n_batch = n_batch;
    params.n_ubatch = n_ubatch;
    params.n_seq_max = n_seq_max;
    params.n_threads = 1;
    params.n_threads_batch = 1;
    params.kv_unified = true;
    params.no_perf = true;
    params.flash_attn_type = flash_attn ? LLAMA_FLASH_ATTN_TYPE_AUTO : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    twin->ctx = llama_init_from_model(twin->model, params);
    if (!twin->ctx) {
        twin_close(twin);
        return nullptr;
    }
    return twin;
}

// The context of lloyal's own, so that both sides work in the same pages. Its rows are the twin's until it is closed.
TWIN_API Twin * twin_borrow(lloyal::ContextBox * box) {
    return new Twin{const_cast<llama_model *>(llama_get_model(box->ptr)), box->ptr, true};
}

// Read `prompt` into an empty memory, then `n` times: pick, and decode what was picked. Nanoseconds of the second part,
// or a negative code of llama.cpp's.
TWIN_API int64_t twin_generate(Twin * twin, const int32_t * prompt, int32_t n_prompt, int32_t n, int32_t * out) {
    const Bare bare(twin->ctx);
    llama_memory_clear(llama_get_memory(twin->ctx), false);
    const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(twin->model));
    std::vector<int32_t> tokens(prompt, prompt + n_prompt);
    if (llama_decode(twin->ctx, llama_batch_get_one(tokens.data(), n_prompt)) != 0) {
        return -1;
    }
    const Clock clock;
    for (int32_t i = 0; i < n; ++i) {
        const float * row = llama_get_logits_ith(twin->ctx, -1);
        llama_token token = llama_token(std::max_element(row, row + n_vocab) - row);
        out[i] = token;
        if (llama_decode(twin->ctx, llama_batch_get_one(&token, 1)) != 0) {
            return -1;
        }
    }
    llama_synchronize(twin->ctx);
    const int64_t ns = clock.ns();
    llama_memory_clear(llama_get_memory(twin->ctx), false);
    return ns;
}
