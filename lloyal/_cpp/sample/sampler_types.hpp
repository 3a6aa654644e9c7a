// What a sampler is, for llama.cpp's own ones too: its type, its parameters as a fingerprint, what it would do on a back end.
#pragma once

#include "llama.h"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lloyal {

enum class SamplerType : uint8_t {
    unknown = 0,
    chain,
    empty, // llama.cpp's stand-in for a sampler whose parameters switch it off
    greedy,
    llama_dist,
    top_k,
    top_p,
    min_p,
    typical,
    temp,
    temp_ext,
    xtc,
    mirostat,
    mirostat_v2,
    grammar,
    penalties,
    top_n_sigma,
    dry,
    adaptive_p,
    logit_bias,
    infill,
    dist,
    keyed,
};

SamplerType sampler_type(const llama_sampler * sampler);

// The samplers of a chain, or the sampler itself; chains inside chains are opened.
std::vector<llama_sampler *> sampler_leaves(llama_sampler * sampler);

// Whether it measures how long it takes, as chains do if asked.
bool sampler_times(const llama_sampler * sampler);

// How deep chains are nested in it: 0 without one.
int32_t sampler_depth(const llama_sampler * sampler);

// Of the type and all parameters but the seed: equal for samplers that do the same from the same state.
uint64_t sampler_config(const llama_sampler * sampler);

// The seed in use, of the last sampler in a chain that has one.
bool sampler_seed(const llama_sampler * sampler, uint32_t & seed);

// The vocabulary size the sampler was made for, 0 if it does not care.
int32_t sampler_n_vocab(const llama_sampler * sampler);

// How many of the largest logits are all that a sampler leaves: 0 if it is not of that kind.
size_t sampler_keeps(const llama_sampler * sampler);
// Whether a sampler does to each token what it would do without the others, and raises no logit but those that it appends.
bool sampler_raises(const llama_sampler * sampler, std::vector<llama_token> & tokens);

// Whether a sampler draws from the probabilities that it leaves with the candidates.
bool sampler_draws(const llama_sampler * sampler);

// What a sampler that runs on a back end does to the candidates there.
struct BackendEffect {
    bool keeps_order = true;   // candidate i is still token i
    int32_t n_candidates = -1; // how many are left, -1: as many as before
    int32_t n_vocab = 0;       // the vocabulary size it was made for, 0 if it does not care
};
BackendEffect sampler_backend_effect(const llama_sampler * sampler);

// Room for the text of a token, in an infill sampler.
void infill_make_room(llama_sampler * sampler, size_t n_bytes);

// A grammar: whether it still waits for its trigger, and whether nothing can follow any more (llama.cpp aborts then).
struct GrammarPhase {
    const llama_vocab * vocab = nullptr;
    bool waiting = false;
    bool dead = false;
};
GrammarPhase grammar_phase(const llama_sampler * sampler);

} // namespace lloyal
