// What a sampler remembers, as bytes and in copies, for llama.cpp's own ones too.
#pragma once

#include "core/status.hpp"
#include "sample/dist.hpp"
#include "sample/keyed.hpp"

#include "llama.h"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lloyal {

// `out` gets everything that decides what `sampler` does next, its random generators included.
void save_native(const llama_sampler * sampler, std::vector<uint8_t> & out);
// Into a sampler of the same configuration; after a failure its state is neither the old nor the new one.
Status load_native(llama_sampler * sampler, const uint8_t * data, size_t size);

// A copy that goes on exactly as the original; llama_sampler_clone does not copy all of adaptive-p and the seeds.
llama_sampler * clone_native(const llama_sampler * sampler);
// llama_sampler_copy with the same repair. Both must have the same configuration.
void copy_native(const llama_sampler * from, llama_sampler * to);

// The same where `to` was equal before the last pick of `from` and one token that it has accepted (LLAMA_TOKEN_NULL: none): what
// remembers tokens accepts this one too. The leaves of both.
void follow_native(const std::vector<llama_sampler *> & from, const std::vector<llama_sampler *> & to,
                   llama_token token);

// For the samplers that both have, whatever their parameters: random generators (and what else moves with every draw), and
// where grammars of the same rules stand.
void carry_native(const llama_sampler * from, llama_sampler * to, bool generators, bool grammars);
// The generator that the last sampler draws from: null if it has none, as where chance is keyed to positions.
Pcg64 * stream_native(const std::vector<llama_sampler *> & leaves);
// The one whose draws depend on the position, if it draws at the end; null otherwise.
KeyedSampler * keyed_native(const std::vector<llama_sampler *> & leaves);
// Random generators as they begin with this seed.
void reseed_native(llama_sampler * sampler, uint32_t seed);

} // namespace lloyal
