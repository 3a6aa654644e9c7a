// Grammars (GBNF), looked at before llama.cpp gets them: its parser and its checks recurse, loop and allocate without
// bound on some texts, and print what is wrong to stderr.
#pragma once

#include "core/status.hpp"

#include "llama.h"

#include <string>

namespace lloyal {

// Ok for a grammar that llama.cpp can take; otherwise invalid_grammar with the reason. May throw.
Status grammar_check(const llama_vocab * vocab, const std::string & text, const std::string & root);

} // namespace lloyal
