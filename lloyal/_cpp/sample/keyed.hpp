// Our sampler whose draws depend on a seed and a position alone: not on what was drawn before, nor on how often. Two of
// them with one seed pick the same token at the same position from equal candidates, and mostly so from similar ones.
#pragma once

#include "llama.h"

#include <array>
#include <cstdint>

namespace lloyal {

// Philox4x64-10: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC
// 2011. A function of counter and key, the one behind numpy.random.Philox.
std::array<uint64_t, 4> philox(std::array<uint64_t, 4> counter, std::array<uint64_t, 2> key);

// What our sampler keeps; `sampler_state.cpp` saves and restores it.
struct KeyedSampler {
    uint32_t seed;         // as asked for: LLAMA_DEFAULT_SEED draws a new one at every reset
    uint32_t seed_cur;     // in use
    uint64_t position = 0; // of the token that is picked next; every token accepted is one further
};

llama_sampler * keyed_init(uint32_t seed, uint64_t position);

} // namespace lloyal
