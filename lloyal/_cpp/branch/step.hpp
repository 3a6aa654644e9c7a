// Steps of many branches at once, packed into as few batches as they take. All of it happens, or nothing: after a failure
// every branch has the tokens, logits, sampler and numbers it had.
#pragma once

#include "branch/branch.hpp"

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

} // namespace lloyal
