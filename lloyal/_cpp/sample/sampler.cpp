#include "sample/sampler.hpp"

#include "core/budget.hpp"
#include "core/kept_room.hpp"
#include "decode/largest.hpp"
#include "decode/outputs.hpp"
#include "sample/sampler_backend.hpp"
#include "sample/sampler_grammar.hpp"
#include "sample/sampler_state.hpp"
#include "sample/sampler_types.hpp"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

namespace lloyal {
namespace {

constexpr int32_t MAX_CHAIN_DEPTH = 16; // llama.cpp walks nested chains by recursion

Status refused(std::string message) {
    return Status(Code::invalid_argument, std::move(message));
}

bool is_chain(const SamplerBox & box) {
    return sampler_type(box.ptr) == SamplerType::chain;
}

// A chain that a back end ran and does not any more cannot be used as it is.
void settle(SamplerBox & box) {
    if (box.was_attached && box.attached.expired()) {
        llama_sampler * fresh = clone_native(box.ptr);
        llama_sampler_free(box.ptr);
        box.hold(fresh);
        box.was_attached = false;
    }
}

Status check_chain(SamplerBox & box, bool changes) {
    settle(box);
    if (!is_chain(box)) {
        return refused(text("this is a ", llama_sampler_name(box.ptr), " sampler, not a chain"));
    }
    if (changes && box.was_attached) {
        return refused(
            "a context runs this chain on its back end, it cannot change now: ctx.set_sampler(seq_id, None) first");
    }
    return {};
}

Status check_index(const SamplerBox & box, int32_t i) {
    const int32_t n = llama_sampler_chain_n(box.ptr);
    return i >= 0 && i < n ? Status() : refused(text("index ", i, ": the chain has ", n, " samplers"));
}

std::string named(const llama_vocab * vocab, llama_token token) {
    char piece[64];
    const int32_t n = llama_token_to_piece(vocab, token, piece, sizeof(piece), 0, true);
    return text("token ", token, n > 0 ? " ('" + std::string(piece, size_t(n)) + "')" : std::string());
}

// llama.cpp throws or aborts on a token that a grammar does not allow, and is of no use afterwards.
Status check_grammars(const SamplerBox & box, llama_token token) {
    for (llama_sampler * grammar : box.grammars) {
        const GrammarPhase phase = grammar_phase(grammar);
        if (phase.dead) {
            return refused("the grammar is at a dead end: reset() the sampler");
        }
        if (phase.waiting) {
            continue;
        }
        llama_token_data candidate = {token, 0.0f, 0.0f};
        llama_token_data_array array = {&candidate, 1, -1, false};
        llama_sampler_apply(grammar, &array);
        if (candidate.logit != 0.0f) {
            return refused("the grammar does not allow " + named(phase.vocab, token) + " here");
        }
    }
    return {};
}

// All grammars of the chain, or none: the last one goes back by itself if it fails.
void accept_grammars(SamplerBox & box, llama_token token) {
    std::vector<uint8_t> before;
    if (box.grammars.size() > 1) {
        save_native(box.ptr, before);
    }
    if (box.searches.empty()) {
        for (const llama_sampler * grammar : box.grammars) {
            box.searches.push_back(grammar_searches(grammar));
        }
    }
    try {
        for (size_t i = 0; i < box.grammars.size(); ++i) {
            grammar_accept(box.grammars[i], box.searches[i], token);
        }
    } catch (...) {
        box.searches.clear(); // they may have read the token
        if (!before.empty()) {
            load_native(box.ptr, before.data(), before.size());
        }
        throw;
    }
}

Status accept_token(SamplerBox & box, llama_token token) {
    if (!box.grammars.empty()) {
        bool waiting = false;
        for (const llama_sampler * grammar : box.grammars) {
            waiting = waiting || grammar_phase(grammar).waiting;
        }
        Status status;
        try {
            status = budgeted(grammar_budget(1), Code::invalid_grammar, [&]() -> Status {
                if (Status refusal = check_grammars(box, token); !refusal.ok()) {
                    return refusal;
                }
                accept_grammars(box, token);
                return {};
            });
        } catch (const std::runtime_error & e) {
            // The trigger of a lazy grammar may start it on text it does not allow.
            status = refused((waiting ? "the text after the grammar's trigger does not match the grammar ("
                                      : "the grammar does not allow this (") +
                             named(grammar_phase(box.grammars[0]).vocab, token) + "): " + e.what());
        }
        if (!status.ok()) {
            return status;
        }
    }
    const GrammarsAside accepted(box.grammars);
    llama_sampler_accept(box.ptr, token);
    return {};
}

// `body`, which applies samplers to `n` candidates: grammars hold each against everywhere they stand.
template <typename F> Status within_budget(const SamplerBox & box, size_t n, F && body) {
    const auto run = [&]() -> Status {
        body();
        return {};
    };
    return box.grammars.empty() ? run() : budgeted(grammar_budget(n), Code::invalid_grammar, run);
}

Status check_token(const SamplerBox & box, llama_token token) {
    if (token < 0 || (box.n_vocab > 0 && token >= box.n_vocab)) {
        return refused(box.n_vocab > 0 ? text("token ", token, " is outside the sampler's vocabulary of ", box.n_vocab)
                                       : text("token ", token, " is negative"));
    }
    return {};
}

Status check_alive(const SamplerBox & box) {
    for (const llama_sampler * grammar : box.grammars) {
        if (grammar_phase(grammar).dead) {
            return refused("the grammar is at a dead end: reset() the sampler");
        }
    }
    return {};
}

Status ruled_out() {
    return refused(
        "no token is left: grammars and biases rule out all, or all that were left to the sampler that picks");
}

// What the chain has picked among candidates.
Status read_picked(const SamplerBox & box, const llama_token_data_array & array, Picked & out, Chances * left) {
    if (array.selected < 0 || size_t(array.selected) >= array.size) {
        const bool any = std::any_of(array.data, array.data + array.size,
                                     [](const llama_token_data & candidate) { return candidate.logit > -INFINITY; });
        return !any ? ruled_out()
                    : refused(text(
                          "the ", llama_sampler_name(box.ptr),
                          " picks no token: end the chain with greedy, dist, mirostat, mirostat_v2 or adaptive_p"));
    }
    const llama_token_data & picked = array.data[array.selected];
    if (!(picked.logit > -INFINITY)) {
        return ruled_out();
    }
    out.token = picked.id;
    out.probability = picked.p > 0.0f ? picked.p : 1.0f; // greedy does not say
    if (left) {
        left->clear();
        const bool draws = sampler_draws(box.leaves.back());
        for (size_t i = 0; i < array.size; ++i) {
            if (draws && array.data[i].p > 0.0f) {
                left->push_back({array.data[i].id, array.data[i].p});
            }
        }
        if (left->empty()) {
            left->push_back({out.token, 1.0});
        }
    }
    return {};
}

// Let the chain pick among candidates.
Status pick(SamplerBox & box, llama_token_data_array array, Picked & out, Chances * left = nullptr) {
    Status status = check_alive(box);
    if (status.ok()) {
        status = within_budget(box, array.size, [&] { llama_sampler_apply(box.ptr, &array); });
    }
    return status.ok() ? read_picked(box, array, out, left) : status;
}

// The same from a row of finite logits, among few of its tokens: `done` if that can be.
Status pick_of_few(SamplerBox & box, const float * row, size_t n, const std::vector<llama_logit_bias> & biases,
                   std::vector<llama_token_data> & room, Picked & out, bool & done, Chances * left) {
    done = false;
    if (box.was_attached || box.beginning.n_kept == 0) {
        return {};
    }
    if (Status status = check_alive(box); !status.ok()) {
        return status;
    }
    llama_token_data_array array = {};
    Status status = within_budget(box, n, [&] {
        if (shortlist(box.leaves, box.beginning, row, n, biases, room)) {
            array = {room.data(), room.size(), -1, false};
            for (size_t i = box.beginning.n_samplers; i < box.leaves.size(); ++i) {
                llama_sampler_apply(box.leaves[i], &array);
            }
            done = true;
        }
    });
    return status.ok() && done ? read_picked(box, array, out, left) : status;
}

using Candidates = KeptRoom<std::vector<llama_token_data>>;

Status check_vocab(const SamplerBox & box, int32_t n_vocab) {
    return box.n_vocab == 0 || n_vocab <= box.n_vocab ? Status()
                                                      : refused(text("the sampler was made for a vocabulary of ",
                                                                     box.n_vocab, ", these logits are of ", n_vocab));
}

Status not_finite(const char * what) {
    return Status(Code::decode_failed, text(what, " hold NaN or +inf: nothing can be sampled from them"));
}

} // namespace

SamplerBox::SamplerBox(llama_sampler * sampler, std::vector<ModelHandle> parents) : models(std::move(parents)) {
    ++live_counts().samplers;
    hold(sampler);
}

SamplerBox::~SamplerBox() {
    llama_sampler_free(ptr);
    --live_counts().samplers;
}

void SamplerBox::hold(llama_sampler * sampler) {
    ptr = sampler;
    grammars.clear();
    searches.clear();
    n_vocab = 0;
    leaves = sampler_leaves(sampler);
    beginning = sampler_times(sampler) ? Beginning{} : beginning_of(leaves);
    greedy = leaves.size() == 1 && sampler_type(leaves[0]) == SamplerType::greedy;
    for (llama_sampler * leaf : leaves) {
        if (sampler_type(leaf) == SamplerType::grammar) {
            grammars.push_back(leaf);
        }
        if (const int32_t n = sampler_n_vocab(leaf); n > 0) {
            n_vocab = n_vocab == 0 ? n : std::min(n_vocab, n);
        }
    }
}

Status sampler_settle(SamplerBox & box) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        settle(box);
        return {};
    });
}

