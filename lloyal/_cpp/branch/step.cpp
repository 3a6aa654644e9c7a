#include "branch/step.hpp"

#include "branch/seat.hpp"
#include "core/kept_room.hpp"
#include "decode/decode.hpp"
#include "decode/hidden.hpp"
#include "decode/outputs.hpp"
#include "sample/sampler_state.hpp"

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
    std::vector<llama_token> tokens;
    std::vector<Token> records;            // of those it keeps
    Draw * draw = nullptr;                 // whose guesses the tokens are, from the second on
    const Guesses * guesses = nullptr;     // these
    llama_token ending = LLAMA_TOKEN_NULL; // a guess behind them all, which ends the text
    std::shared_ptr<const Rest> rest;      // to draw from behind the last that is kept

    std::vector<llama_token> late;         // its own, which its sequence lacks: read before
    CheckpointHandle before;               // for a state that cannot go back
    std::shared_ptr<Row> row;              // behind the last that is kept
    std::shared_ptr<Hidden::Block> hidden; // of `tokens`; null: none are kept

    size_t size() const { return late.size() + tokens.size(); }
    Pos begin() const { return branch->position() - Pos(late.size()); }
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

// Batches of at most `n_batch` tokens, each full but the last.
class Packing {
  public:
    Packing(ContextBox & box, std::vector<Part> & parts) : box_(box), parts_(parts), order_(parts.size()) {
        batch_.clear();
        std::iota(order_.begin(), order_.end(), size_t(0));
        if (box.map.has_state()) {
            // Sequences of one length are computed together, others one after another.
            std::stable_sort(order_.begin(), order_.end(),
                             [&](size_t a, size_t b) { return parts[a].size() < parts[b].size(); });
        }
    }

    Status run() {
        const size_t n_batch = llama_n_batch(box_.ptr);
        const size_t most_outputs = box_.ptr->get_cparams().n_outputs_max;
        const bool all_output = box_.ptr->get_cparams().embeddings;
        const size_t most_tokens = all_output ? std::min(n_batch, most_outputs) : n_batch;
        const bool apart = long_ones_apart();
        for (const size_t i : order_) {
            Part & part = parts_[i];
            if (apart && part.size() > 1 && batch_.size()) {
                if (Status status = flush(); !status.ok()) {
                    return status;
                }
            }
            for (size_t k = 0; k < part.size(); ++k) {
                // Guesses are held against every row, otherwise the last says what comes.
                const bool wanted = part.draw ? k >= part.late.size() : k + 1 == part.size();
                if (batch_.size() == most_tokens || (wanted && wanted_.size() == most_outputs)) {
                    if (Status status = flush(); !status.ok()) {
                        return status;
                    }
                }
                if (wanted) {
                    wanted_.push_back({i, k - part.late.size(), int32_t(batch_.size())});
                }
                const llama_token token = k < part.late.size() ? part.late[k] : part.tokens[k - part.late.size()];
                if (part.hidden && k >= part.late.size()) {
                    hidden_.push_back({i, size_t(batch_.size())});
                }
                batch_.add(token, part.begin() + Pos(k), &part.branch->seat->seq, 1, wanted);
            }
            if (apart && part.size() > 1 && batch_.size()) {
                if (Status status = flush(); !status.ok()) {
                    return status;
                }
            }
        }
        return batch_.size() ? flush() : Status();
    }

  private:
    // With sliding windows a batch that is computed in several parts may have no outputs before the last of them, nor rows of one
    // branch that would take cells which another still needs.
    bool long_ones_apart() const {
        if (!box_.map.window) {
            return false;
        }
        size_t total = 0;
        bool equal = true;
        for (const Part & part : parts_) {
            total += part.size();
            equal = equal && part.size() == parts_[0].size();
        }
        return total > llama_n_ubatch(box_.ptr) || (box_.map.has_state() && !equal);
    }

