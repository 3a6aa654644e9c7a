#include "branch/draft.hpp"

#include "decode/largest.hpp"
#include "decode/outputs.hpp"
#include "sample/sampler_state.hpp"
#include "sample/sampler_types.hpp"

#include <algorithm>
#include <cmath>

namespace lloyal {
namespace {

// Whether the token of the largest logit stays the most probable one, and the sampler remembers nothing.
bool leaves_largest(const llama_sampler * sampler) {
    switch (sampler_type(sampler)) {
        case SamplerType::empty:
        case SamplerType::top_k:
        case SamplerType::top_p:
        case SamplerType::min_p:
        case SamplerType::temp:
        case SamplerType::top_n_sigma:
        case SamplerType::dist: return true;
        default: return false;
    }
}

} // namespace

Status draft_make(ContextBox &, const Draw & draw, bool ratio, DraftHandle & out) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        auto made = std::make_shared<DraftBox>();
        made->sampler = std::make_shared<SamplerBox>(clone_native(draw.sampler->ptr), draw.sampler->models);
        made->biases = draw.biases;
        if (Pcg64 * stream = stream_native(made->sampler->leaves)) {
            made->best = !ratio;
            made->keeps = ratio;
            const std::vector<llama_sampler *> & leaves = made->sampler->leaves;
            made->largest = made->best && !made->biases && std::all_of(leaves.begin(), leaves.end(), leaves_largest);
            // A guess must not know the numbers by which it will be judged.
            const uint64_t seed = stream->next();
            *stream = Pcg64::from_seed(seed ^ (stream->next() << 1));
        }
        out = std::move(made);
        return {};
    });
}

Status draft_sample(ContextBox & box, DraftBox & draft, int32_t i, llama_token & out) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        const std::vector<llama_logit_bias> none;
        const float * row = nullptr;
        Status status = find_logits(box, i, row);
        if (!status.ok()) {
            return status;
        }
        const auto n = int32_t(n_logits(box));
        if (draft.largest) {
            if (const Largest found = largest(row, size_t(n)); found.finite && found.value > -INFINITY) {
                out = llama_token(found.index);
                return {};
            }
        }
        if (draft.biases) {
            for (const llama_logit_bias & bias : *draft.biases) {
                if (bias.token >= n) {
                    return Status(Code::invalid_argument,
                                  text("token ", bias.token, " has a bias, and these logits are of ", n));
                }
            }
        }
        draft.tokens.reserve(draft.tokens.size() + 1);
        draft.from.reserve(draft.tokens.size() + 1);
        Picked picked;
        Chances chances;
        status = pick_row(*draft.sampler, row, n, draft.biases ? *draft.biases : none, picked, &chances);
        if (status.ok()) {
            if (draft.best) {
                picked.token = std::max_element(chances.begin(), chances.end(), [](const Chance & a, const Chance & b) {
                                   return a.p < b.p || (a.p == b.p && a.id > b.id);
                               })->id;
            }
            status = sampler_accept(*draft.sampler, picked.token);
        }
        if (status.ok()) {
            draft.tokens.push_back(picked.token);
            if (draft.keeps) {
                draft.from.push_back(std::move(chances));
            }
            out = picked.token;
        }
        return status;
    });
}

} // namespace lloyal
