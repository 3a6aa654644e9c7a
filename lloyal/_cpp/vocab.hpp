// Text to tokens and back, with llama.cpp's exceptions caught.
#pragma once

#include "status.hpp"

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

} // namespace lloyal
