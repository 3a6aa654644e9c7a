#include "decode/decode.hpp"

#include "core/log.hpp"
#include "decode/hidden.hpp"
#include "decode/plan.hpp"
#include "state/checkpoint.hpp"

#include "llama-batch.h"
#include "llama-context.h"
#include "llama-kv-cache.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <stdexcept>

namespace lloyal {
namespace {

Status invalid(std::string message) {
    return Status(Code::invalid_batch, std::move(message));
}

// Contexts for embeddings, and those without a memory, give an output for every token whatever the batch says.
bool every_token_outputs(const ContextBox & box) {
    return !box.memory || box.ptr->get_cparams().embeddings;
}

// Values in an embedding row that the batch may carry.
int32_t batch_n_embd(const ContextBox & box, bool encoding) {
    const llama_hparams & hparams = box.model->ptr->hparams;
    return int32_t(
        encoding ? hparams.n_embd_inp_enc()
                 : llama_batch_ext_select_n_embd_inp(box.ptr->get_cparams().ctx_type, box.model->ptr->arch, hparams));
}

// Everything that makes llama_decode or llama_encode abort instead of returning an error, and what is cheap to name.
Status check_batch(const ContextBox & box, const Batch & batch, bool encoding, bool tenant) {
    const llama_context & context = *box.ptr;
    const size_t n = batch.size();
    const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(box.model->ptr));
    const int32_t n_embd = batch_n_embd(box, encoding);
    const int32_t n_seq_max = box.provenance.n_seq_max();
    if (n == 0) {
        return invalid("the batch is empty");
    }
    const bool causal = llama_get_causal_attn(&context);
    const bool whole = encoding || !causal || !box.memory; // what has no memory is encoded, whatever it is called with
    const uint32_t limit = whole ? llama_n_ubatch(&context) : llama_n_batch(&context);
    if (n > limit) {
        return invalid(text("the batch has ", n, " tokens, this context takes ", limit, " at once (",
                            whole ? "n_ubatch" : "n_batch", "): split it, or raise the limit"));
    }
    size_t n_outputs = n;
    if (!encoding && !every_token_outputs(box)) {
        n_outputs = 0;
        for (size_t i = 0; i < n; ++i) {
            n_outputs += batch.logits(i);
        }
    }
    if (const uint32_t most = context.get_cparams().n_outputs_max; n_outputs > most) {
        return invalid(text("the batch wants ", n_outputs, " outputs, this context was made for ", most,
                            " at once (n_outputs_max): ask for fewer, split it, or raise the limit"));
    }
    // Their graphs compute the logits of all tokens, and llama.cpp takes the first of them for those that were asked for.
    const llm_arch arch = box.model->ptr->arch;
    if (!encoding && (arch == LLM_ARCH_EAGLE3 || arch == LLM_ARCH_DFLASH) && n_outputs != 0 && n_outputs != n) {
        return invalid(text("the batch wants ", n_outputs, " outputs for ", n, " tokens, and ", llm_arch_name(arch),
                            " models give them for all or none: put the others in a batch of their own"));
    }
    if (batch.has_embd() && batch.n_embd() != n_embd) {
        return invalid(text("embedding rows have ", batch.n_embd(), " values, the model takes ", n_embd));
    }
    for (size_t i = 0; i < n; ++i) {
        if (batch.has_token()) {
            const llama_token token = batch.token(i);
            if (token < 0 || token >= n_vocab) {
                return invalid(text("token ", token, " at index ", i, " is outside the vocabulary of ", n_vocab));
            }
        }
        if (batch.has_embd()) {
            // It would outlive its sequence: unused rows of a cache, and new recurrent states, are made by multiplying with 0.
            const float * row = batch.embd(i);
            const float * bad = std::find_if_not(row, row + n_embd, [](float value) { return std::isfinite(value); });
            if (bad != row + n_embd) {
                return invalid(text("the embedding row at index ", i, " holds ", *bad, " at ", bad - row));
            }
        }
        if (batch.pos(i) < 0 || batch.pos(i) == INT32_MAX) {
            return invalid(text("position ", batch.pos(i), " at index ", i, " is not from 0 to ", INT32_MAX - 1));
        }
        if (box.map.n_pos_max >= 0 && batch.pos(i) >= box.map.n_pos_max) {
            return invalid(text("position ", batch.pos(i), " at index ", i,
                                " is past the model's learned position table of ", box.map.n_pos_max));
        }
        if (batch.n_seq(i) < 1) {
            return invalid(text("index ", i, " names no sequence"));
        }
        if (!box.samplers.empty() && batch.n_seq(i) > 1 && batch.logits(i)) {
            return invalid(text("index ", i, " wants an output for ", batch.n_seq(i),
                                " sequences: with samplers on the back end an output belongs to one"));
        }
        for (int32_t k = 0; k < batch.n_seq(i); ++k) {
            const SeqId seq = batch.seq(i, k);
            if (seq < 0 || seq >= n_seq_max) {
                return invalid(text("sequence ", seq, " at index ", i, ": this context has 0 to ", n_seq_max - 1,
                                    " (raise n_seq_max for more)"));
            }
            if (box.leases[seq] == Lease::checkpoint || (box.leases[seq] == Lease::tenant && !tenant)) {
                return Status(Code::no_lease, text("sequence ", seq, " at index ", i,
                                                   box.leases[seq] == Lease::tenant
                                                       ? " is leased: decode through its Tenancy"
                                                       : " holds the cells of a checkpoint: decode into another"));
            }
        }
    }
    return {};
}

// Positions must go on where a sequence stands; llama.cpp says so too, but only in its log.
Status check_positions(const ContextBox & box, const Batch & batch) {
    std::vector<Pos> next(size_t(box.provenance.n_seq_max()), -1);
    for (size_t i = 0; i < batch.size(); ++i) {
        for (int32_t k = 0; k < batch.n_seq(i); ++k) {
            const SeqId seq = batch.seq(i, k);
            if (next[seq] >= 0 || box.map.mrope) {
                continue;
            }
            const Pos pos_max = box.memory->seq_pos_max(seq);
            Pos first = batch.pos(i);
            for (size_t j = i + 1; j < batch.size(); ++j) {
                for (int32_t m = 0; m < batch.n_seq(j); ++m) {
                    first = batch.seq(j, m) == seq ? std::min(first, batch.pos(j)) : first;
                }
                if (batch.n_seq(j) == 1 && batch.seq(j, 0) == seq && batch.pos(j) > first) {
                    break; // ascending, as batches nearly always are
                }
            }
            next[seq] = pos_max + 1;
            if (pos_max >= 0 && first != pos_max + 1) {
                return invalid(text("sequence ", seq, " goes on at position ", pos_max + 1, ", the batch has ", first,
                                    ": seq_rm first to go back"));
            }
        }
    }
    return {};
}

void set_outputs(ContextBox & box, const Batch & batch, bool all) {
    box.drop_outputs();
    box.output_index.assign(batch.size(), -1);
    for (size_t i = 0; i < batch.size(); ++i) {
        if (all || batch.logits(i)) {
            box.output_index[i] = box.n_outputs++;
            if (!box.samplers.empty()) {
                box.output_seq.push_back(batch.seq(i, 0));
            }
        }
    }
}

// After a failure llama.cpp has taken back the rows of the ubatch that failed, but from one sequence of each token
// only, and a recurrent state (half written by then) not at all, or from a snapshot that was never taken.
void take_back(ContextBox & box, const Batch & batch, const std::vector<StateCell> & before) {
    const auto empty = [&box](SeqId seq) {
        box.memory->seq_rm(seq, -1, -1); // a hybrid's positions may be gone, and the state still there
        if (!box.provenance.of(seq).empty()) {
            box.provenance.edit(seq).clear();
        }
        box.map.reset_ring(seq);
    };
    // A state of another sequence may have been on its way to another cell.
    const std::vector<StateCell> after = box.map.state_cells();
    for (size_t seq = 0; seq < before.size(); ++seq) {
        // Or back to a snapshot, which is done for every state between those of the batch.
        if (before[seq].cell != after[seq].cell || before[seq].pending != after[seq].pending) {
            empty(SeqId(seq));
        }
    }
    for (size_t i = 0; i < batch.size(); ++i) {
        bool held = true;
        for (int32_t k = 0; k < batch.n_seq(i); ++k) {
            held = held && batch.pos(i) <= box.memory->seq_pos_max(batch.seq(i, k));
        }
        for (int32_t k = 0; k < batch.n_seq(i); ++k) {
            const SeqId seq = batch.seq(i, k);
            if (box.map.has_state()) {
                empty(seq);
            } else if (!held) {
                box.memory->seq_rm(seq, batch.pos(i), -1);
            }
        }
    }
    box.map.distrust_empty_cells();
}

// Give the decoded rows their ids. After an abort only the rows the memory really holds count.
void record(ContextBox & box, const Batch & batch, bool complete, const std::vector<StateCell> & before) {
    const int32_t n_seq_max = box.provenance.n_seq_max();
    std::vector<int32_t> n_tokens(size_t(n_seq_max), 0);
    bool coupled = false;
    std::vector<Pos> held(size_t(n_seq_max), -1);
    if (!complete) {
        for (SeqId seq = 0; seq < n_seq_max; ++seq) {
            held[seq] = box.memory->seq_pos_max(seq);
            if (box.provenance.of(seq).end() > held[seq] + 1) {
                box.provenance.edit(seq).erase(held[seq] + 1, POS_END);
            }
            if (!box.map.window_complete(box.provenance.of(seq),
                                         seq)) { // finished parts have taken cells before they went
                box.memory->seq_rm(seq, -1, -1);
                box.provenance.edit(seq).clear();
                held[seq] = -1;
            }
        }
    }
    std::vector<std::pair<SeqId, Pos>> repeated;
    for (size_t i = 0; i < batch.size(); ++i) {
        const SeqId first = batch.seq(i, 0);
        const Pos pos = batch.pos(i);
        if (!complete && pos > held[first]) {
            continue;
        }
        const Run run = box.provenance.write(first, pos);
        for (int32_t k = 0; k < batch.n_seq(i); ++k) {
            const SeqId seq = batch.seq(i, k);
            Runs & rows = box.provenance.edit(seq);
            if (pos < rows.end() && rows.overlaps(pos, pos + 1)) {
                repeated.emplace_back(seq, pos);
            } else {
                rows.insert(run);
            }
            ++n_tokens[seq];
            coupled = coupled || batch.n_seq(i) > 1;
        }
    }
    // Which of the rows at one position is which, nobody can tell (M-RoPE: an image that comes in parts): they are renamed
    // together whenever one is added.
    std::sort(repeated.begin(), repeated.end());
    repeated.erase(std::unique(repeated.begin(), repeated.end()), repeated.end());
    for (const auto & [seq, pos] : repeated) {
        const int64_t n = box.map.rows ? MemoryMap::n_rows(*box.map.rows, seq, pos, pos + 1) : 1;
        Runs & rows = box.provenance.edit(seq);
        rows.erase(pos, pos + 1);
        rows.merge(box.provenance.fresh_at(std::vector<Pos>(size_t(n), pos)));
    }
    // Contexts for embeddings, and tokens of several sequences, are split without regard to the rings.
    const int32_t n_ubatch = int32_t(llama_n_ubatch(box.ptr));
    const bool split = !complete || coupled || (every_token_outputs(box) && int64_t(batch.size()) > n_ubatch);
    box.map.update_rings(n_tokens, before, n_ubatch, split);
}

Status failure(const ContextBox & box, int32_t rc, const Batch & batch) {
    const std::string log = log_last();
    const char * kept =
        box.map.has_state()
            ? "a recurrent state cannot be taken back halfway, so the sequences it was computing, "
              "and those whose state was being moved for them, are empty now (see ctx.memory.seq_pos_max)"
            : "what was finished stays in the memory (see ctx.memory.seq_pos_max)";
    switch (rc) {
        case 1: return cache_full(batch);
        case 2: return Status(Code::aborted, text("the decode was aborted; ", kept), rc);
        case -1:
            return Status(Code::invalid_batch, "llama.cpp refused the batch" + (log.empty() ? "" : ": " + log), rc);
        default: return Status(Code::decode_failed, text("llama.cpp failed with code ", rc, "; ", kept), rc);
    }
}

// One call of llama.cpp, and what it did to the memory. `native` takes the batch.
template <typename Native> Status compute(ContextBox & box, Batch & batch, Native && native) {
    const std::vector<StateCell> before = box.map.state_cells();
    const bool keeps = box.memory && !box.map.shared;
    int32_t rc = 0;
    try {
        rc = native(batch);
    } catch (...) {
        // Planning a micro-batch failed: its rows have cells by then, and nothing in them.
        for (size_t i = 0; keeps && !box.map.has_state() && i < batch.size(); ++i) {
            for (int32_t k = 0; k < batch.n_seq(i); ++k) {
                box.memory->seq_rm(batch.seq(i, k), batch.pos(i), -1);
            }
        }
        if (keeps) {
            take_back(box, batch, before);
            record(box, batch, false, before);
        }
        throw;
    }
    if (rc == 1 && box.map.window) {
        // Cells that a fork shares are never reused by llama.cpp, however stale. Drop those and try again.
        WindowCells cells(box);
        drop_stale_window(box);
        rc = native(batch);
        if (rc == 1) {
            cells.put_back();
        }
    }
    const bool computed = rc == 0 || rc == 2 || rc < -1;
    if (keeps && computed) {
        if (rc != 0) {
            take_back(box, batch, before);
        }
        record(box, batch, rc == 0, before);
    }
    return rc == 0 ? Status() : failure(box, rc, batch);
}

template <typename Native> Status run_decode(ContextBox & box, Batch & batch, bool tenant, Native && native) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        if (!box.memory && llama_model_has_encoder(box.model->ptr)) {
            return Status(Code::unsupported, "this model has an encoder only: use encode()");
        }
        if (Status status = check_batch(box, batch, false, tenant); !status.ok()) {
            return status;
        }
        std::vector<Batch> slices;
        if (box.memory && !box.map.shared) {
            for (const auto check : {check_positions, check_coupled}) {
                if (Status status = check(box, batch); !status.ok()) {
                    return status;
                }
            }
            if (Status status = plan_decode(box, batch, slices); !status.ok()) {
                return status;
            }
        }
        if (box.model->ptr->arch == LLM_ARCH_T5) {
            for (size_t i = 0; i < batch.size(); ++i) {
                for (int32_t k = 0; k < batch.n_seq(i); ++k) {
                    const SeqId seq = batch.seq(i, k);
                    if (box.encoded.empty() || !box.encoded[size_t(seq)]) {
                        return invalid(text("sequence ", seq, " at index ", i,
                                            " has nothing to attend to: encode() its text first"));
                    }
                }
            }
        }
        log_mark();
        box.poll_after_us = llama_time_us() + 20'000; // a short step never asks Python
        box.drop_outputs();
        Status status;
        for (size_t i = 0; status.ok() && i < std::max(slices.size(), size_t(1)); ++i) {
            Batch & part = slices.empty() ? batch : slices[i];
            status = compute(box, part, native);
            if (status.ok() && box.hidden) {
                collect_hidden(box, part.size());
            }
        }
        if (status.ok()) {
            std::vector<float> hidden = std::move(box.hidden_rows); // setting the outputs drops them
            set_outputs(box, batch, every_token_outputs(box));
            box.hidden_rows = std::move(hidden);
            box.in_slices = !slices.empty();
            box.has_logits = box.graph_has_logits;
        }
        return status;
    });
}