    Status flush() {
        Status status = decode(box_, batch_, true);
        for (const Wanted & wanted : wanted_) {
            const float * row = nullptr;
            if (status.ok()) {
                status = find_logits(box_, wanted.place, row);
            }
            if (status.ok()) {
                take(parts_[wanted.part], wanted.token, row);
            }
        }
        for (const auto & [part, place] : hidden_) {
            std::shared_ptr<Hidden::Block> & hidden = parts_[part].hidden;
            if (const float * row = status.ok() && hidden ? hidden_row(box_, place) : nullptr) {
                hidden->values.insert(hidden->values.end(), row, row + box_.hidden->width); // there is room for it
            } else {
                hidden.reset(); // none rather than those of other tokens
            }
        }
        batch_.clear();
        wanted_.clear();
        hidden_.clear();
        return status;
    }

    // The row behind token `k` of a part.
    void take(Part & part, size_t k, const float * row) {
        if (!part.draw || (k + 1 == part.records.size() && !is_right(part, k + 1, row))) {
            std::copy(row, row + n_logits(box_), part.row->data());
        }
    }

    // Whether the branch keeps guess `k`, by the row before it.
    bool is_right(Part & part, size_t k, const float * row) {
        if (k == part.tokens.size() && part.ending == LLAMA_TOKEN_NULL) {
            return false; // there is none
        }
        Draw & draw = *part.draw;
        SamplerHandle & sampler = trying(draw);
        Picked picked;
        const size_t n = n_logits(box_);
        const bool right = judge(part, *sampler, k, row, n, picked).ok() && picked.token == guess(part, k);
        if (part.rest && &sampler != &draw.sampler) {
            std::swap(draw.sampler, draw.other); // what was drawn to refuse it is not drawn again
            return false;
        }
        if (!right || !sampler_accept(*sampler, picked.token).ok()) {
            return false; // if it is an error, it comes when the branch goes on
        }
        if (&sampler != &draw.sampler) {
            std::swap(draw.sampler, draw.other);
            draw.other_lacks = picked.token;
        }
        Token record;
        record.id = picked.token;
        record.accepted = true;
        record.probability = picked.probability;
        record.log_prob = row[picked.token] - log_sum_exp(row, n, picked.largest);
        part.records.push_back(record); // there is room for it
        return true;
    }

    static llama_token guess(const Part & part, size_t k) {
        return k < part.tokens.size() ? part.tokens[k] : part.ending;
    }

    // What the branch picks in place of guess `k`, which may be that. By rejection sampling it picks the guess, or nothing, and has
    // a rest to draw from then; so it has if the guess ends the text, which is picked by the next step.
    static Status judge(Part & part, SamplerBox & sampler, size_t k, const float * row, size_t n,
                        Picked & picked) noexcept {
        return guarded(Code::decode_failed, [&]() -> Status {
            static const std::vector<llama_logit_bias> no_biases;
            static const Chances certain;
            const auto & biases = part.branch->biases ? *part.branch->biases : no_biases;
            Pcg64 * const stream = part.guesses->ratio ? stream_native(sampler.leaves) : nullptr;
            const auto rest = stream ? std::make_shared<Rest>() : nullptr;
            Status status = pick_row(sampler, row, int32_t(n), biases, picked, rest ? &rest->all : nullptr);
            if (!rest || !status.ok()) {
                return status;
            }
            const std::vector<Chances> & from = part.guesses->from;
            const Chances & q = k - 1 < from.size() ? from[k - 1] : certain;
            const bool keeps = ratio_keeps(rest->all, q, guess(part, k), stream->uniform(), rest->chances);
            picked.token = keeps ? guess(part, k) : LLAMA_TOKEN_NULL;
            picked.probability = keeps ? float(chance_of(rest->all, picked.token)) : -1.0f;
            if (keeps && k == part.tokens.size()) {
                rest->chances.assign(1, {picked.token, 1.0});
            }
            if (!keeps || k == part.tokens.size()) {
                rest->largest = picked.largest;
                part.rest = rest;
            }
            return {};
        });
    }