Status sample(SamplerBox & box, ContextBox & context, int32_t i, llama_token & out) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        settle(box);
        if (box.was_attached || !context.samplers.empty()) {
            BackendSample found;
            if (Status status = backend_sample(box, context, i, found); !status.ok()) {
                return status;
            }
            if (found.token != LLAMA_TOKEN_NULL) {
                out = found.token;
                return accept_token(box, out);
            }
            if (found.n > 0) {
                Candidates candidates;
                std::vector<llama_token_data> & room = candidates.value;
                room.resize(found.n);
                for (size_t k = 0; k < found.n; ++k) {
                    room[k] = {found.ids[k], found.logits[k], found.probs ? found.probs[k] : 0.0f};
                }
                Picked picked;
                Status status = pick(box, {room.data(), found.n, -1, false}, picked);
                out = picked.token;
                return status.ok() ? accept_token(box, out) : status;
            }
        }
        const float * row = nullptr;
        if (Status status = find_logits(context, i, row); !status.ok()) {
            return status;
        }
        return sample_row(box, row, llama_vocab_n_tokens(llama_model_get_vocab(context.model->ptr)), out);
    });
}

Status sample_row(SamplerBox & box, const float * row, int32_t n_vocab, llama_token & out) noexcept {
    Picked picked;
    Status status = pick_row(box, row, n_vocab, {}, picked);
    if (!status.ok()) {
        return status;
    }
    out = picked.token;
    return guarded(Code::invalid_argument, [&] { return accept_token(box, out); });
}

