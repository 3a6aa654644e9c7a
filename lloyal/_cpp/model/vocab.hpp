// Text to tokens and back, with llama.cpp's exceptions caught; and what a model has for its tokens.
#pragma once

#include "core/handles.hpp"
#include "core/status.hpp"

#include "llama.h"

#include <cstddef>
#include <string>
#include <vector>

namespace lloyal {

Status tokenize(const llama_vocab * vocab, const char * data, size_t size, bool add_special, bool parse_special,
                std::vector<llama_token> & out) noexcept;
Status detokenize(const llama_vocab * vocab, const std::vector<llama_token> & tokens, bool remove_special,
                  bool unparse_special, std::string & out) noexcept;
Status token_to_piece(const llama_vocab * vocab, llama_token token, bool special, std::string & out) noexcept;

// Values of the token embedding as floats; `out` null: only count them.
Status token_embedding(ModelBox & model, float * out, size_t & n) noexcept;

} // namespace lloyal
