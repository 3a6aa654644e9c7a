// A branch: one text that is being generated, with everything its next token depends on. What is dear is shared with the
// forks of a branch until one of them changes it: rows of the cache, logits, the sampler, the tokens.
#pragma once

#include "branch/hidden_runs.hpp"
#include "branch/tokens.hpp"
#include "decode/log_probs.hpp"
#include "sample/sampler.hpp"

#include <memory>
#include <optional>
#include <vector>

namespace lloyal {

using Row = std::vector<float>; // logits

// How surprising the accepted tokens were. Perplexity is exp(nll / n).
struct Surprise {
    double nll = 0.0; // nats
    int64_t n = 0;
    void add(double nats) {
        nll += nats;
        ++n;
    }
};

// What the first draw from a row is made from instead, where a guess was refused there (sample/ratio.hpp), or where one that ends
// the text was not.
struct Rest {
    Chances chances;
    Chances all;         // that the chain leaves
    float largest = 0.0; // logit of the row
};

struct Seat; // seat.hpp

struct BranchBox {
    ContextHandle context;
    std::shared_ptr<Seat> seat;             // null: nothing read yet
    std::shared_ptr<Tokens> tokens;         // shared ones are never changed
    std::shared_ptr<Hidden> hidden;         // nor these; null: none
    std::shared_ptr<const Row> row;         // of the token after the last; null: none, or another's
    std::shared_ptr<const Row> shown;       // what the sampler sees instead, where a function has changed it
    std::shared_ptr<const Rest> rest;       // of the row, until something is drawn or changed
    std::shared_ptr<Row> spare_row;         // room for the next one
    SamplerHandle sampler;                  // shared ones are never changed; null: whoever commits picks
    SamplerHandle spare;                    // what `sampler` was before its last change, to be used again
    std::optional<llama_token> spare_lacks; // a pick and this token, if that is all (follow_native)
    SamplerHandle first;                    // as it was at some earlier token: what a rewind begins with
    std::shared_ptr<const std::vector<llama_logit_bias>> biases;
    std::optional<uint32_t> seed;  // to be given to the sampler before it picks again
    Picked picked;                 // by the last `sample`, from the row of now
    std::optional<Token> accepted; // it went through the sampler and was not read yet
    Surprise model;
    Surprise sampling;
    bool ended = false; // the last step picked a token that ends the text, and did not read it

    explicit BranchBox(ContextHandle of) : context(std::move(of)), tokens(std::make_shared<Tokens>()) {
        ++live_counts().branches;
    }
    BranchBox(const BranchBox & other) = delete;
    ~BranchBox() { --live_counts().branches; }

    void be(const BranchBox & other); // all that it holds but its seat, shared
    void count(const Token & token);  // in its numbers, if it is one that counts

