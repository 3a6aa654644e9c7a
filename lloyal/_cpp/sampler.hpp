// Samplers of ours, in llama.cpp's sampler interface, and guarded calls into its own.
#pragma once

#include "handles.hpp"

namespace lloyal {

// Sample from the logits of batch index `i` and accept the token.
Status sample(SamplerBox & sampler, ContextBox & box, int32_t i, llama_token & out) noexcept;

} // namespace lloyal
