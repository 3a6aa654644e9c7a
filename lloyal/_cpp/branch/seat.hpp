// Where the rows of branches are. Forks share a seat until one of them goes on: then that one takes a seat of its own, and
// the last of them keeps the one they had.
#pragma once

#include "branch/branch.hpp"
#include "state/checkpoint.hpp"

namespace lloyal {

// Where the rows of a text are: in a leased sequence, or parked in a checkpoint, or nowhere (then they are read again).
// All branches that share it begin with the tokens of its first `n_rows` rows, as far as they are long.
struct Seat {
    ContextHandle context;
    SeqId seq = -1; // leased; -1: parked, or nothing there
    Pos n_rows = 0;
    uint64_t version = 0; // of the sequence after our last change: another one is not ours any more
    CheckpointHandle parked;
    uint64_t used_at = 0;

    explicit Seat(ContextHandle of) : context(std::move(of)) {}
    Seat(const Seat &) = delete;
    ~Seat();
};

// The rows of the branch into a sequence that is its own: nothing if they are there, otherwise shared with who has them,
// restored, or read again. NoLease if no sequence is free.
Status branch_seat(ContextBox & box, BranchBox & branch) noexcept;
bool branch_is_seated(const BranchBox & branch);
// The same, but what would have to be read again at its end, if that is little, is given to `late` instead.
Status branch_seat_but(ContextBox & box, BranchBox & branch, std::vector<llama_token> & late);
// Where in the list those are that a step would have to find a sequence for.
Status branches_unseated(ContextBox & box, const std::vector<BranchHandle> & branches,
                         std::vector<size_t> & out) noexcept;
// Out of its sequence into a checkpoint, for all that share it.
Status branch_park(ContextBox & box, BranchBox & branch, Where where) noexcept;

// A fork with its rows in a checkpoint, as a value to come back to.
Status branch_keep(ContextBox & box, BranchBox & from, Where where, BranchHandle & out) noexcept;
// The logits behind its last token, where it has none.
Status branch_compute_logits(ContextBox & box, BranchBox & branch) noexcept;

// Whether it is in a sequence, with exactly so many rows that nobody else has changed.
bool seat_holds(const Seat & seat, Pos n);
// What the sequence of a seat holds from the beginning on.
void note_rows(const ContextBox & box, Seat & seat);

} // namespace lloyal
