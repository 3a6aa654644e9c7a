#include "sampler_init.hpp"

#include "grammar.hpp"
#include "log.hpp"
#include "sampler_types.hpp"

#include <algorithm>
#include <regex>

namespace lloyal {
namespace {

std::vector<const char *> pointers(const std::vector<std::string> & strings) {
    std::vector<const char *> out;
    for (const std::string & string : strings) {
        out.push_back(string.c_str());
    }
    return out;
}

// Samplers that read tokens as text ask the tokenizer; llama.cpp aborts without one.
Status check_tokenizer(const llama_vocab * vocab) {
    return llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_NONE
               ? Status(Code::unsupported, "this model has no tokenizer (tokenizer.ggml.model is \"none\")")
               : Status();
}

Status take(llama_sampler * sampler, std::vector<ModelHandle> models, SamplerHandle & out) {
    out = std::make_shared<SamplerBox>(sampler, std::move(models));
    return {};
}

// The same as llama.cpp makes of it, thrown away: a pattern that is none would throw in the middle of its constructor.
Status check_pattern(const std::string & pattern) {
    try {
        const std::regex regex(pattern);
        return {};
    } catch (const std::regex_error & e) {
        return Status(Code::invalid_argument,
                      text("trigger pattern '", pattern, "' is no regular expression: ", e.what()));
    }
}

} // namespace

Status grammar_init(const ModelHandle & model, const std::string & grammar, const std::string & root, bool lazy,
                    const std::vector<std::string> & patterns, const std::vector<llama_token> & tokens,
                    SamplerHandle & out) noexcept {
    return guarded(Code::invalid_grammar, [&]() -> Status {
        log_mark();
        const llama_vocab * vocab = llama_model_get_vocab(model->ptr);
        if (Status status = check_tokenizer(vocab); !status.ok()) {
            return status;
        }
        if (Status status = grammar_check(vocab, grammar, root); !status.ok()) {
            return status;
        }
        for (const std::string & pattern : patterns) {
            if (Status status = check_pattern(pattern); !status.ok()) {
                return status;
            }
        }
        std::vector<const char *> pattern_list = pointers(patterns);
        llama_sampler * sampler =
            lazy ? llama_sampler_init_grammar_lazy_patterns(vocab, grammar.c_str(), root.c_str(), pattern_list.data(),
                                                            pattern_list.size(), tokens.data(), tokens.size())
                 : llama_sampler_init_grammar(vocab, grammar.c_str(), root.c_str());
        if (!sampler) {
            return Status(Code::invalid_grammar, "llama.cpp refused the grammar: " + log_last());
        }
        return take(sampler, {model}, out);
    });
}

Status penalties_init(int32_t n_vocab, int32_t last_n, float repeat, float freq, float present,
                      SamplerHandle & out) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        return take(llama_sampler_init_penalties(n_vocab, last_n, repeat, freq, present), {}, out);
    });
}

Status dry_init(const ModelHandle & model, float multiplier, float base, int32_t allowed_length, int32_t last_n,
                const std::vector<std::string> & breakers, SamplerHandle & out) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        const llama_vocab * vocab = llama_model_get_vocab(model->ptr);
        if (Status status = check_tokenizer(vocab); !status.ok()) {
            return status;
        }
        std::vector<const char *> list = pointers(breakers);
        return take(llama_sampler_init_dry(vocab, multiplier, base, allowed_length, last_n, list.data(), list.size()),
                    {model}, out);
    });
}

Status infill_init(const ModelHandle & model, SamplerHandle & out) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        const llama_vocab * vocab = llama_model_get_vocab(model->ptr);
        if (Status status = check_tokenizer(vocab); !status.ok()) {
            return status;
        }
        if (llama_vocab_eot(vocab) == LLAMA_TOKEN_NULL && llama_vocab_eos(vocab) == LLAMA_TOKEN_NULL) {
            return Status(Code::unsupported,
                          "infill ends a text with the EOT or EOS token, and this vocabulary has neither");
        }
        // llama.cpp has room for pieces of 512 bytes and fails to make more.
        int32_t longest = 512;
        for (llama_token token = 0; token < llama_vocab_n_tokens(vocab); ++token) {
            longest = std::max(longest, -llama_token_to_piece(vocab, token, nullptr, 0, 0, false));
        }
        llama_sampler * sampler = llama_sampler_init_infill(vocab);
        infill_make_room(sampler, size_t(longest));
        return take(sampler, {model}, out);
    });
}

} // namespace lloyal
