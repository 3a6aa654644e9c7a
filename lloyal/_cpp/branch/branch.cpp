#include "branch/branch.hpp"

#include "branch/seat.hpp"
#include "decode/outputs.hpp"
#include "sample/sampler_state.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace lloyal {
namespace {

Status check_row(const BranchBox & branch) {
    return branch.row
               ? Status()
               : Status(Code::no_logits, branch.tokens->empty() ? "the branch has no logits: nothing was read yet"
                                                                : "the branch has no logits: read a token into it");
}

} // namespace

void BranchBox::be(const BranchBox & other) {
    tokens = other.tokens;
    hidden = other.hidden;
    row = other.row;
    shown.reset();
    rest = other.rest;
    spare_row.reset();
    sampler = other.sampler;
    spare.reset();
    first = other.first;
    biases = other.biases;
    seed = other.seed;
    picked = other.picked;
    accepted = other.accepted;
    model = other.model;
    sampling = other.sampling;
    ended = other.ended;
}

void BranchBox::count(const Token & token) {
    if (token.accepted && !std::isnan(token.log_prob)) {
        model.add(-token.log_prob);
        if (token.probability >= 0.0f) {
            sampling.add(-std::log(double(token.probability)));
        }
    }
}

Status check_token(const ContextBox & box, llama_token token) {
    return token >= 0 && size_t(token) < n_logits(box)
               ? Status()
               : Status(Code::invalid_argument, text("token ", token, " is outside the vocabulary of ", n_logits(box)));
}

Status check_branch(const ContextBox & box, const BranchBox & branch) {
    return branch.context.get() == &box ? Status()
                                        : Status(Code::invalid_argument, "the branch belongs to another context");
}

SamplerHandle sampler_to_change(BranchBox & branch) {
    SamplerBox & now = *branch.sampler;
    if (now.greedy) {
        return branch.sampler; // it remembers nothing
    }
    SamplerHandle copy = branch.spare.use_count() == 1 ? std::move(branch.spare) : nullptr;
    if (copy) {
        if (branch.spare_lacks) {
            follow_native(now.leaves, copy->leaves, *branch.spare_lacks);
        } else {
            copy_native(now.ptr, copy->ptr);
        }
        copy->searches.clear();
    } else {
        copy = std::make_shared<SamplerBox>(clone_native(now.ptr), now.models);
    }
    if (branch.seed) {
        reseed_native(copy->ptr, *branch.seed);
    }
    return copy;
}

void sampler_changed(BranchBox & branch, SamplerHandle changed, std::optional<llama_token> accepted) noexcept {
    if (changed != branch.sampler) {
        branch.spare = std::exchange(branch.sampler, std::move(changed));
        branch.spare_lacks = branch.seed ? std::nullopt : accepted; // new seeds are more than a pick
        branch.seed.reset();
        if (branch.spare.use_count() > 1 || !branch.spare->grammars.empty()) {
            branch.spare.reset(); // a fork's; or the rules would be copied all the same
        }
    }
}

void own_tokens(BranchBox & branch, size_t n) {
    if (branch.tokens.use_count() > 1) {
        branch.tokens = std::make_shared<Tokens>(*branch.tokens);
    }
    branch.tokens->make_room(n);
}

void own_hidden(BranchBox & branch) {
    if (!branch.hidden) {
        branch.hidden = std::make_shared<Hidden>();
    } else if (branch.hidden.use_count() > 1) {
        branch.hidden = std::make_shared<Hidden>(*branch.hidden);
    }
    branch.hidden->make_room();
}

Status pick_with(const BranchBox & branch, SamplerBox & sampler, Picked & out) {
    if (Status status = check_row(branch); !status.ok()) {
        return status;
    }
    static const std::vector<llama_logit_bias> none;
    Pcg64 * const stream = branch.rest && !branch.shown ? stream_native(sampler.leaves) : nullptr;
    if (const Chance * drawn = stream ? draw_one(branch.rest->chances, stream->uniform()) : nullptr) {
        out = {drawn->id, float(chance_of(branch.rest->all, drawn->id)), branch.rest->largest};
        return {};
    }
    if (KeyedSampler * keyed = keyed_native(sampler.leaves)) {
        keyed->position = uint64_t(branch.position()); // whatever has been read past the sampler
    }
    const Row & row = branch.shown ? *branch.shown : *branch.row;
    return pick_row(sampler, row.data(), int32_t(row.size()), branch.biases ? *branch.biases : none, out);
}

