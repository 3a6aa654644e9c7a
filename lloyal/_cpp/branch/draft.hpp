// What a drafter draws its guesses with: a copy of a branch's sampler, so that penalties, rules and temperature are those that the
// guesses will be held against, over logits of the drafter's own.
#pragma once

#include "branch/step.hpp"

namespace lloyal {

struct DraftBox {
    SamplerHandle sampler;
    std::shared_ptr<const std::vector<llama_logit_bias>> biases;
    bool best = false;               // takes the most probable of what it would draw from
    bool largest = false;            // which is that of the largest logit
    bool keeps = false;              // what it draws from
    std::vector<llama_token> tokens; // drawn so far
    std::vector<Chances> from;       // what each of them was drawn from
};
using DraftHandle = std::shared_ptr<DraftBox>;

// Where the branch will stand behind the token that was drawn. Chance that is keyed to positions is the same for both; no
// guess can know what a generator gives to the branch: then the most probable ones are taken, or with `ratio` those that a
// generator of its own gives.
Status draft_make(ContextBox & box, const Draw & draw, bool ratio, DraftHandle & out) noexcept;
// Draw the next guess from output `i` of a context's last decode, and accept it.
Status draft_sample(ContextBox & box, DraftBox & draft, int32_t i, llama_token & out) noexcept;

} // namespace lloyal
