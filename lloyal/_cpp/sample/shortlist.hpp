// The few tokens of a row that a chain can pick from, where it keeps the largest logits only: penalties, rules and biases
// before that need not see the others.
#pragma once

#include "llama.h"

#include <cstddef>
#include <vector>

namespace lloyal {

// What a chain does first: samplers that can be applied to some tokens as to all of them, then one that keeps the `n_kept`
// largest logits. `n_kept` is 0 for a chain that is not of this kind.
struct Beginning {
    size_t n_samplers = 0; // before the one that keeps
    size_t n_kept = 0;
};
Beginning beginning_of(const std::vector<llama_sampler *> & leaves);

// Whether `list` was filled: the tokens among which the largest are, in the order of their ids, with the biases added and the
// samplers of the beginning applied. The rest of the chain does to them what it would do to all. The row must be finite.
bool shortlist(const std::vector<llama_sampler *> & leaves, const Beginning & beginning, const float * row, size_t n,
               const std::vector<llama_logit_bias> & biases, std::vector<llama_token_data> & list);

} // namespace lloyal