Status pick_row(SamplerBox & box, const float * row, int32_t n_vocab, const std::vector<llama_logit_bias> & biases,
                Picked & out, Chances * left) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        settle(box);
        if (Status status = check_vocab(box, n_vocab); !status.ok()) {
            return status;
        }
        const Largest best = largest(row, size_t(n_vocab));
        out.largest = best.value;
        if (box.greedy && biases.empty()) { // the array of candidates would cost ten times the search
            if (!best.finite) {
                return not_finite("the logits");
            }
            if (!(best.value > -INFINITY)) {
                return ruled_out();
            }
            out.token = llama_token(best.index);
            if (left) {
                left->assign(1, {out.token, 1.0});
            }
            return {};
        }
        bool finite = best.finite;
        for (const llama_logit_bias & bias : biases) {
            finite &= row[bias.token] + bias.bias < INFINITY;
        }
        if (!finite) {
            return not_finite(biases.empty() ? "the logits" : "the logits, or the logits with their biases,");
        }
        Candidates candidates;
        std::vector<llama_token_data> & room = candidates.value;
        bool done = false;
        Status status = pick_of_few(box, row, size_t(n_vocab), biases, room, out, done, left);
        if (done || !status.ok()) {
            return status;
        }
        room.resize(size_t(n_vocab));
        for (int32_t token = 0; token < n_vocab; ++token) {
            room[size_t(token)] = {token, row[token], 0.0f};
        }
        for (const llama_logit_bias & bias : biases) {
            room[size_t(bias.token)].logit += bias.bias;
        }
        return pick(box, {room.data(), size_t(n_vocab), -1, false}, out, left);
    });
}