template <typename Native> Status run_encode(ContextBox & box, const Batch & batch, Native && native) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        if (box.memory && !llama_model_has_encoder(box.model->ptr)) {
            return Status(Code::unsupported, "this model has no encoder: use decode()");
        }
        if (Status status = check_batch(box, batch, true, true); !status.ok()) {
            return status;
        }
        log_mark();
        box.poll_after_us = llama_time_us() + 20'000;
        box.drop_outputs();
        const bool causal = llama_get_causal_attn(box.ptr);
        int32_t rc = 0;
        try {
            rc = native();
        } catch (...) {
            llama_set_causal_attn(box.ptr, causal); // which encoding turns off for its time
            throw;
        }
        if (rc != 0) {
            return failure(box, rc, batch);
        }
        set_outputs(box, batch, true);
        box.has_logits = box.graph_has_logits && !box.memory;
        box.encoding = random_epoch();
        box.encoded.assign(size_t(box.provenance.n_seq_max()), false);
        for (size_t i = 0; i < batch.size(); ++i) {
            for (int32_t k = 0; k < batch.n_seq(i); ++k) {
                box.encoded[size_t(batch.seq(i, k))] = true;
            }
        }
        return {};
    });
}

uint32_t n_pos_per_row(const ContextBox & box) {
    return box.model->ptr->hparams.n_pos_per_embd();
}

} // namespace

Status decode(ContextBox & box, Batch & batch, bool tenant) noexcept {
    return run_decode(box, batch, tenant,
                      [&](Batch & part) { return llama_decode(box.ptr, part.view(n_pos_per_row(box))); });
}

Status encode(ContextBox & box, Batch & batch) noexcept {
    return run_encode(box, batch, [&] { return llama_encode(box.ptr, batch.view(n_pos_per_row(box))); });
}

Status process_decode(ContextBox & box, Batch & batch, bool tenant) noexcept {
    return run_decode(box, batch, tenant, [&](Batch & part) {
        return llama_process(box.ptr, LLAMA_PROCESS_TYPE_DECODE, native_batch(box, part).get());
    });
}

Status process_encode(ContextBox & box, const Batch & batch) noexcept {
    return run_encode(
        box, batch, [&] { return llama_process(box.ptr, LLAMA_PROCESS_TYPE_ENCODE, native_batch(box, batch).get()); });
}

int32_t process_n_embd(const ContextBox & box, bool encoding) {
    return batch_n_embd(box, encoding);
}

} // namespace lloyal