Token accepted_token(const BranchBox & branch, llama_token token, const Picked & picked, bool from_row) {
    Token record;
    record.id = token;
    record.accepted = true;
    record.probability = picked.token == token ? picked.probability : -1.0f;
    record.log_prob = std::numeric_limits<double>::quiet_NaN();
    if (branch.row && token >= 0 && size_t(token) < branch.row->size()) {
        const Row & row = *branch.row;
        record.log_prob = row[size_t(token)] - (from_row ? log_sum_exp(row.data(), row.size(), picked.largest)
                                                         : log_sum_exp(row.data(), row.size()));
    }
    return record;
}

Status branch_create(ContextHandle context, const SamplerHandle & sampler, BranchHandle & out) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        if (!context->memory || context->map.shared) {
            return Status(Code::unsupported, context->map.shared
                                                 ? "this context works on the memory of its parent: use the parent's"
                                                 : "this model keeps no memory from one token to the next");
        }
        auto made = std::make_shared<BranchBox>(context);
        if (sampler) {
            made->sampler = std::make_shared<SamplerBox>(clone_native(sampler->ptr), sampler->models);
            made->first = made->sampler;
        }
        out = std::move(made);
        return {};
    });
}

Status branch_fork(ContextBox & box, BranchBox & from, int64_t seed, BranchHandle & out) noexcept {
    return for_branch(box, from, [&]() -> Status {
        auto made = std::make_shared<BranchBox>(from.context);
        made->be(from);
        made->seat = from.seat;
        if (seed >= 0) {
            made->seed = uint32_t(seed);
        }
        out = std::move(made);
        return {};
    });
}

Status branch_assign(ContextBox & box, BranchBox & to, const BranchBox & from) noexcept {
    return for_branch(box, to, [&]() -> Status {
        if (Status status = check_branch(box, from); !status.ok()) {
            return status;
        }
        to.be(from);
        to.seat = from.seat ? from.seat : to.seat;
        return {};
    });
}

Status branch_note(ContextBox & box, BranchBox & from, BranchHandle & out) noexcept {
    return for_branch(box, from, [&]() -> Status {
        auto made = std::make_shared<BranchBox>(from.context);
        made->be(from);
        out = std::move(made);
        return {};
    });
}

Status branch_sample(ContextBox & box, BranchBox & branch, llama_token & out) noexcept {
    return for_branch(box, branch, [&]() -> Status {
        if (!branch.sampler) {
            return Status(Code::invalid_argument, "the branch has no sampler: set_sampling() first");
        }
        SamplerHandle sampler = sampler_to_change(branch);
        Picked picked;
        if (Status status = pick_with(branch, *sampler, picked); !status.ok()) {
            return status;
        }
        sampler_changed(branch, std::move(sampler), LLAMA_TOKEN_NULL);
        branch.rest.reset();
        branch.picked = picked;
        out = picked.token;
        return {};
    });
}

Status branch_accept(ContextBox & box, BranchBox & branch, llama_token token) noexcept {
    return for_branch(box, branch, [&]() -> Status {
        if (Status status = check_token(box, token); !status.ok()) {
            return status;
        }
        if (branch.accepted) {
            return Status(Code::invalid_argument, text("token ", branch.accepted->id,
                                                       " was accepted before and waits to be read: read it first"));
        }
        SamplerHandle sampler = branch.sampler ? sampler_to_change(branch) : nullptr;
        if (sampler) {
            if (Status status = sampler_accept(*sampler, token); !status.ok()) {
                return status;
            }
        }
        const Token record = accepted_token(branch, token, branch.picked);
        if (sampler) {
            sampler_changed(branch, std::move(sampler), token);
        }
        branch.accepted = record;
        return {};
    });
}