Status sampler_rule_out(SamplerBox & box, llama_token_data_array & array) noexcept {
    if (box.grammars.empty()) {
        return {};
    }
    return budgeted(grammar_budget(array.size), Code::invalid_grammar, [&]() -> Status {
        Status status = check_alive(box);
        for (llama_sampler * grammar : box.grammars) {
            if (status.ok()) {
                llama_sampler_apply(grammar, &array);
            }
        }
        return status;
    });
}

Status sampler_rule_out(SamplerBox & box, std::vector<float> & row) noexcept {
    if (box.grammars.empty()) {
        return {};
    }
    return guarded(Code::invalid_grammar, [&]() -> Status {
        Candidates candidates;
        std::vector<llama_token_data> & room = candidates.value;
        room.resize(row.size());
        for (size_t token = 0; token < row.size(); ++token) {
            room[token] = {llama_token(token), row[token], 0.0f};
        }
        llama_token_data_array array = {room.data(), room.size(), -1, false};
        if (Status status = sampler_rule_out(box, array); !status.ok()) {
            return status;
        }
        for (size_t k = 0; k < array.size; ++k) {
            row[size_t(array.data[k].id)] = array.data[k].logit;
        }
        return {};
    });
}

Status sampler_apply(SamplerBox & box, llama_token_data_array & array) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        settle(box);
        if (box.was_attached) {
            return refused(
                "a context runs this chain on its back end, where llama.cpp would skip it here: apply a clone()");
        }
        if (array.size == 0) {
            return refused("there are no candidates");
        }
        for (size_t k = 0; k < array.size; ++k) {
            if (!(array.data[k].logit < INFINITY)) {
                return refused(text("the logit of candidate ", k, " is ", array.data[k].logit,
                                    ": only finite ones and -inf can be sampled from"));
            }
            if (Status status = check_token(box, array.data[k].id); !status.ok()) {
                return status;
            }
        }
        if (Status status = check_alive(box); !status.ok()) {
            return status;
        }
        return within_budget(box, array.size, [&] { llama_sampler_apply(box.ptr, &array); });
    });
}

Status sampler_accept(SamplerBox & box, llama_token token) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        settle(box);
        if (Status status = check_token(box, token); !status.ok()) {
            return status;
        }
        return accept_token(box, token);
    });
}

Status sampler_reset(SamplerBox & box) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        settle(box);
        for (llama_sampler * grammar : box.grammars) {
            grammar_reset(grammar);
        }
        const GrammarsAside done(box.grammars);
        llama_sampler_reset(box.ptr);
        box.searches.clear();
        return {};
    });
}

Status sampler_clone(SamplerBox & box, SamplerHandle & out) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        settle(box);
        out = std::make_shared<SamplerBox>(clone_native(box.ptr), box.models);
        return {};
    });
}

