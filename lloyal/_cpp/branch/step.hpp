// Steps of many branches at once, packed into as few batches as they take. All of it happens, or nothing: after a failure
// every branch has the tokens, logits, sampler and numbers it had.
#pragma once

#include "branch/branch.hpp"
#include "sample/sampler_grammar.hpp"

namespace lloyal {

// Read tokens into branches; a branch may be named once. With `accept` they go through its sampler and are counted, as if
// it had picked them.
struct Reading {
    BranchHandle branch;
    std::vector<llama_token> tokens;
};
Status branches_read(ContextBox & box, const std::vector<Reading> & readings, bool accept) noexcept;

// Every branch picks a token, accepts it and reads it. A token that ends the text is picked only: the branch is over.
Status branches_step(ContextBox & box, const std::vector<BranchHandle> & branches,
                     std::vector<llama_token> & out) noexcept;

// The same in two halves, for who guesses what comes then. The first changes no branch.
struct Draw {
    BranchHandle branch;
    SamplerHandle sampler; // a copy of the branch's, which has picked the token and accepted it
    SamplerHandle other;   // to try guesses with
    std::optional<llama_token> other_lacks;
    Picked picked;
    bool ends = false;
    std::vector<Token> records; // of the token, then of the guesses that were right

    // What it was drawn from; a branch that has others by now is not the same.
    SamplerHandle old_sampler;
    std::shared_ptr<const Row> row;
    std::shared_ptr<const std::vector<llama_logit_bias>> biases;
    Pos position = 0;
};
Status branches_draw(ContextBox & box, const std::vector<BranchHandle> & branches, std::vector<Draw> & out) noexcept;
// What the grammar of a draw leaves no choice about, behind the drawn token and `after`.
Status draw_forced(ContextBox & box, const Draw & draw, const std::vector<uint32_t> & after, size_t most,
                   Forced & out) noexcept;
// What may follow a draw.
struct Guesses {
    std::vector<llama_token> tokens;
    bool ratio = false;        // kept by rejection sampling, where the branch draws from a generator
    std::vector<Chances> from; // what each was drawn from; where there is nothing it was certain
};
// Reads what was drawn and the guesses behind it, in one go, and keeps those that the branch itself would pick, up to the first
// that it would not: the tokens are those of as many steps. `out` gets what each has read, or the token that ends it.
// With `ratio` the tokens are others, of the same distribution; the first draw that follows is from what a refused guess leaves.
Status branches_verify(ContextBox & box, std::vector<Draw> & draws, const std::vector<Guesses> & guesses,
                       std::vector<std::vector<llama_token>> & out) noexcept;

} // namespace lloyal
