// Rejection sampling: a guess drawn from one distribution becomes a draw from another. Leviathan, Kalman, Matias, "Fast
// Inference from Transformers via Speculative Decoding", 2023; Chen et al., "Accelerating Large Language Model Decoding with
// Speculative Sampling", 2023.
#pragma once

#include "llama.h"

#include <vector>

namespace lloyal {

struct Chance {
    llama_token id;
    double p;
};
using Chances = std::vector<Chance>; // each token once, in any order; their sum need not be one

// Whether a guess that was drawn from `q` stays, with the probability min(1, p / q), for a number `u` that is uniform in
// [0, 1). If not, `rest` gets what is to be drawn from instead: max(p - q, 0). Where `q` does not have the guess it was certain.
bool ratio_keeps(const Chances & p, const Chances & q, llama_token guess, double u, Chances & rest);

// The one at which the running sum passes a share `u` of the whole; null if nothing can be drawn.
const Chance * draw_one(const Chances & list, double u);
// Of a token: 0 if it is not there.
double chance_of(const Chances & list, llama_token id);

} // namespace lloyal