Status sampler_copy(SamplerBox & from, SamplerBox & to) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        settle(from);
        settle(to);
        if (sampler_config(from.ptr) != sampler_config(to.ptr)) {
            return refused(text("the state of a ", llama_sampler_name(from.ptr),
                                " can only be copied to one with the same samplers and parameters"));
        }
        copy_native(from.ptr, to.ptr);
        to.searches.clear();
        return {};
    });
}

Status sampler_get_state(SamplerBox & box, std::vector<uint8_t> & out) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        settle(box);
        out.clear();
        save_native(box.ptr, out);
        return {};
    });
}

Status sampler_set_state(SamplerBox & box, const uint8_t * data, size_t size) noexcept {
    return guarded(Code::state_mismatch, [&]() -> Status {
        settle(box);
        // Read into a copy first: a damaged state must not leave half of itself behind.
        const std::unique_ptr<llama_sampler, decltype(&llama_sampler_free)> trial(clone_native(box.ptr),
                                                                                  llama_sampler_free);
        if (Status status = load_native(trial.get(), data, size); !status.ok()) {
            return status;
        }
        copy_native(trial.get(), box.ptr);
        box.searches.clear();
        return {};
    });
}

Status chain_init(bool no_perf, SamplerHandle & out) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        llama_sampler_chain_params params = llama_sampler_chain_default_params();
        params.no_perf = no_perf;
        out = std::make_shared<SamplerBox>(llama_sampler_chain_init(params), std::vector<ModelHandle>());
        return {};
    });
}

Status chain_add(SamplerBox & chain, SamplerBox & link) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        if (Status status = check_chain(chain, true); !status.ok()) {
            return status;
        }
        settle(link);
        if (sampler_depth(link.ptr) >= MAX_CHAIN_DEPTH) {
            return refused(text("chains inside chains go ", MAX_CHAIN_DEPTH, " deep at most"));
        }
        chain.models.insert(chain.models.end(), link.models.begin(), link.models.end());
        llama_sampler_chain_add(chain.ptr, std::exchange(link.ptr, nullptr));
        chain.hold(chain.ptr);
        return {};
    });
}

Status chain_n(SamplerBox & chain, int32_t & n) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        if (Status status = check_chain(chain, false); !status.ok()) {
            return status;
        }
        n = llama_sampler_chain_n(chain.ptr);
        return {};
    });
}

Status chain_get(SamplerBox & chain, int32_t i, SamplerHandle & out) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        if (Status status = check_chain(chain, false); !status.ok()) {
            return status;
        }
        if (Status status = check_index(chain, i); !status.ok()) {
            return status;
        }
        out = std::make_shared<SamplerBox>(clone_native(llama_sampler_chain_get(chain.ptr, i)), chain.models);
        return {};
    });
}

Status chain_remove(SamplerBox & chain, int32_t i, SamplerHandle & out) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        if (Status status = check_chain(chain, true); !status.ok()) {
            return status;
        }
        if (Status status = check_index(chain, i); !status.ok()) {
            return status;
        }
        out = std::make_shared<SamplerBox>(llama_sampler_chain_remove(chain.ptr, i), chain.models);
        chain.hold(chain.ptr);
        return {};
    });
}

Status chain_perf(SamplerBox & chain, bool reset, llama_perf_sampler_data & out) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        if (Status status = check_chain(chain, false); !status.ok()) {
            return status;
        }
        out = llama_perf_sampler(chain.ptr);
        if (reset) {
            llama_perf_sampler_reset(chain.ptr);
        }
        return {};
    });
}

Status sampler_name(SamplerBox & box, std::string & out) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        out = llama_sampler_name(box.ptr);
        return {};
    });
}

Status sampler_seed_used(SamplerBox & box, bool & found, uint32_t & seed) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        found = sampler_seed(box.ptr, seed);
        return {};
    });
}

} // namespace lloyal
