#include "model/vocab.hpp"

#include "core/budget.hpp"
#include "core/fence.hpp"
#include "core/log.hpp"

#include "llama-ext.h"
#include "llama-model.h"

#include <algorithm>
#include <cstdint>
#include <stdexcept>

namespace lloyal {
namespace {

// Call `write(buffer, capacity)`, which returns how much it wrote, or minus what it needs, until it fits.
template <typename T, typename F> bool fill(T & out, size_t guess, F && write) {
    out.resize(std::min(guess, size_t(INT32_MAX)));
    for (;;) {
        const int32_t n = write(out.data(), int32_t(out.size()));
        if (n >= 0) {
            out.resize(size_t(n));
            return true;
        }
        if (n == INT32_MIN || size_t(-n) <= out.size()) {
            return false;
        }
        out.resize(size_t(-n));
    }
}

// Tokenizers take a few dozen times the text; some match words with std::regex, which recurses at every character.
constexpr size_t MAX_TEXT = size_t(64) << 20;
constexpr size_t SHORT_TEXT = 2048;
constexpr size_t STACK = size_t(128) << 20;

Status check_vocab(const llama_vocab * vocab) {
    if (llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_NONE) {
        return Status(Code::unsupported, "this model has no tokenizer (tokenizer.ggml.model is \"none\")");
    }
    return {};
}

} // namespace

Status tokenize(const llama_vocab * vocab, const char * data, size_t size, bool add_special, bool parse_special,
                std::vector<llama_token> & out) noexcept {
    return fenced(Input::text, Code::invalid_argument, [&]() -> Status {
        if (Status bad = check_vocab(vocab); !bad.ok()) {
            return bad;
        }
        if (size > MAX_TEXT) {
            return Status(Code::invalid_argument,
                          text("the text has ", size, " bytes, ", MAX_TEXT, " are the limit: tokenize it in parts"));
        }
        log_mark();
        try {
            const TextBudget budget = {"the text", 4 * size, size > SHORT_TEXT ? STACK : 0, false};
            return budgeted(budget, Code::invalid_argument, [&]() -> Status {
                const bool ok = fill(out, size + 8, [&](llama_token * tokens, int32_t n) {
                    return llama_tokenize(vocab, data, int32_t(size), tokens, n, add_special, parse_special);
                });
                return ok ? Status()
                          : Status(Code::invalid_argument, text("llama.cpp could not tokenize ", size, " bytes"));
            });
        } catch (const std::invalid_argument & e) {
            return Status(Code::invalid_argument, text("the text (", size, " bytes) is not UTF-8: ", e.what()));
        }
    });
}

Status detokenize(const llama_vocab * vocab, const std::vector<llama_token> & tokens, bool remove_special,
                  bool unparse_special, std::string & out) noexcept {
    return fenced(Input::text, Code::invalid_argument, [&]() -> Status {
        if (Status bad = check_vocab(vocab); !bad.ok()) {
            return bad;
        }
        const bool ok = fill(out, tokens.size() * 8 + 64, [&](char * buffer, int32_t n) {
            return llama_detokenize(vocab, tokens.data(), int32_t(tokens.size()), buffer, n, remove_special,
                                    unparse_special);
        });
        return ok ? Status()
                  : Status(Code::invalid_argument, text("llama.cpp could not detokenize ", tokens.size(), " tokens"));
    });
}

Status token_to_piece(const llama_vocab * vocab, llama_token token, bool special, std::string & out) noexcept {
    return fenced(Input::text, Code::invalid_argument, [&]() -> Status {
        if (Status bad = check_vocab(vocab); !bad.ok()) {
            return bad;
        }
        const bool ok = fill(out, 32, [&](char * buffer, int32_t n) {
            return llama_token_to_piece(vocab, token, buffer, n, 0, special);
        });
        return ok ? Status() : Status(Code::invalid_argument, text("llama.cpp has no text for token ", token));
    });
}

Status token_embedding(ModelBox & model, float * out, size_t & n) noexcept {
    return guarded(Code::unsupported, [&]() -> Status {
        const ggml_tensor * tensor = model.ptr->tok_embd;
        n = 0;
        if (!tensor) {
            return Status(Code::unsupported, "this model has no token embedding");
        }
        const bool floats =
            tensor->type == GGML_TYPE_F32 || tensor->type == GGML_TYPE_F16 || tensor->type == GGML_TYPE_BF16;
        if (!floats && !(ggml_is_quantized(tensor->type) && ggml_get_type_traits(tensor->type)->to_float)) {
            return Status(Code::unsupported, text("the token embedding is of type ", ggml_type_name(tensor->type),
                                                  ", which has no conversion"));
        }
        if (uint64_t(ggml_nelements(tensor)) > UINT32_MAX) {
            return Status(Code::unsupported, text("the token embedding has ", ggml_nelements(tensor),
                                                  " values, llama.cpp reads at most ", UINT32_MAX));
        }
        n = llama_model_get_tok_embd(model.ptr, out);
        return {};
    });
}

} // namespace lloyal
