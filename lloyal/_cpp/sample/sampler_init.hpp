// Making the samplers whose llama.cpp constructors can fail, throw, or make one that aborts later.
#pragma once

#include "sample/sampler.hpp"

#include <string>
#include <vector>

namespace lloyal {

Status grammar_init(const ModelHandle & model, const std::string & grammar, const std::string & root, bool lazy,
                    const std::vector<std::string> & patterns, const std::vector<llama_token> & tokens,
                    SamplerHandle & out) noexcept;
Status penalties_init(int32_t n_vocab, int32_t last_n, float repeat, float freq, float present,
                      SamplerHandle & out) noexcept;
Status dry_init(const ModelHandle & model, float multiplier, float base, int32_t allowed_length, int32_t last_n,
                const std::vector<std::string> & breakers, SamplerHandle & out) noexcept;
Status infill_init(const ModelHandle & model, SamplerHandle & out) noexcept;

} // namespace lloyal
