// Samplers as handles: llama.cpp's own and ours, checked before every call that would abort in llama.cpp.
#pragma once

#include "core/calls.hpp"
#include "core/handles.hpp"
#include "core/pattern.hpp"
#include "core/status.hpp"
#include "sample/ratio.hpp"
#include "sample/shortlist.hpp"

#include "llama.h"

#include <atomic>
#include <memory>
#include <string>
#include <vector>

namespace lloyal {

struct SamplerBox {
    llama_sampler * ptr = nullptr;
    std::vector<ModelHandle> models; // grammar and infill samplers read the vocabulary

    std::atomic<bool> busy{false};

    // The context whose back end runs the first samplers of this chain. llama.cpp can attach a chain once and leaves
    // those samplers out when it is applied elsewhere, so a chain that was let go is exchanged for a clone of itself.
    std::weak_ptr<ContextBox> attached;
    bool was_attached = false;

    // Found once, again after every change of the chain.
    std::vector<llama_sampler *> leaves; // its samplers, or itself
    Beginning beginning;
    std::vector<llama_sampler *> grammars;
    std::vector<std::vector<PatternSearch>> searches; // of each grammar; empty: made when a token comes
    int32_t n_vocab = 0;                              // token ids must be below; 0: any
    bool greedy = false;                              // only ever takes the largest logit

    SamplerBox(llama_sampler * sampler, std::vector<ModelHandle> parents);
    SamplerBox(const SamplerBox &) = delete;
    ~SamplerBox();

    // Takes over another native sampler, or notes that this one has changed.
    void hold(llama_sampler * sampler);
};

// One caller at a time: false if another thread is inside.
inline bool sampler_enter(SamplerBox & box) {
    return !box.busy.exchange(true, std::memory_order_acquire);
}
inline void sampler_leave(SamplerBox & box) {
    box.busy.store(false, std::memory_order_release);
}

// The stay of a call in a sampler (core/calls.hpp).
class SamplerStay {
  public:
    using Argument = const SamplerHandle &;
    explicit SamplerStay(const SamplerHandle & sampler) : box_(sampler.get()), inside_(box_ && sampler_enter(*box_)) {}
    SamplerStay(const SamplerStay &) = delete;
    ~SamplerStay() {
        if (inside_) {
            sampler_leave(*box_);
        }
    }
    Refusal refused() const {
        return inside_ ? Refusal{}
               : box_  ? Refusal{Code::busy,
                                "another thread is inside this sampler: one sampler takes one caller at a time"}
                       : Refusal{Code::closed, "the sampler is closed"};
    }

  private:
    SamplerBox * box_;
    bool inside_;
};

template <> struct Stay<SamplerBox &> : SamplerStay {
    using SamplerStay::SamplerStay;
    static SamplerBox & pass(const SamplerHandle & sampler) { return *sampler; }
};
template <> struct Stay<const SamplerHandle &> : SamplerStay {
    // A call that takes a handle takes none too.
    explicit Stay(const SamplerHandle & sampler) : SamplerStay(sampler), none_(!sampler) {}
    Refusal refused() const { return none_ ? Refusal{} : SamplerStay::refused(); }
    static const SamplerHandle & pass(const SamplerHandle & sampler) { return sampler; }

  private:
    bool none_;
};

// Before anything else: a chain that a back end has let go becomes an ordinary one again.
Status sampler_settle(SamplerBox & box) noexcept;

// Pick a token from output `i` of the last decode, or from a row of `n_vocab` logits, and accept it.
Status sample(SamplerBox & box, ContextBox & context, int32_t i, llama_token & out) noexcept;
Status sample_row(SamplerBox & box, const float * row, int32_t n_vocab, llama_token & out) noexcept;

// The same in two steps, for who may have to forget what was picked. Biases are added to the logits before the chain sees
// them. Nothing but the random generators of the chain moves. `left` gets what it drew from: what was picked, if it did not.
struct Picked {
    llama_token token = LLAMA_TOKEN_NULL;
    float probability = 1.0f; // among what the chain left to choose from
    float largest = 0.0f;     // of the logits, before biases
};
Status pick_row(SamplerBox & box, const float * row, int32_t n_vocab, const std::vector<llama_logit_bias> & biases,
                Picked & out, Chances * left = nullptr) noexcept;

// What its grammars do not allow becomes -inf.
Status sampler_rule_out(SamplerBox & box, llama_token_data_array & array) noexcept;
Status sampler_rule_out(SamplerBox & box, std::vector<float> & row) noexcept;

// Let the sampler work on candidates; they must be at least one, with finite logits or -inf.
Status sampler_apply(SamplerBox & box, llama_token_data_array & array) noexcept;
Status sampler_accept(SamplerBox & box, llama_token token) noexcept;
Status sampler_reset(SamplerBox & box) noexcept;

Status sampler_clone(SamplerBox & box, SamplerHandle & out) noexcept;
// The state of `from` into `to`, which must have the same samplers with the same parameters.
Status sampler_copy(SamplerBox & from, SamplerBox & to) noexcept;
Status sampler_name(SamplerBox & box, std::string & out) noexcept;
// The seed in use, of the last sampler in a chain that has one.
Status sampler_seed_used(SamplerBox & box, bool & found, uint32_t & seed) noexcept;
Status sampler_get_state(SamplerBox & box, std::vector<uint8_t> & out) noexcept;
// All or nothing: after a failure the sampler is as it was.
Status sampler_set_state(SamplerBox & box, const uint8_t * data, size_t size) noexcept;

Status chain_init(bool no_perf, SamplerHandle & out) noexcept;
// Takes the sampler out of `link`, which is left empty.
Status chain_add(SamplerBox & chain, SamplerBox & link) noexcept;
Status chain_n(SamplerBox & chain, int32_t & n) noexcept;
// A clone of the i-th sampler.
Status chain_get(SamplerBox & chain, int32_t i, SamplerHandle & out) noexcept;
Status chain_remove(SamplerBox & chain, int32_t i, SamplerHandle & out) noexcept;
Status chain_perf(SamplerBox & chain, bool reset, llama_perf_sampler_data & out) noexcept;

} // namespace lloyal