Status branch_rewind(ContextBox & box, BranchBox & branch, int32_t n, int32_t first_at) noexcept {
    return for_branch(box, branch, [&]() -> Status {
        if (n < 0 || n > branch.position()) {
            return Status(Code::invalid_argument,
                          text("n=", n, ": the branch has ", branch.position(), " tokens to take back"));
        }
        if (n == 0) {
            return {};
        }
        BranchBox before(branch.context);
        before.be(branch);
        const auto rest = std::make_shared<Tokens>(branch.tokens->first(branch.tokens->size() - size_t(n)));
        if (branch.sampler && !branch.sampler->greedy) {
            auto again = std::make_shared<SamplerBox>(clone_native(branch.first->ptr), branch.first->models);
            Status status;
            rest->each(size_t(std::max(first_at, 0)), [&](const Token & token) {
                if (token.accepted && status.ok()) {
                    status = sampler_accept(*again, token.id);
                }
            });
            if (!status.ok()) {
                return status;
            }
            carry_native(branch.sampler->ptr, again->ptr, true, false); // what was drawn is not drawn again
            branch.sampler = std::move(again);
            branch.spare.reset();
        }
        branch.tokens = rest;
        if (branch.hidden) {
            own_hidden(branch);
            branch.hidden->cut(branch.position());
        }
        branch.row.reset();
        branch.shown.reset();
        branch.rest.reset();
        branch.picked = {};
        branch.accepted.reset();
        branch.ended = false;
        branch.model = branch.sampling = {};
        rest->each(0, [&](const Token & token) { branch.count(token); });
        Status status = branch_compute_logits(box, branch);
        if (!status.ok()) {
            branch.be(before);
        }
        return status;
    });
}

Status branch_set_sampler(ContextBox & box, BranchBox & branch, const SamplerHandle & sampler,
                          const SamplerHandle & first, bool generators, bool grammars) noexcept {
    return for_branch(box, branch, [&]() -> Status {
        auto own = std::make_shared<SamplerBox>(clone_native(sampler->ptr), sampler->models);
        auto begin = std::make_shared<SamplerBox>(clone_native(first->ptr), first->models);
        if (branch.sampler) {
            carry_native(branch.sampler->ptr, own->ptr, generators, grammars);
            carry_native(branch.first->ptr, begin->ptr, false, grammars);
        }
        branch.sampler = std::move(own);
        branch.first = std::move(begin);
        branch.spare.reset();
        branch.rest.reset();
        if (!generators) {
            branch.seed.reset();
        }
        return {};
    });
}

Status branch_set_biases(ContextBox & box, BranchBox & branch, const std::vector<llama_logit_bias> & biases) noexcept {
    return for_branch(box, branch, [&]() -> Status {
        for (const llama_logit_bias & bias : biases) {
            if (Status status = check_token(box, bias.token); !status.ok()) {
                return status;
            }
            if (!(bias.bias < INFINITY)) {
                return Status(Code::invalid_argument, text("the bias of token ", bias.token, " is ", bias.bias,
                                                           ": only finite ones and -inf can be added"));
            }
        }
        branch.rest.reset();
        branch.biases = biases.empty() ? nullptr : std::make_shared<const std::vector<llama_logit_bias>>(biases);
        return {};
    });
}

Status branch_set_row(ContextBox & box, BranchBox & branch, const float * row, size_t n, bool show) noexcept {
    return for_branch(box, branch, [&]() -> Status {
        if (n == 0 && show) {
            branch.shown.reset();
            return {};
        }
        if (n != n_logits(box)) {
            return Status(Code::invalid_argument,
                          text("the row has ", n, " logits, the vocabulary ", n_logits(box), " tokens"));
        }
        branch.shown.reset();
        (show ? branch.shown : branch.row) = std::make_shared<const Row>(row, row + n);
        if (!show) {
            branch.picked = {};
            branch.rest.reset();
        }
        return {};
    });
}

Status branch_merge(ContextBox & box, BranchBox & branch, const std::vector<BranchHandle> & experts,
                    double alpha) noexcept {
    return for_branch(box, branch, [&]() -> Status {
        if (Status status = check_row(branch); !status.ok()) {
            return status;
        }
        auto merged = std::make_shared<Row>(*branch.row);
        for (size_t i = 0; i < experts.size(); ++i) {
            if (Status status = check_branch(box, *experts[i]); !status.ok()) {
                return status;
            }
            if (!experts[i]->row) {
                return Status(Code::no_logits, text("the expert at index ", i, " has no logits"));
            }
            for (size_t k = 0; k < merged->size(); ++k) {
                (*merged)[k] += float(alpha * double((*experts[i]->row)[k]));
            }
        }
        if (!experts.empty()) {
            branch.row = std::move(merged);
            branch.shown.reset();
            branch.rest.reset();
            branch.picked = {};
        }
        return {};
    });
}

