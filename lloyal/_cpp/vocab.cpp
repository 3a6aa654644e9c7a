#include "vocab.hpp"

#include "fence.hpp"
#include "log.hpp"

#include <algorithm>
#include <climits>
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

Status check_vocab(const llama_vocab * vocab) {
    if (llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_NONE) {
        return Status(Code::unsupported, "this model has no tokenizer (tokenizer.ggml.model is \"none\")");
    }
    return {};
}

} // namespace

Status tokenize(const llama_vocab * vocab, const char * data, size_t size, bool add_special, bool parse_special,
                std::vector<llama_token> & out) noexcept {
    return fenced(Code::invalid_argument, [&]() -> Status {
        if (Status bad = check_vocab(vocab); !bad.ok()) {
            return bad;
        }
        if (size > size_t(INT32_MAX) - 1024) {
            return Status(Code::invalid_argument,
                          text("the text has ", size, " bytes, the tokenizer takes less than 2 GiB"));
        }
        log_mark();
        try {
            const bool ok = fill(out, size + 8, [&](llama_token * tokens, int32_t n) {
                return llama_tokenize(vocab, data, int32_t(size), tokens, n, add_special, parse_special);
            });
            return ok ? Status()
                      : Status(Code::invalid_argument, text("llama.cpp could not tokenize ", size, " bytes"));
        } catch (const std::invalid_argument & e) {
            return Status(Code::invalid_argument, text("the text (", size, " bytes) is not UTF-8: ", e.what()));
        }
    });
}

Status detokenize(const llama_vocab * vocab, const std::vector<llama_token> & tokens, bool remove_special,
                  bool unparse_special, std::string & out) noexcept {
    return fenced(Code::invalid_argument, [&]() -> Status {
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
    return fenced(Code::invalid_argument, [&]() -> Status {
        if (Status bad = check_vocab(vocab); !bad.ok()) {
            return bad;
        }
        const bool ok = fill(out, 32, [&](char * buffer, int32_t n) {
            return llama_token_to_piece(vocab, token, buffer, n, 0, special);
        });
        return ok ? Status() : Status(Code::invalid_argument, text("llama.cpp has no text for token ", token));
    });
}

} // namespace lloyal
