#include "branch/seat.hpp"

#include "core/lease.hpp"
#include "decode/decode.hpp"
#include "decode/hidden.hpp"
#include "decode/outputs.hpp"

#include <algorithm>

namespace lloyal {
namespace {

// A leased sequence, given back unless it was taken over.
class LeasedSeq {
  public:
    explicit LeasedSeq(ContextBox & box) : box_(box) {}
    LeasedSeq(const LeasedSeq &) = delete;
    ~LeasedSeq() {
        if (seq_ >= 0) {
            lease_release(box_, seq_);
            lease_settle(box_);
        }
    }
    Status acquire() {
        lease_settle(box_); // of seats that were given up since this call came in
        Status status = lease_acquire(box_, Lease::tenant, seq_);
        if (status.code == Code::no_lease) {
            status.message += "; or prune branches, or let the store park them (auto_park=True)";
        }
        return status;
    }
    SeqId get() const { return seq_; }
    SeqId take() { return std::exchange(seq_, -1); }

  private:
    ContextBox & box_;
    SeqId seq_ = -1;
};

// Read the tokens of [begin, n) again.
Status read_again(ContextBox & box, Seat & seat, const Tokens & tokens, size_t begin, size_t n) {
    const size_t n_batch = llama_n_batch(box.ptr);
    const size_t first = begin;
    const std::vector<llama_token> ids = tokens.ids(begin, n);
    Batch batch;
    while (begin < n) {
        const size_t end = std::min(begin + n_batch, n);
        batch.clear();
        for (size_t i = begin; i < end; ++i) {
            batch.add(ids[i - first], Pos(i), &seat.seq, 1, false);
        }
        const Status status = decode(box, batch, true);
        note_rows(box, seat);
        if (!status.ok()) {
            return status;
        }
        begin = end;
    }
    return {};
}

// Rows behind `n` away; all of them where the memory cannot go back by itself.
void cut(ContextBox & box, Seat & seat, Pos n) {
    if (seat.n_rows > n && !memory_seq_rm_any(box, seat.seq, n, -1).ok()) {
        memory_seq_rm_any(box, seat.seq, -1, -1);
    }
    note_rows(box, seat);
}

// The rows of one seat for another, which has a sequence and nothing in it. What cannot be had this way is read again.
Status share_rows(ContextBox & box, const Seat & from, Seat & to, Pos n) {
    Status status;
    if (from.seq >= 0 && from.n_rows > 0) {
        status = memory_seq_cp_any(box, from.seq, to.seq, 0, std::min(n, from.n_rows));
        if (status.code == Code::unsupported) { // a part, where only all can be copied
            status = memory_seq_cp_any(box, from.seq, to.seq, -1, -1);
        }
        status = status.code == Code::unsupported ? Status() : status;
    } else if (from.parked) {
        status = checkpoint_restore(*from.parked, box, to.seq);
        status = status.code == Code::stale_checkpoint ? Status() : status; // the budget took it
    }
    note_rows(box, to);
    return status;
}

// What somebody else has changed in its sequence is of no use.
void drop_foreign(ContextBox & box, Seat & seat) {
    if (seat.seq >= 0 && box.provenance.version(seat.seq) != seat.version) {
        memory_seq_rm_any(box, seat.seq, -1, -1);
        note_rows(box, seat);
    }
}

} // namespace

Seat::~Seat() {
    if (seq >= 0) {
        lease_release(*context, seq);
    }
}

void note_rows(const ContextBox & box, Seat & seat) {
    const Runs & rows = box.provenance.of(seat.seq);
    seat.n_rows = rows.empty() || rows.begin() != 0 ? 0 : rows.spans().front().end;
    seat.version = box.provenance.version(seat.seq);
}

bool seat_holds(const Seat & seat, Pos n) {
    return seat.seq >= 0 && seat.n_rows == n && seat.context->provenance.version(seat.seq) == seat.version;
}

bool branch_is_seated(const BranchBox & branch) {
    return branch.seat && branch.seat.use_count() == 1 && seat_holds(*branch.seat, branch.position());
}

namespace {

constexpr Pos MOST_LATE = 64; // tokens that go in front of a step instead of being read by themselves

// The rows of its first `n` tokens in a sequence that is its own; the last few may be `late`.
Status seat_rows(ContextBox & box, BranchBox & branch, Pos n, std::vector<llama_token> * late = nullptr) {
    std::shared_ptr<Seat> seat = branch.seat;
    if (seat) {
        drop_foreign(box, *seat);
    }
    LeasedSeq lease(box);
    if (!seat || seat.use_count() > 2) { // this one, and the branch's
        // Somebody else needs the rows too: they keep the seat, the branch takes another.
        if (Status status = lease.acquire(); !status.ok()) {
            return status;
        }
        auto own = std::make_shared<Seat>(branch.context);
        own->seq = lease.get();
        Status status = seat ? share_rows(box, *seat, *own, n) : Status();
        if (!status.ok()) {
            own->seq = -1;
            return status;
        }
        lease.take();
        note_rows(box, *own);
        seat = std::move(own);
    } else if (seat->seq < 0) {
        if (Status status = lease.acquire(); !status.ok()) {
            return status;
        }
        if (seat->parked) {
            Status status = checkpoint_restore(*seat->parked, box, lease.get());
            if (!status.ok() && status.code != Code::stale_checkpoint) { // which the budget took: read again
                return status;
            }
            seat->parked.reset();
        }
        seat->seq = lease.take();
        note_rows(box, *seat);
    }
    branch.seat = seat;
    cut(box, *seat, n);
    seat->used_at = store_of(box).tick();
    if (late && n - seat->n_rows <= MOST_LATE) {
        *late = branch.tokens->ids(size_t(seat->n_rows), size_t(n));
        return {};
    }
    return read_again(box, *seat, *branch.tokens, size_t(seat->n_rows), size_t(n));
}

} // namespace

Status branch_seat(ContextBox & box, BranchBox & branch) noexcept {
    return for_branch(box, branch, [&]() -> Status {
        if (branch_is_seated(branch)) {
            branch.seat->used_at = store_of(box).tick();
            return {};
        }
        return seat_rows(box, branch, branch.position());
    });
}

Status branch_seat_but(ContextBox & box, BranchBox & branch, std::vector<llama_token> & late) {
    if (branch_is_seated(branch)) {
        branch.seat->used_at = store_of(box).tick();
        return {};
    }
    return seat_rows(box, branch, branch.position(), &late);
}

Status branch_compute_logits(ContextBox & box, BranchBox & branch) noexcept {
    return for_branch(box, branch, [&]() -> Status {
        if (branch.row || branch.tokens->empty()) {
            return {};
        }
        auto row = std::make_shared<Row>(n_logits(box));
        const Pos last = branch.position() - 1;
        const bool lacks_hidden = box.hidden && (!branch.hidden || branch.hidden->end() != branch.position());
        if (lacks_hidden) {
            own_hidden(branch);
        }
        if (Status status = seat_rows(box, branch, last); !status.ok()) {
            return status;
        }
        Batch batch;
        batch.add(branch.tokens->ids(size_t(last), size_t(last) + 1)[0], last, &branch.seat->seq, 1, true);
        Status status = decode(box, batch, true);
        note_rows(box, *branch.seat);
        const float * computed = nullptr;
        if (status.ok()) {
            status = find_logits(box, 0, computed);
        }
        if (const float * hidden = hidden_row(box, 0); status.ok() && lacks_hidden && hidden) {
            auto block = std::make_shared<Hidden::Block>();
            block->sources = box.hidden;
            block->values.assign(hidden, hidden + box.hidden->width);
            branch.hidden->add(std::move(block), last, 1);
        }
        if (status.ok()) {
            std::copy(computed, computed + row->size(), row->begin());
            branch.row = std::move(row);
        }
        return status;
    });
}

Status branches_unseated(ContextBox & box, const std::vector<BranchHandle> & branches,
                         std::vector<size_t> & out) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        out.clear();
        for (size_t i = 0; i < branches.size(); ++i) {
            if (Status status = check_branch(box, *branches[i]); !status.ok()) {
                return status;
            }
            const Seat * seat = branches[i]->seat.get(); // what its sequence lacks can be read there
            if (!seat || branches[i]->seat.use_count() > 1 || seat->seq < 0 ||
                box.provenance.version(seat->seq) != seat->version) {
                out.push_back(i);
            }
        }
        return {};
    });
}