    Pos position() const { return Pos(tokens->size()); }
};
using BranchHandle = std::shared_ptr<BranchBox>;

Status branch_create(ContextHandle context, const SamplerHandle & sampler, BranchHandle & out) noexcept;
// Everything of `from`, without a copy of anything large. `seed`, unless negative, is for its sampler.
Status branch_fork(ContextBox & box, BranchBox & from, int64_t seed, BranchHandle & out) noexcept;
// The same without its rows, which go on with `from`: to undo with.
Status branch_note(ContextBox & box, BranchBox & from, BranchHandle & out) noexcept;
// Make a branch what another is, or was when it was kept or noted.
Status branch_assign(ContextBox & box, BranchBox & to, const BranchBox & from) noexcept;

// Pick from the logits it has; nothing but the random generator moves.
Status branch_sample(ContextBox & box, BranchBox & branch, llama_token & out) noexcept;
// A token through its sampler and into its numbers, before it is read.
Status branch_accept(ContextBox & box, BranchBox & branch, llama_token token) noexcept;
// Take the last `n` tokens back and compute the logits behind what is left. `first` has heard the tokens before `first_at`.
Status branch_rewind(ContextBox & box, BranchBox & branch, int32_t n, int32_t first_at) noexcept;

// A sampler in place of the one it has, which has heard the same tokens, and the same as it was at an earlier one. The random
// numbers go on with `generators`, grammars of the same rules with `grammars`.
Status branch_set_sampler(ContextBox & box, BranchBox & branch, const SamplerHandle & sampler,
                          const SamplerHandle & first, bool generators, bool grammars) noexcept;
Status branch_set_biases(ContextBox & box, BranchBox & branch, const std::vector<llama_logit_bias> & biases) noexcept;
// Other logits; `show`: only to picks, until there are others, or none (an empty row) to show.
Status branch_set_row(ContextBox & box, BranchBox & branch, const float * row, size_t n, bool show) noexcept;
// row += alpha * the sum of the experts' rows.
Status branch_merge(ContextBox & box, BranchBox & branch, const std::vector<BranchHandle> & experts,
                    double alpha) noexcept;
// What the grammar and the biases leave of its logits: others are -inf. No other sampler counts.
Status branch_legal(ContextBox & box, const BranchBox & branch, Row & out) noexcept;
// Whether they leave one token.
Status branch_is_legal(ContextBox & box, const BranchBox & branch, llama_token token, bool & out) noexcept;
// The most probable next tokens by its logits.
Status branch_top(ContextBox & box, const BranchBox & branch, size_t count, std::vector<LogProb> & out) noexcept;

// What can be said of a branch without its rows.
struct BranchInfo {
    Pos position = 0;
    SeqId seq = -1;   // where its rows are, -1: in none
    bool own = false; // the sequence, or the checkpoint, is its alone
    bool parked = false;
    bool has_logits = false;
    bool ended = false;
    uint64_t used_at = 0;
    size_t seat = 0; // equal for branches that share one
    Picked picked;
    Surprise model;
    Surprise sampling;
};
Status branch_info(ContextBox & box, const BranchBox & branch, BranchInfo & out) noexcept;
Status branch_tokens(ContextBox & box, const BranchBox & branch, size_t begin, std::vector<Token> & out) noexcept;
Status branch_token_ids(ContextBox & box, const BranchBox & branch, size_t begin,
                        std::vector<llama_token> & out) noexcept;
Status branch_row(ContextBox & box, const BranchBox & branch, std::shared_ptr<const Row> & out) noexcept;
// The hidden rows of its tokens from `begin` on, or from a later `first` on if those before are gone; `first` is its position if
// there are none to its end, or not of these layers. What is in front of `begin` is kept no longer.
Status branch_hidden(ContextBox & box, BranchBox & branch, const std::vector<int32_t> & layers, Pos begin, Pos & first,
                     std::vector<float> & out) noexcept;
Status branch_sampler_state(ContextBox & box, const BranchBox & branch, std::vector<uint8_t> & out) noexcept;

Status check_branch(const ContextBox & box, const BranchBox & branch);
Status check_token(const ContextBox & box, llama_token token);
// `body` for a branch of this context.
template <typename F> Status for_branch(const ContextBox & box, const BranchBox & branch, F && body) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        Status status = check_branch(box, branch);
        return status.ok() ? body() : status;
    });
}

// What steps are made of; it may throw. A sampler of its own that may be changed, and taking it over once everything has gone well:
// after a pick at most, and `accepted` (LLAMA_TOKEN_NULL: no token) or, without it, more than one.
SamplerHandle sampler_to_change(BranchBox & branch);
void sampler_changed(BranchBox & branch, SamplerHandle changed, std::optional<llama_token> accepted) noexcept;
// Pick from its logits with that sampler.
Status pick_with(const BranchBox & branch, SamplerBox & sampler, Picked & out);
// The record of a token that is accepted now; `picked` says how, and with `from_row` it was from the row of now.
Token accepted_token(const BranchBox & branch, llama_token token, const Picked & picked, bool from_row = false);
// Tokens of its own, with room for `n` more.
void own_tokens(BranchBox & branch, size_t n);
// Hidden rows of its own, with room for what it reads next.
void own_hidden(BranchBox & branch);

} // namespace lloyal
