// Samplers that run in the context's graph, on its device, instead of on the logits afterwards.
#pragma once

#include "decode/outputs.hpp"
#include "sample/sampler.hpp"

namespace lloyal {

// Attach a chain to a sequence, or none. The context keeps it alive.
Status context_set_sampler(const ContextHandle & context, SeqId seq, const SamplerHandle & sampler) noexcept;

// What the back end left for one output. Pointers into the context, valid until its next decode.
struct BackendSample {
    llama_token token = LLAMA_TOKEN_NULL; // LLAMA_TOKEN_NULL: the chain does not pick there
    const llama_token * ids = nullptr;
    const float * logits = nullptr;
    const float * probs = nullptr;
    size_t n = 0; // of the three
};

// The sample of output `i`; without one for a sequence that has no chain attached.
Status backend_output(ContextBox & context, int32_t i, BackendSample & out) noexcept;

// The same as copies and as rows that know when they are stale.
Status read_sample(ContextBox & box, int32_t i, llama_token & token, std::vector<llama_token> & ids, Output & logits,
                   Output & probs) noexcept;

// The same for `sampler` to go on with: refused where another sampler's back end has already worked on the output.
Status backend_sample(const SamplerBox & sampler, ContextBox & context, int32_t i, BackendSample & out) noexcept;

} // namespace lloyal
