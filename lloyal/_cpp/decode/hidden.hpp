// Hidden rows of the tokens that branches read: what drafters on top of a model start from. Kept for every token of a batch,
// in whatever parts it is computed, and dropped with its outputs.
#pragma once

#include "core/handles.hpp"
#include "core/status.hpp"

#include <cstdint>
#include <vector>

namespace lloyal {

// Keep the inputs of these layers, one after another, of what branches read from now on, and of each branch those of its last
// `most` tokens until they are asked for. Without layers nothing is kept any more.
Status context_keep_hidden(ContextBox & box, const std::vector<int32_t> & layers, int32_t most) noexcept;
// After the next `n` tokens of a batch were computed: their rows behind those of the tokens before. None at all if any lack.
void collect_hidden(ContextBox & box, size_t n);
// The rows of token `i` of the last batch, or null.
const float * hidden_row(const ContextBox & box, size_t i);

// Whether `box` was made on top of `parent`.
Status context_is_on(ContextBox & box, const ContextHandle & parent, bool & out) noexcept;
// What a head's context is made for and takes.
struct HeadInfo {
    bool mtp = false;            // made with type="mtp"
    bool shared = false;         // works on its parent's memory
    bool chained = false;        // each token of a block depends on the one before it (DSpark)
    int32_t n_embd = 0;          // values of a row beside a token
    int32_t n_embd_features = 0; // of one that is encoded
};
Status context_head_info(ContextBox & box, HeadInfo & out) noexcept;

} // namespace lloyal