    // A sampler that stands where that of the draw stands, to be changed.
    static SamplerHandle & trying(Draw & draw) {
        SamplerBox & now = *draw.sampler;
        if (now.greedy) {
            return draw.sampler; // it remembers nothing
        }
        if (!draw.other || !now.grammars.empty()) {
            draw.other = std::make_shared<SamplerBox>(clone_native(now.ptr), now.models);
        } else {
            follow_native(now.leaves, draw.other->leaves, draw.other_lacks.value_or(LLAMA_TOKEN_NULL));
        }
        draw.other_lacks = LLAMA_TOKEN_NULL; // it is about to pick
        return draw.other;
    }

    struct Wanted {
        size_t part;
        size_t token;
        int32_t place; // in the batch
    };

    ContextBox & box_;
    std::vector<Part> & parts_;
    std::vector<size_t> order_;
    KeptRoom<Batch> room_;
    Batch & batch_ = room_.value;
    std::vector<Wanted> wanted_;
    std::vector<std::pair<size_t, size_t>> hidden_; // part, place in the batch: of those whose hidden rows are kept
};

// Whether a state may have to go back further than its snapshots reach.
bool needs_checkpoint(const ContextBox & box, const Part & part) {
    return part.tokens.size() > 1 && part.draw && box.map.has_state() && box.map.n_rs_seq + 1 < part.tokens.size();
}

constexpr size_t MOST_AGAIN = 8; // tokens that are read again in front of guesses

bool take_without_evicting(ContextBox & box, Part & part) {
    CheckpointStore & store = store_of(box);
    const bool evicts = std::exchange(store.evict, false);
    const Status status =
        checkpoint_take(part.branch->context, part.branch->seat->seq, Where::device, true, part.before);
    store.evict = evicts;
    return status.ok();
}

// Take back the rows of guesses that were wrong; the state by a checkpoint, if it must, and what is lost with it is late then.
void take_back(ContextBox & box, Part & part) {
    const SeqId seq = part.branch->seat->seq;
    const Pos end = part.branch->position() + Pos(part.records.size());
    if (box.provenance.of(seq).end() <= end || memory_seq_rm_any(box, seq, end, -1).ok()) {
        return;
    }
    if (!part.before || !checkpoint_restore(*part.before, box, seq).ok()) {
        memory_seq_rm_any(box, seq, -1, -1);
    }
}

