// What a context computes besides logits, and what llama.cpp's staging header (llama-ext.h) tells of one.
#pragma once

#include "core/handles.hpp"
#include "core/status.hpp"

#include "ggml-backend.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace lloyal {

// Bytes of one buffer type.
struct BufferUse {
    std::string buffer;
    ggml_backend_dev_t device = nullptr; // null: none known
    bool is_host = false;
    size_t model = 0, context = 0, compute = 0;
};

Status context_memory(ContextBox & box, std::vector<BufferUse> & out) noexcept;

Status context_set_embeddings(ContextBox & box, bool value) noexcept;
Status context_set_causal(ContextBox & box, bool value) noexcept;

// Hidden states for a multi-token-prediction head: for entries with outputs (`masked`), or for all.
Status context_set_nextn(ContextBox & box, bool value, bool masked) noexcept;
Status find_nextn(ContextBox & box, int32_t i, const float *& out) noexcept;
Status context_set_nextn_offset(ContextBox & box, int32_t offset) noexcept;

// The input of layer `layer` for every token; the one past the last layer is the input of the head.
Status context_set_layer_input(ContextBox & box, int32_t layer, bool value) noexcept;
Status find_layer_input(ContextBox & box, int32_t layer, int32_t i, const float *& out) noexcept;

} // namespace lloyal
