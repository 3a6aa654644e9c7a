#include "decode.hpp"

#include "log.hpp"

#include "llama-context.h"
#include "llama-model.h"

#include <algorithm>

namespace lloyal {
namespace {

Status invalid(std::string message) {
    return Status(Code::invalid_batch, std::move(message));
}

// Everything that makes llama_decode or llama_encode abort instead of returning an error, and what is cheap to name.
Status check_batch(const ContextBox & box, const Batch & batch, bool encoding) {
    const llama_context & context = *box.ptr;
    const size_t n = batch.size();
    const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(box.model->ptr));
    const int32_t n_embd = llama_model_n_embd_inp(box.model->ptr);
    const int32_t n_seq_max = box.provenance.n_seq_max();
    if (n == 0) {
        return invalid("the batch is empty");
    }
    const bool causal = llama_get_causal_attn(&context);
    const uint32_t limit = encoding || !causal ? llama_n_ubatch(&context) : llama_n_batch(&context);
    if (n > limit) {
        return invalid(text("the batch has ", n, " tokens, this context takes ", limit, " at once (",
                            encoding || !causal ? "n_ubatch" : "n_batch", "): split it, or raise the limit"));
    }
    if (batch.has_embd() && batch.n_embd() != n_embd) {
        return invalid(text("embedding rows have ", batch.n_embd(), " values, the model takes ", n_embd));
    }
    for (size_t i = 0; i < n; ++i) {
        if (!batch.has_embd()) {
            const llama_token token = batch.token(i);
            if (token < 0 || token >= n_vocab) {
                return invalid(text("token ", token, " at index ", i, " is outside the vocabulary of ", n_vocab));
            }
        }
        if (batch.pos(i) < 0) {
            return invalid(text("position ", batch.pos(i), " at index ", i, " is negative"));
        }
        if (box.map.n_pos_max >= 0 && batch.pos(i) >= box.map.n_pos_max) {
            return invalid(text("position ", batch.pos(i), " at index ", i, " is past the model's learned position table of ",
                                box.map.n_pos_max));
        }
        if (batch.n_seq(i) < 1) {
            return invalid(text("index ", i, " names no sequence"));
        }
        for (int32_t k = 0; k < batch.n_seq(i); ++k) {
            const SeqId seq = batch.seq(i, k);
            if (seq < 0 || seq >= n_seq_max) {
                return invalid(text("sequence ", seq, " at index ", i, ": this context has 0 to ", n_seq_max - 1,
                                    " (raise n_seq_max for more)"));
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
    ++box.generation;
    box.output_row.assign(batch.size(), -1);
    box.n_outputs = 0;
    for (size_t i = 0; i < batch.size(); ++i) {
        if (all || batch.logits(i)) {
            box.output_row[i] = box.n_outputs++;
        }
    }
}

void clear_outputs(ContextBox & box) {
    ++box.generation;
    box.output_row.clear();
    box.n_outputs = 0;
}

// Give the decoded rows their ids. After an abort only the rows the memory really holds count.
void record(ContextBox & box, const Batch & batch, bool complete) {
    MemoryMap & map = box.map;
    const int32_t n_seq_max = box.provenance.n_seq_max();
    std::vector<int32_t> n_tokens(size_t(n_seq_max), 0);
    std::vector<bool> coupled(size_t(n_seq_max), false);
    std::vector<Pos> held(size_t(n_seq_max), -1);
    if (!complete) {
        for (SeqId seq = 0; seq < n_seq_max; ++seq) {
            held[seq] = box.memory->seq_pos_max(seq);
        }
    }
    for (size_t i = 0; i < batch.size(); ++i) {
        const SeqId first = batch.seq(i, 0);
        const Pos pos = batch.pos(i);
        if (!complete && pos > held[first]) {
            continue;
        }
        const Run run = box.provenance.write(first, pos);
        for (int32_t k = 0; k < batch.n_seq(i); ++k) {
            const SeqId seq = batch.seq(i, k);
            Runs & rows = box.provenance.of(seq);
            if (rows.overlaps(pos, pos + 1)) {
                continue; // repeated positions (M-RoPE): one id stands for all rows there
            }
            rows.insert(run);
            ++n_tokens[seq];
            coupled[seq] = coupled[seq] || batch.n_seq(i) > 1;
        }
    }
    for (SeqId seq = 0; seq < n_seq_max; ++seq) {
        if (n_tokens[seq] > 0) {
            map.ring_pending[seq] = false;
            // llama.cpp keeps a sequence's last 1 + n_rs_seq tokens in one ubatch, so the ring reaches back over the
            // tokens of this batch but the first. Pooled outputs split otherwise; then nothing is promised.
            const bool one_split = n_tokens[seq] <= int32_t(llama_n_ubatch(box.ptr)) || !box.outputs_are_pooled;
            map.ring_depth[seq] = complete && one_split && !coupled[seq]
                ? std::min(int32_t(map.n_rs_seq), n_tokens[seq] - 1)
                : 0;
        }
    }
}

Status failure(int32_t rc, const Batch & batch) {
    const std::string log = log_last();
    switch (rc) {
        case 1:
            return Status(Code::cache_full,
                          text("no room in the cache for ", batch.size(), " more tokens: free a sequence (seq_rm), or "
                               "raise n_ctx"), rc);
        case 2:
            return Status(Code::aborted,
                          "the decode was aborted; what was finished stays in the memory (see ctx.memory.seq_pos_max)", rc);
        case -1:
            return Status(Code::invalid_batch, "llama.cpp refused the batch" + (log.empty() ? "" : ": " + log), rc);
        default:
            return Status(Code::decode_failed, text("llama.cpp failed with code ", rc), rc);
    }
}

} // namespace

Status decode(ContextBox & box, Batch & batch) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        if (!box.memory && llama_model_has_encoder(box.model->ptr)) {
            return Status(Code::unsupported, "this model has an encoder only: use encode()");
        }
        if (Status status = check_batch(box, batch, false); !status.ok()) {
            return status;
        }
        if (box.memory) {
            if (Status status = check_positions(box, batch); !status.ok()) {
                return status;
            }
        }
        log_mark();
        box.abort_requested.store(false, std::memory_order_relaxed);
        box.poll_after_us = llama_time_us() + 20'000; // a short step never asks Python
        clear_outputs(box);
        int32_t rc = llama_decode(box.ptr, batch.view());
        if (rc == 1 && box.map.window) {
            // Window cells that a fork shares are never reused by llama.cpp, however stale. Drop those and try again.
            for (SeqId seq = 0; seq < box.provenance.n_seq_max(); ++seq) {
                if (const Pos end = box.provenance.of(seq).end(); end > 0) {
                    box.map.drop_stale_window(seq, end);
                }
            }
            rc = llama_decode(box.ptr, batch.view());
        }
        if (rc == 0) {
            set_outputs(box, batch, box.outputs_are_pooled);
        }
        if (box.memory && (rc == 0 || rc == 2 || rc < -1)) {
            record(box, batch, rc == 0);
        }
        return rc == 0 ? Status() : failure(rc, batch);
    });
}

