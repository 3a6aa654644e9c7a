#include "sampler.hpp"

#include "decode.hpp"

namespace lloyal {

Status sample(SamplerBox & sampler, ContextBox & box, int32_t i, llama_token & out) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        const float * row = nullptr;
        if (Status status = logits_row(box, i, row); !status.ok()) {
            return status;
        }
        out = llama_sampler_sample(sampler.ptr, box.ptr, i);
        return {};
    });
}

} // namespace lloyal