// Decode what the parts read, in sequences of their own. After a failure their sequences hold what they held; a memory that
// cannot go back is read again when it is needed (branch_seat).
Status read_parts(ContextBox & box, std::vector<Part> & parts) {
    for (size_t i = 0; i < parts.size(); ++i) {
        Part & part = parts[i];
        Status status = branch_seat_but(box, *part.branch, part.late);
        const bool checkpoint = needs_checkpoint(box, part);
        if (status.ok() && checkpoint && part.late.size() > MOST_AGAIN) {
            part.late.clear(); // or they would be late again and again, and ever more
            status = branch_seat(box, *part.branch);
        }
        if (!status.ok()) {
            return at(i, std::move(status));
        }
        const size_t asked = part.tokens.size();
        if (box.map.window && part.draw) {
            const size_t room = llama_n_ubatch(box.ptr);
            part.tokens.resize(std::min(part.tokens.size(), room > part.late.size() ? room - part.late.size() : 1));
        }
        // Without one all would be read again; and none is worth those of others.
        if (checkpoint && !take_without_evicting(box, part)) {
            part.tokens.resize(1);
        }
        if (part.tokens.size() < asked) {
            part.ending = LLAMA_TOKEN_NULL;
        }
        part.draw = part.tokens.size() > 1 || part.ending != LLAMA_TOKEN_NULL ? part.draw : nullptr;
    }
    for (Part & part : parts) { // nothing is left to fail for want of memory once rows are written
        part.row = part.branch->spare_row.use_count() == 1 ? std::move(part.branch->spare_row)
                                                           : std::make_shared<Row>(n_logits(box));
        part.records.reserve(part.tokens.size());
        own_tokens(*part.branch, part.tokens.size());
        if (box.hidden) {
            part.hidden = std::make_shared<Hidden::Block>();
            part.hidden->sources = box.hidden;
            part.hidden->values.reserve(part.tokens.size() * box.hidden->width);
        }
        if (box.hidden || part.branch->hidden) {
            own_hidden(*part.branch);
        }
    }
    Status status = Packing(box, parts).run();
    for (Part & part : parts) {
        Seat & seat = *part.branch->seat;
        if (status.ok()) {
            take_back(box, part);
        } else if (box.provenance.of(seat.seq).end() > part.branch->position()) {
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
void publish(Part & part) noexcept {
    BranchBox & branch = *part.branch;
    if (branch.hidden) {
        branch.hidden->add(std::move(part.hidden), branch.position(), Pos(part.records.size()));
    }
    for (const Token & token : part.records) {
        branch.count(token);
        branch.tokens->add(token); // there is room for it
    }
    branch.tokens->settle();
    if (branch.row.use_count() == 1) {                       // nobody looks at it any more
        std::atomic_thread_fence(std::memory_order_acquire); // nor does the thread that did last
        branch.spare_row = std::const_pointer_cast<Row>(branch.row);
    }
    branch.row = std::move(part.row);
    branch.rest = std::move(part.rest);
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
            parts.push_back({&branch, readings[i].tokens, {}});
            for (const llama_token token : readings[i].tokens) {
                parts.back().records.push_back({token, accept, -1.0f, NAN});
            }
            samplers.emplace_back();
            const bool passed = branch.accepted && branch.accepted->id == readings[i].tokens[0];
            if (branch.accepted && !passed) {
                return at(i, waits(*branch.accepted));
            }
            if (passed) {
                parts.back().records[0] = *branch.accepted;
            } else if (accept) {
                parts.back().records[0] = accepted_token(branch, readings[i].tokens[0], branch.picked);
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
            publish(parts[i]);
            if (samplers[i]) {
                sampler_changed(*parts[i].branch, std::move(samplers[i]), heard[i]);
            }
        }
        return {};
    });
}

Status branches_draw(ContextBox & box, const std::vector<BranchHandle> & branches, std::vector<Draw> & out) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        const llama_vocab * vocab = llama_model_get_vocab(box.model->ptr);
        if (Status status = check_apart(branches); !status.ok()) {
            return status;
        }
        out.clear();
        out.resize(branches.size());
        for (size_t i = 0; i < branches.size(); ++i) {
            BranchBox & branch = *branches[i];
            Draw & draw = out[i];
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
                draw.branch = branches[i];
                draw.old_sampler = branch.sampler;
                draw.row = branch.row;
                draw.biases = branch.biases;
                draw.position = branch.position();
                draw.sampler = sampler_to_change(branch);
                status = pick_with(branch, *draw.sampler, draw.picked);
            }
            if (status.ok()) {
                draw.ends = llama_vocab_is_eog(vocab, draw.picked.token);
                if (!draw.ends) {
                    status = sampler_accept(*draw.sampler, draw.picked.token);
                    draw.records.push_back(accepted_token(branch, draw.picked.token, draw.picked, !branch.shown));
                }
            }
            if (!status.ok()) {
                out.clear();
                return at(i, std::move(status));
            }
        }
        return {};
    });
}

Status draw_forced(ContextBox &, const Draw & draw, const std::vector<uint32_t> & after, size_t most,
                   Forced & out) noexcept {
    return draw.ends ? Status() : sampler_forced(*draw.sampler, after, most, out);
}

