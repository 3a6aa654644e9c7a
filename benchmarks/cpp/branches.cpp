// What a C++ program would write for several texts that begin alike: read the beginning once, share its cells, then a batch
// with a token of each per step.
#include "twin.hpp"

#include "sample/dist.hpp"
#include "sample/sampler.hpp"

#include <algorithm>
#include <memory>
#include <vector>

namespace {

using Chain = std::unique_ptr<llama_sampler, decltype(&llama_sampler_free)>;

Chain make_chain(int32_t n_vocab, uint32_t seed, bool ours = false) {
    llama_sampler * chain = llama_sampler_chain_init(llama_sampler_chain_default_params());
    llama_sampler_chain_add(chain, llama_sampler_init_penalties(n_vocab, 64, 1.1f, 0.0f, 0.0f));
    llama_sampler_chain_add(chain, llama_sampler_init_top_k(40));
    llama_sampler_chain_add(chain, llama_sampler_init_top_p(0.95f, 1));
    llama_sampler_chain_add(chain, llama_sampler_init_temp(0.8f));
    llama_sampler_chain_add(chain, ours ? lloyal::dist_init(seed) : llama_sampler_init_dist(seed));
    return {chain, llama_sampler_free};
}

enum Picking : int32_t { none = 0, greedy, chain };

} // namespace

// Nanoseconds of `n` steps of `n_branches` texts, or a negative code. `out` gets the tokens, step by step. With picking
// "none" each step reads the same tokens, as llama-batched-bench does.
TWIN_API int64_t twin_branches(Twin * twin, const int32_t * prompt, int32_t n_prompt, int32_t n_branches, int32_t n,
                               int32_t picking, int32_t * out) {
    const Bare bare(twin->ctx);
    llama_memory_t memory = llama_get_memory(twin->ctx);
    llama_memory_clear(memory, false);
    const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(twin->model));
    std::vector<int32_t> tokens(prompt, prompt + n_prompt);
    if (llama_decode(twin->ctx, llama_batch_get_one(tokens.data(), n_prompt)) != 0) {
        return -1;
    }
    std::vector<Chain> chains;
    for (int32_t b = 0; b < n_branches; ++b) {
        chains.push_back(make_chain(n_vocab, uint32_t(b)));
        for (int32_t i = 0; picking == chain && i < n_prompt; ++i) {
            llama_sampler_accept(chains.back().get(), prompt[i]);
        }
        if (b > 0) {
            llama_memory_seq_cp(memory, 0, b, -1, -1);
        }
    }
    llama_batch batch = llama_batch_init(n_branches, 0, 1);
    int64_t ns = -1;
    const Clock clock;
    for (int32_t i = 0; i < n; ++i) {
        batch.n_tokens = n_branches;
        for (int32_t b = 0; b < n_branches; ++b) {
            llama_token token = 1 + b;
            const int32_t index = i == 0 ? -1 : b;
            if (picking == greedy) {
                const float * row = llama_get_logits_ith(twin->ctx, index);
                token = llama_token(std::max_element(row, row + n_vocab) - row);
            } else if (picking == chain) {
                token = llama_sampler_sample(chains[size_t(b)].get(), twin->ctx, index);
            }
            out[i * n_branches + b] = token;
            batch.token[b] = token;
            batch.pos[b] = n_prompt + i;
            batch.n_seq_id[b] = 1;
            batch.seq_id[b][0] = b;
            batch.logits[b] = true;
        }
        if (llama_decode(twin->ctx, batch) != 0) {
            llama_batch_free(batch);
            return -1;
        }
    }
    llama_synchronize(twin->ctx);
    ns = clock.ns();
    llama_batch_free(batch);
    llama_memory_clear(memory, false);
    return ns;
}

// Nanoseconds of `n` picks by one chain from one row of logits.
TWIN_API int64_t twin_sample(const float * row, int32_t n_vocab, int32_t n) {
    const Chain chain = make_chain(n_vocab, 1);
    std::vector<llama_token_data> room(static_cast<size_t>(n_vocab));
    const Clock clock;
    for (int32_t i = 0; i < n; ++i) {
        for (int32_t token = 0; token < n_vocab; ++token) {
            room[size_t(token)] = {token, row[token], 0.0f};
        }
        llama_token_data_array array = {room.data(), room.size(), -1, false};
        llama_sampler_apply(chain.get(), &array);
        llama_sampler_accept(chain.get(), array.data[array.selected].id);
    }
    return clock.ns();
}

// The same through lloyal, with its own sampler at the end.
TWIN_API int64_t lloyal_sample(const float * row, int32_t n_vocab, int32_t n) {
    lloyal::SamplerBox box(make_chain(n_vocab, 1, true).release(), {});
    const Clock clock;
    for (int32_t i = 0; i < n; ++i) {
        llama_token token = 0;
        if (!lloyal::sample_row(box, row, n_vocab, token).ok()) {
            return -1;
        }
    }
    return clock.ns();
}
