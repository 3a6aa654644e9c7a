#include "sample/sampler_backend.hpp"

#include "core/fence.hpp"
#include "core/log.hpp"
#include "sample/sampler_types.hpp"

#include <algorithm>

namespace lloyal {
namespace {

// llama.cpp tries a chain out on this many candidates in a graph of 2048 tensors before it attaches it.
constexpr int32_t MAX_CANDIDATES = 128 * 1024;
constexpr int32_t MAX_SAMPLERS = 32;

Status refused(std::string message) {
    return Status(Code::invalid_argument, std::move(message));
}

// Everything about a chain that makes llama.cpp abort, or sample something else, once it runs on a back end.
Status check_attachable(const ContextBox & context, SamplerBox & box) {
    if (sampler_type(box.ptr) != SamplerType::chain) {
        return refused(
            text("a ", llama_sampler_name(box.ptr), " sampler cannot run on a back end alone: put it into a chain"));
    }
    const int32_t n = llama_sampler_chain_n(box.ptr);
    if (n == 0 || n > MAX_SAMPLERS) {
        return refused(text("the chain has ", n, " samplers, a back end takes 1 to ", MAX_SAMPLERS));
    }
    const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(context.model->ptr));
    int32_t n_left = n_vocab;
    bool ordered = true;
    const char * picked = nullptr;
    for (int32_t i = 0; i < n; ++i) {
        const llama_sampler * link = llama_sampler_chain_get(box.ptr, i);
        const SamplerType type = sampler_type(link);
        if (type == SamplerType::chain) {
            return refused(text("sampler ", i, " is a chain: llama.cpp would run half of it, use one flat chain"));
        }
        if (!link->iface->backend_init) {
            return {}; // from here on it runs on the CPU
        }
        const BackendEffect effect = sampler_backend_effect(link);
        const char * name = llama_sampler_name(link);
        if (effect.n_vocab > 0 && effect.n_vocab != n_vocab) {
            return refused(text(name, " was made for a vocabulary of ", effect.n_vocab, ", this model has ", n_vocab));
        }
        if (type == SamplerType::top_k && effect.n_candidates > std::min(n_left, MAX_CANDIDATES)) {
            return refused(text(name, "(", effect.n_candidates, ") runs on a back end only with k up to ",
                                std::min(n_left, MAX_CANDIDATES), ", the candidates it gets"));
        }
        if (!ordered && (type == SamplerType::greedy || type == SamplerType::logit_bias)) {
            return refused(text("on a back end ", name,
                                " takes candidate i for token i, which top_k, top_p and temp(0) before it make wrong: "
                                "put it before them",
                                type == SamplerType::greedy ? ", or use llama_dist" : ""));
        }
        if (type == SamplerType::greedy || type == SamplerType::llama_dist) {
            // The graph computes the last pick only: what the other would read is never allocated.
            if (picked) {
                return refused(text("sampler ", i, ", ", name, ", picks a token after ", picked,
                                    " has: a back end takes one of them"));
            }
            picked = name;
        }
        if (n_left == 1 && type == SamplerType::temp_ext) {
            return refused("on a back end temp_ext needs more than one candidate");
        }
        ordered = ordered && effect.keeps_order;
        n_left = effect.n_candidates >= 0 ? std::min(n_left, effect.n_candidates) : n_left;
    }
    return {};
}

// The chain that runs for a sequence lets go; its sampler becomes an ordinary one again at its next use.
Status detach(ContextBox & context, SeqId seq) {
    const auto found = context.samplers.find(seq);
    if (found == context.samplers.end()) {
        return {};
    }
    SamplerBox & box = *found->second;
    if (!sampler_enter(box)) {
        return Status(Code::busy, text("another thread is inside the sampler of sequence ", seq));
    }
    llama_set_sampler(context.ptr, seq, nullptr);
    box.attached.reset();
    sampler_leave(box);
    context.samplers.erase(found);
    return {};
}

} // namespace

Status context_set_sampler(const ContextHandle & handle, SeqId seq, const SamplerHandle & sampler) noexcept {
    ContextBox & context = *handle;
    // Planning the graph asserts on what some chains make of their candidates.
    return fenced(Input::text, Code::unsupported, [&]() -> Status {
        Status bad;
        if (!valid_seq(context, seq, "seq_id", bad)) {
            return bad;
        }
        if (sampler) {
            if (Status status = sampler_settle(*sampler); !status.ok()) {
                return status;
            }
            if (sampler->was_attached) {
                return refused("a context runs this chain already: attach a clone()");
            }
            if (Status status = check_attachable(context, *sampler); !status.ok()) {
                return status;
            }
        }
        log_mark();
        llama_synchronize(context.ptr);
        context.drop_outputs(); // their layout depends on the samplers
        if (Status status = detach(context, seq); !status.ok()) {
            return status;
        }
        if (sampler) {
            sampler->was_attached = true; // llama.cpp has touched it, whatever comes of it
            if (!llama_set_sampler(context.ptr, seq, sampler->ptr)) {
                return Status(Code::unsupported, "llama.cpp cannot run this chain on the back end: " + log_last());
            }
            sampler->attached = handle;
            context.samplers[seq] = sampler;
        }
        try {
            context_reserve(context);
        } catch (...) {
            detach(context, seq);
            throw;
        }
        return {};
    });
}

Status backend_output(ContextBox & context, int32_t i, BackendSample & out) noexcept {
    return guarded(Code::no_logits, [&]() -> Status {
        int32_t row = 0;
        if (Status status = output_index(context, i, row); !status.ok()) {
            return status;
        }
        out = {};
        if (context.samplers.find(output_seq(context, row)) == context.samplers.end()) {
            return {};
        }
        out.token = llama_get_sampled_token_ith(context.ptr, i);
        out.logits = llama_get_sampled_logits_ith(context.ptr, i);
        out.probs = llama_get_sampled_probs_ith(context.ptr, i);
        out.ids = llama_get_sampled_candidates_ith(context.ptr, i);
        out.n = llama_get_sampled_logits_count_ith(context.ptr, i);
        if (out.probs) {
            out.n = std::min<size_t>(out.n, llama_get_sampled_probs_count_ith(context.ptr, i));
        }
        return {};
    });
}

Status backend_sample(const SamplerBox & sampler, ContextBox & context, int32_t i, BackendSample & out) noexcept {
    return guarded(Code::no_logits, [&]() -> Status {
        int32_t row = 0;
        if (Status status = output_index(context, i, row); !status.ok()) {
            return status;
        }
        const SeqId seq = output_seq(context, row);
        const auto found = context.samplers.find(seq);
        if (found != context.samplers.end() && found->second.get() != &sampler) {
            return refused(text("output ", i, " was sampled on the back end by the chain of sequence ", seq,
                                ": go on with that one"));
        }
        if (found == context.samplers.end()) {
            out = {};
            return sampler.was_attached
                       ? refused(text("this chain runs on the back end for another sequence than that of output ", i,
                                      ": use a clone()"))
                       : Status();
        }
        return backend_output(context, i, out);
    });
}

Status read_sample(ContextBox & box, int32_t i, llama_token & token, std::vector<llama_token> & ids, Output & logits,
                   Output & probs) noexcept {
    return guarded(Code::no_logits, [&]() -> Status {
        BackendSample found;
        Status status = backend_output(box, i, found);
        if (status.ok()) {
            token = found.token;
            if (found.ids) {
                ids.assign(found.ids, found.ids + found.n);
            }
            logits = {found.logits, found.n, box.generation};
            probs = {found.probs, found.n, box.generation};
        }
        return status;
    });
}

} // namespace lloyal