Status branches_verify(ContextBox & box, std::vector<Draw> & draws, const std::vector<Guesses> & guesses,
                       std::vector<std::vector<llama_token>> & out) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        if (!guesses.empty() && guesses.size() != draws.size()) {
            return Status(Code::invalid_argument,
                          text(guesses.size(), " lists of guesses for ", draws.size(), " branches"));
        }
        const llama_vocab * vocab = llama_model_get_vocab(box.model->ptr);
        std::vector<Part> parts;
        parts.reserve(draws.size());
        for (size_t i = 0; i < draws.size(); ++i) {
            Draw & draw = draws[i];
            Status status = check_branch(box, *draw.branch);
            if (status.ok() && (draw.branch->sampler != draw.old_sampler || draw.branch->row != draw.row ||
                                draw.branch->position() != draw.position || draw.branch->biases != draw.biases ||
                                draw.branch->accepted || draw.branch->ended)) {
                status = Status(Code::invalid_argument, "it has gone on since its token was drawn");
            }
            if (status.ok() && !draw.ends) {
                Part part{draw.branch.get(), {draw.picked.token}, draw.records};
                part.guesses = guesses.empty() ? nullptr : &guesses[i];
                // Only what a generator decides is judged by rejection sampling.
                const bool stream = part.guesses && part.guesses->ratio && stream_native(draw.sampler->leaves);
                for (size_t k = 0; status.ok() && part.guesses && k < part.guesses->tokens.size(); ++k) {
                    const llama_token token = part.guesses->tokens[k];
                    status = check_token(box, token);
                    if (status.ok() && llama_vocab_is_eog(vocab, token)) { // it would be picked, not read
                        part.ending = stream ? token : LLAMA_TOKEN_NULL;
                        break;
                    }
                    part.tokens.push_back(token);
                }
                part.draw = part.tokens.size() > 1 || part.ending != LLAMA_TOKEN_NULL ? &draw : nullptr;
                parts.push_back(std::move(part));
            }
            if (!status.ok()) {
                return at(i, std::move(status));
            }
        }
        std::vector<std::vector<llama_token>> made(draws.size());
        for (size_t i = 0; i < draws.size(); ++i) {
            made[i].reserve(1 + (guesses.empty() ? 0 : guesses[i].tokens.size()));
        }
        if (Status status = read_parts(box, parts); !status.ok()) {
            draws.clear(); // their samplers may have gone on
            return status;
        }
        for (Draw & draw : draws) { // so that the branch can use them again
            draw.old_sampler.reset();
            draw.row.reset();
        }
        auto part = parts.begin();
        for (size_t i = 0; i < draws.size(); ++i) {
            Draw & draw = draws[i];
            BranchBox & branch = *draw.branch;
            if (draw.ends) {
                made[i].push_back(draw.picked.token);
                branch.picked = draw.picked;
                branch.ended = true;
                branch.rest.reset();
                sampler_changed(branch, std::move(draw.sampler), LLAMA_TOKEN_NULL);
                continue;
            }
            for (const Token & token : part->records) {
                made[i].push_back(token.id);
            }
            publish(*part);
            sampler_changed(branch, std::move(draw.sampler),
                            part->records.size() == 1 ? std::optional(draw.picked.token) : std::nullopt);
            ++part;
        }
        draws.clear();
        out = std::move(made);
        return {};
    });
}

Status branches_step(ContextBox & box, const std::vector<BranchHandle> & branches,
                     std::vector<llama_token> & out) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        std::vector<Draw> draws;
        std::vector<std::vector<llama_token>> read;
        std::vector<llama_token> made;
        made.reserve(branches.size());
        Status status = branches_draw(box, branches, draws);
        if (status.ok()) {
            status = branches_verify(box, draws, {}, read);
        }
        if (status.ok()) {
            for (const std::vector<llama_token> & tokens : read) {
                made.push_back(tokens[0]);
            }
            out = std::move(made);
        }
        return status;
    });
}

} // namespace lloyal
