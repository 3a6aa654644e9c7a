#include "branch/step.hpp"

#include "branch/seat.hpp"
#include "decode/decode.hpp"
#include "decode/outputs.hpp"

#include "llama-context.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>

namespace lloyal {
namespace {

// What one branch reads, and the logits it gets.
struct Part {
    BranchBox * branch;
    const llama_token * tokens;
    size_t n;
    std::shared_ptr<Row> row;
};

Status at(size_t i, Status status) {
    if (!status.ok()) {
        status.message = text("the branch at index ", i, ": ", status.message);
    }
    return status;
}

Status waits(const Token & accepted) {
    return Status(Code::invalid_argument,
                  text("token ", accepted.id, " was accepted and waits to be read: read it first"));
}

Status check_apart(const std::vector<BranchHandle> & branches) {
    std::vector<const BranchBox *> named;
    for (const BranchHandle & branch : branches) {
        named.push_back(branch.get());
    }
    std::sort(named.begin(), named.end());
    return std::adjacent_find(named.begin(), named.end()) == named.end()
               ? Status()
               : Status(Code::invalid_argument, "a branch is named twice: it can take one step at a time");
}

// A batch that keeps the room it has from step to step. It is the thread's, but for the time of a step this one's alone: a
// signal handler may step branches of another context meanwhile.
class Scratch {
  public:
    Scratch() {
        std::swap(batch, room());
        batch.clear();
    }
    Scratch(const Scratch &) = delete;
    ~Scratch() { std::swap(batch, room()); }
    Batch batch;

  private:
    static Batch & room() {
        static thread_local Batch kept;
        return kept;
    }
};

// Batches of at most `n_batch` tokens, each full but the last.
class Packing {
  public:
    Packing(ContextBox & box, std::vector<Part> & parts) : box_(box), parts_(parts), order_(parts.size()) {
        std::iota(order_.begin(), order_.end(), size_t(0));
        if (box.map.has_state()) {
            // Sequences of one length are computed together, others one after another.
            std::stable_sort(order_.begin(), order_.end(), [&](size_t a, size_t b) { return parts[a].n < parts[b].n; });
        }
    }

    Status run() {
        const size_t n_batch = llama_n_batch(box_.ptr);
        const size_t most_outputs = box_.ptr->get_cparams().n_outputs_max;
        const bool all_output = box_.ptr->get_cparams().embeddings;
        const size_t most_tokens = all_output ? std::min(n_batch, most_outputs) : n_batch;
        for (const size_t i : order_) {
            Part & part = parts_[i];
            const size_t n = part.n;
            for (size_t begin = 0; begin < n;) {
                if (batch_.size() == most_tokens || last_.size() == most_outputs) {
                    if (Status status = flush(); !status.ok()) {
                        return status;
                    }
                }
                const size_t end = std::min(n, begin + most_tokens - batch_.size());
                batch_.extend(part.tokens + begin, end - begin, part.branch->position() + Pos(begin),
                              part.branch->seat->seq, false, end == n);
                if (end == n) {
                    last_.push_back({i, int32_t(batch_.size()) - 1});
                }
                begin = end;
            }
        }
        return batch_.size() ? flush() : Status();
    }

  private:
    Status flush() {
        Status status = decode(box_, batch_, true);
        for (size_t k = 0; status.ok() && k < last_.size(); ++k) {
            const float * row = nullptr;
            status = find_logits(box_, last_[k].second, row);
            if (status.ok()) {
                std::copy(row, row + n_logits(box_), parts_[last_[k].first].row->data());
            }
        }
        batch_.clear();
        last_.clear();
        return status;
    }

