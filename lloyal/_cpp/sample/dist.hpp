// Our sampler that draws from the distribution. Its random generator is 32 bytes that can be saved and restored and give
// the same numbers on every platform.
#pragma once

#include "llama.h"

#include <cstdint>

namespace lloyal {

// PCG64 (XSL-RR 128/64): M. E. O'Neill, "PCG: A Family of Simple Fast Space-Efficient Statistically Good Algorithms for
// Random Number Generation", Harvey Mudd College HMC-CS-2014-0905. The same generator as numpy.random.PCG64.
class Pcg64 {
  public:
    // The increment must be odd; `from_seed` fills both from a 64-bit seed with SplitMix64.
    unsigned __int128 state = 0;
    unsigned __int128 increment = 1;

    static Pcg64 from_seed(uint64_t seed);

    uint64_t next();
    // In [0, 1), a multiple of 2**-53.
    double uniform() { return double(next() >> 11) * 0x1.0p-53; }
};

// The seed, or one drawn for LLAMA_DEFAULT_SEED.
uint32_t fresh_seed(uint32_t seed);

// What our sampler keeps; `sampler_state.cpp` saves and restores it.
struct DistSampler {
    uint32_t seed;     // as asked for: LLAMA_DEFAULT_SEED draws a new one at every reset
    uint32_t seed_cur; // in use
    Pcg64 rng;
};

llama_sampler * dist_init(uint32_t seed);

} // namespace lloyal
