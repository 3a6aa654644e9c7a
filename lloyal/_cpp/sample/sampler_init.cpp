#include "sample/sampler_init.hpp"

#include "core/budget.hpp"
#include "core/log.hpp"
#include "core/pattern.hpp"
#include "sample/grammar.hpp"
#include "sample/sampler_grammar.hpp"
#include "sample/sampler_types.hpp"

#include <algorithm>

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

Status check_pattern(const std::string & pattern) {
    try {
        const Pattern compiled(pattern);
        return {};
    } catch (const PatternError & e) {
        return Status(Code::invalid_argument,
                      text("trigger pattern '", pattern.substr(0, 100), pattern.size() > 100 ? " ..." : "",
                           "' is no regular expression that can be searched for: ", e.what()));
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
        for (const std::string & pattern : patterns) {
            if (Status status = check_pattern(pattern); !status.ok()) {
                return status;
            }
        }
        llama_sampler * sampler = nullptr;
        const TextBudget budget = {"the grammar", grammar.size(), 0, false, 0.6, 0.0};
        Status status = budgeted(budget, Code::invalid_grammar, [&]() -> Status {
            Status checked = grammar_check(vocab, grammar, root);
            if (checked.ok()) {
                sampler = grammar_make(vocab, grammar, root, lazy, patterns, tokens);
            }
            return checked;
        });
        if (!status.ok()) {
            llama_sampler_free(sampler); // a signal that came when it was made
            return status;
        }
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