    ContextBox & box_;
    std::vector<Part> & parts_;
    std::vector<size_t> order_;
    Scratch scratch_;
    Batch & batch_ = scratch_.batch;
    std::vector<std::pair<size_t, int32_t>> last_; // part, and the place of its last token in the batch
};

// Decode what the parts read, in sequences of their own. After a failure their sequences hold what they held; a memory that
// cannot go back is read again when it is needed (branch_seat).
Status read_parts(ContextBox & box, std::vector<Part> & parts) {
    for (size_t i = 0; i < parts.size(); ++i) {
        if (Status status = branch_seat(box, *parts[i].branch); !status.ok()) {
            return at(i, std::move(status));
        }
    }
    for (Part & part : parts) { // nothing is left to fail for want of memory once rows are written
        part.row = part.branch->spare_row.use_count() == 1 ? std::move(part.branch->spare_row)
                                                           : std::make_shared<Row>(n_logits(box));
        own_tokens(*part.branch, part.n);
    }
    Status status = Packing(box, parts).run();
    for (Part & part : parts) {
        Seat & seat = *part.branch->seat;
        if (!status.ok() && box.provenance.of(seat.seq).end() > part.branch->position()) {
            memory_seq_rm_any(box, seat.seq, part.branch->position(), -1);
        }
        note_rows(box, seat);
    }
    if (status.code == Code::cache_full) {
        status.message += "; or prune branches, or let the store park them (auto_park=True)";
    }
    return status;
}

// Now nothing fails any more.
void publish(Part & part, bool accept, const Token * record) noexcept {
    BranchBox & branch = *part.branch;
    for (size_t k = 0; k < part.n; ++k) {
        Token token;
        token.id = part.tokens[k];
        if (k == 0 && record) {
            token = *record;
        } else {
            token.accepted = accept;
            token.probability = -1.0f;
            token.log_prob = NAN;
        }
        branch.count(token);
        branch.tokens->add(token); // there is room for it
    }
    branch.tokens->settle();
    if (branch.row.use_count() == 1) {                       // nobody looks at it any more
        std::atomic_thread_fence(std::memory_order_acquire); // nor does the thread that did last
        branch.spare_row = std::const_pointer_cast<Row>(branch.row);
    }
    branch.row = std::move(part.row);
    branch.shown.reset();
    branch.picked = {};
    branch.accepted.reset();
    branch.ended = false;
}

} // namespace

Status branches_read(ContextBox & box, const std::vector<Reading> & readings, bool accept) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        std::vector<Part> parts;
        std::vector<BranchHandle> branches;
        std::vector<std::optional<Token>> records;
        std::vector<SamplerHandle> samplers;
        std::vector<std::optional<llama_token>> heard; // by the sampler, if it was one token
        for (size_t i = 0; i < readings.size(); ++i) {
            BranchBox & branch = *readings[i].branch;
            if (Status status = check_branch(box, branch); !status.ok()) {
                return at(i, std::move(status));
            }
            for (const llama_token token : readings[i].tokens) {
                if (Status status = check_token(box, token); !status.ok()) {
                    return at(i, std::move(status));
                }
            }
            branches.push_back(readings[i].branch);
            if (readings[i].tokens.empty()) {
                continue;
            }
            parts.push_back({&branch, readings[i].tokens.data(), readings[i].tokens.size(), nullptr});
            records.emplace_back();
            samplers.emplace_back();
            const bool passed = branch.accepted && branch.accepted->id == readings[i].tokens[0];
            if (branch.accepted && !passed) {
                return at(i, waits(*branch.accepted));
            }
            if (passed) {
                records.back() = branch.accepted;
            } else if (accept) {
                records.back() = accepted_token(branch, readings[i].tokens[0], branch.picked);
            }
            heard.emplace_back(LLAMA_TOKEN_NULL);
            if (accept && branch.sampler) {
                samplers.back() = sampler_to_change(branch);
                for (size_t k = passed; k < readings[i].tokens.size(); ++k) {
                    if (Status status = sampler_accept(*samplers.back(), readings[i].tokens[k]); !status.ok()) {
                        return at(i, std::move(status));
                    }
                    heard.back() = k == size_t(passed) ? std::optional(readings[i].tokens[k]) : std::nullopt;
                }
            }
        }
        if (Status status = check_apart(branches); !status.ok()) {
            return status;
        }
        if (Status status = read_parts(box, parts); !status.ok()) {
            return status;
        }
        for (size_t i = 0; i < parts.size(); ++i) {
            publish(parts[i], accept, records[i] ? &*records[i] : nullptr);
            if (samplers[i]) {
                sampler_changed(*parts[i].branch, std::move(samplers[i]), heard[i]);
            }
        }
        return {};
    });
}

Status branches_step(ContextBox & box, const std::vector<BranchHandle> & branches,
                     std::vector<llama_token> & out) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        const llama_vocab * vocab = llama_model_get_vocab(box.model->ptr);
        struct Pick {
            SamplerHandle sampler;
            Picked picked;
            Token record;
            bool ends = false;
        };
        std::vector<Pick> picks(branches.size());
        std::vector<Part> parts;
        if (Status status = check_apart(branches); !status.ok()) {
            return status;
        }
        parts.reserve(branches.size());
        for (size_t i = 0; i < branches.size(); ++i) {
            BranchBox & branch = *branches[i];
            Pick & pick = picks[i];
            Status status = check_branch(box, branch);
            if (status.ok() && !branch.sampler) {
                status = Status(Code::invalid_argument, "it has no sampler: set_sampling() first");
            }
            if (status.ok() && branch.accepted) {
                status = waits(*branch.accepted);
            }
            if (status.ok() && branch.ended) {
                status = Status(Code::invalid_argument,
                                "its text has ended: leave it out, or go on by commit() or prefill()");
            }
            if (status.ok()) {
                pick.sampler = sampler_to_change(branch);
                status = pick_with(branch, *pick.sampler, pick.picked);
            }
            if (status.ok()) {
                pick.ends = llama_vocab_is_eog(vocab, pick.picked.token);
                if (!pick.ends) {
                    status = sampler_accept(*pick.sampler, pick.picked.token);
                    pick.record = accepted_token(branch, pick.picked.token, pick.picked, !branch.shown);
                    parts.push_back({&branch, &pick.picked.token, 1, nullptr});
                }
            }
            if (!status.ok()) {
                return at(i, std::move(status));
            }
        }
        std::vector<llama_token> made(branches.size());
        if (Status status = read_parts(box, parts); !status.ok()) {
            return status;
        }
        auto part = parts.begin();
        for (size_t i = 0; i < branches.size(); ++i) {
            Pick & pick = picks[i];
            BranchBox & branch = *branches[i];
            made[i] = pick.picked.token;
            if (pick.ends) {
                branch.picked = pick.picked;
                branch.ended = true;
            } else {
                publish(*part++, true, &pick.record);
            }
            sampler_changed(branch, std::move(pick.sampler), pick.ends ? LLAMA_TOKEN_NULL : made[i]);
        }
        out = std::move(made);
        return {};
    });
}

} // namespace lloyal