Status encode(ContextBox & box, Batch & batch) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        if (Status status = check_batch(box, batch, true); !status.ok()) {
            return status;
        }
        log_mark();
        box.abort_requested.store(false, std::memory_order_relaxed);
        box.poll_after_us = llama_time_us() + 20'000;
        clear_outputs(box);
        const int32_t rc = llama_encode(box.ptr, batch.view());
        if (rc != 0) {
            return failure(rc, batch);
        }
        set_outputs(box, batch, true);
        return {};
    });
}

namespace {

Status check_output(const ContextBox & box, int32_t i) {
    if (box.output_row.empty()) {
        return Status(Code::no_logits, "there are no outputs: nothing was decoded since the context was made, restored or failed");
    }
    const int32_t n = int32_t(box.output_row.size());
    if (i < 0 ? -i > box.n_outputs : i >= n) {
        return Status(Code::no_logits, i < 0 ? text("index ", i, ": the last batch has ", box.n_outputs, " outputs")
                                             : text("index ", i, ": the last batch has ", n, " tokens"));
    }
    if (i >= 0 && box.output_row[size_t(i)] < 0) {
        return Status(Code::no_logits, text("token ", i, " of the last batch was added with logits=False"));
    }
    return {};
}

} // namespace

Status logits_row(ContextBox & box, int32_t i, const float *& out) noexcept {
    return guarded(Code::no_logits, [&]() -> Status {
        if (Status status = check_output(box, i); !status.ok()) {
            return status;
        }
        out = llama_get_logits_ith(box.ptr, i);
        return out ? Status() : Status(Code::no_logits, text("this context computes no logits for index ", i));
    });
}

Status embeddings_row(ContextBox & box, int32_t i, const float *& out) noexcept {
    return guarded(Code::no_logits, [&]() -> Status {
        if (Status status = check_output(box, i); !status.ok()) {
            return status;
        }
        if (llama_pooling_type(box.ptr) != LLAMA_POOLING_TYPE_NONE || !box.ptr->get_cparams().embeddings) {
            return Status(Code::no_logits, box.ptr->get_cparams().embeddings
                                               ? "the embeddings are pooled: ask by sequence"
                                               : "this context was made with embeddings=False");
        }
        out = llama_get_embeddings_ith(box.ptr, i);
        return out ? Status() : Status(Code::no_logits, text("no embeddings for index ", i));
    });
}

Status embeddings_seq(ContextBox & box, SeqId seq, const float *& out) noexcept {
    return guarded(Code::no_logits, [&]() -> Status {
        Status bad;
        if (!valid_seq(box, seq, "seq_id", bad)) {
            return bad;
        }
        if (box.output_row.empty()) {
            return Status(Code::no_logits, "there are no outputs: nothing was decoded yet");
        }
        out = llama_get_embeddings_seq(box.ptr, seq);
        return out ? Status() : Status(Code::no_logits, text("no pooled embeddings for sequence ", seq,
                                                             " (pooling_type, or the sequence was not in the last batch)"));
    });
}

int32_t argmax(const float * row, int32_t n) {
    return int32_t(std::max_element(row, row + n) - row);
}

} // namespace lloyal