Status branch_park(ContextBox & box, BranchBox & branch, Where where) noexcept {
    return for_branch(box, branch, [&]() -> Status {
        if (!branch.seat || branch.seat->seq < 0) {
            return {};
        }
        Seat & seat = *branch.seat;
        drop_foreign(box, seat);
        if (seat.n_rows > 0) {
            CheckpointHandle parked;
            if (Status status = checkpoint_take(branch.context, seat.seq, where, false, parked); !status.ok()) {
                return status;
            }
            parked->pinned = true; // not for the budget to take away
            seat.parked = std::move(parked);
        }
        branch.spare_row.reset();
        lease_release(box, std::exchange(seat.seq, -1));
        lease_settle(box);
        return {};
    });
}

Status branch_keep(ContextBox & box, BranchBox & from, Where where, BranchHandle & out) noexcept {
    return for_branch(box, from, [&]() -> Status {
        auto made = std::make_shared<BranchBox>(from.context);
        made->be(from);
        made->seat = from.seat;
        if (from.seat && from.seat->seq >= 0 && where != Where::cells) {
            drop_foreign(box, *from.seat);
            made->seat = std::make_shared<Seat>(from.context);
            if (from.seat->n_rows > 0) {
                if (Status status = checkpoint_take(from.context, from.seat->seq, where, false, made->seat->parked);
                    !status.ok()) {
                    return status;
                }
            }
        }
        out = std::move(made);
        return {};
    });
}

} // namespace lloyal