Status branch_legal(ContextBox & box, const BranchBox & branch, Row & out) noexcept {
    return for_branch(box, branch, [&]() -> Status {
        if (Status status = check_row(branch); !status.ok()) {
            return status;
        }
        out = *branch.row;
        if (branch.biases) {
            for (const llama_logit_bias & bias : *branch.biases) {
                out[size_t(bias.token)] += bias.bias;
            }
        }
        return branch.sampler ? sampler_rule_out(*branch.sampler, out) : Status();
    });
}

Status branch_is_legal(ContextBox & box, const BranchBox & branch, llama_token token, bool & out) noexcept {
    return for_branch(box, branch, [&]() -> Status {
        if (Status status = check_row(branch); !status.ok()) {
            return status;
        }
        if (Status status = check_token(box, token); !status.ok()) {
            return status;
        }
        llama_token_data candidate = {token, (*branch.row)[size_t(token)], 0.0f};
        for (const llama_logit_bias & bias : branch.biases ? *branch.biases : std::vector<llama_logit_bias>()) {
            candidate.logit += bias.token == token ? bias.bias : 0.0f;
        }
        llama_token_data_array array = {&candidate, 1, -1, false};
        Status status = branch.sampler ? sampler_rule_out(*branch.sampler, array) : Status();
        out = candidate.logit > -INFINITY;
        return status;
    });
}

Status branch_top(ContextBox & box, const BranchBox & branch, size_t count, std::vector<LogProb> & out) noexcept {
    return for_branch(box, branch, [&]() -> Status {
        Status status = check_row(branch);
        if (status.ok()) {
            out = most_probable(branch.row->data(), branch.row->size(), count);
        }
        return status;
    });
}

Status branch_info(ContextBox & box, const BranchBox & branch, BranchInfo & out) noexcept {
    return for_branch(box, branch, [&]() -> Status {
        out = {};
        out.position = branch.position();
        if (const Seat * seat = branch.seat.get()) {
            out.seq = seat->seq;
            out.own = branch.seat.use_count() == 1;
            out.parked = seat->parked != nullptr;
            out.used_at = seat->used_at;
            out.seat = reinterpret_cast<size_t>(seat);
        }
        out.has_logits = branch.row != nullptr;
        out.ended = branch.ended;
        out.picked = branch.picked;
        out.model = branch.model;
        out.sampling = branch.sampling;
        return {};
    });
}

Status branch_tokens(ContextBox & box, const BranchBox & branch, size_t begin, std::vector<Token> & out) noexcept {
    return for_branch(box, branch, [&]() -> Status {
        out.clear();
        branch.tokens->each(begin, [&](const Token & token) { out.push_back(token); });
        return {};
    });
}

Status branch_token_ids(ContextBox & box, const BranchBox & branch, size_t begin,
                        std::vector<llama_token> & out) noexcept {
    return for_branch(box, branch, [&]() -> Status {
        out = branch.tokens->ids(begin, branch.tokens->size());
        return {};
    });
}

Status branch_row(ContextBox & box, const BranchBox & branch, std::shared_ptr<const Row> & out) noexcept {
    return for_branch(box, branch, [&]() -> Status {
        out = branch.row;
        return check_row(branch);
    });
}

Status branch_hidden(ContextBox & box, BranchBox & branch, const std::vector<int32_t> & layers, Pos begin, Pos & first,
                     std::vector<float> & out) noexcept {
    return for_branch(box, branch, [&]() -> Status {
        out.clear();
        first = branch.position();
        if (!branch.hidden || branch.hidden->end() != branch.position() || branch.hidden->sources()->layers != layers) {
            return {};
        }
        const Pos from = std::min(std::max(begin, branch.hidden->begin()), branch.position());
        branch.hidden->copy(from, out);
        first = from;
        if (begin > branch.hidden->begin()) {
            own_hidden(branch);
            branch.hidden->drop(begin);
        }
        return {};
    });
}

Status branch_sampler_state(ContextBox & box, const BranchBox & branch, std::vector<uint8_t> & out) noexcept {
    return for_branch(box, branch, [&]() -> Status {
        out.clear();
        if (branch.sampler) {
            save_native(branch.sampler->ptr, out);
        }
        return {};
    });
}

} // namespace lloyal
