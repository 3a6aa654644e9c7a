// Low-rank adapters and control vectors: what can be laid over a model's weights, per context.
#pragma once

#include "core/handles.hpp"
#include "core/status.hpp"

#include "llama.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace lloyal {

struct AdapterBox {
    llama_adapter_lora * ptr;
    ModelHandle model;

    AdapterBox(llama_adapter_lora * adapter, ModelHandle parent);
    AdapterBox(const AdapterBox &) = delete;
    ~AdapterBox();
};
using AdapterHandle = std::shared_ptr<AdapterBox>;

Status adapter_load(ModelHandle model, const std::string & path, AdapterHandle & out) noexcept;

// Replace the adapters of a context; it keeps those with a scale other than 0.
Status adapters_set(ContextBox & box, const std::vector<AdapterHandle> & adapters,
                    const std::vector<float> & scales) noexcept;

// Add `data`, one row of `n_embd` for each layer from 1, to the output of layers `il_start` to `il_end`. Null turns
// the control vector off.
Status control_vector_set(ContextBox & box, const float * data, size_t len, int32_t n_embd, int32_t il_start,
                          int32_t il_end) noexcept;

} // namespace lloyal
