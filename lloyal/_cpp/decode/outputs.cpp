#include "decode/outputs.hpp"

#include "decode/ext.hpp"
#include "decode/largest.hpp"

#include "llama-context.h"

#include <algorithm>
#include <cstring>

namespace lloyal {
namespace {

Status take_output(const ContextBox & box, const float * data, size_t n, float * out, size_t room, Output & output) {
    output = {data, n, box.generation};
    if (out) {
        std::memcpy(out, data, std::min(n, room) * sizeof(float));
    }
    return {};
}

Status check_fresh(const ContextBox & box, const Output & output) {
    return box.generation == output.generation
               ? Status()
               : Status(Code::no_logits,
                        "this view is stale: the context has decoded or restored since (use copy=True to keep a row)");
}

} // namespace

Status output_index(const ContextBox & box, int32_t i, int32_t & index) {
    if (box.output_index.empty()) {
        return Status(Code::no_logits,
                      "there are no outputs: nothing was decoded since the context was made, restored or failed");
    }
    const int32_t n = int32_t(box.output_index.size());
    if (i < 0 ? i < -box.n_outputs : i >= n) {
        return Status(Code::no_logits, i < 0 ? text("index ", i, ": the last batch has ", box.n_outputs, " outputs")
                                             : text("index ", i, ": the last batch has ", n, " tokens"));
    }
    if (i >= 0 && box.output_index[size_t(i)] < 0) {
        return Status(Code::no_logits, text("token ", i, " of the last batch was added with logits=False"));
    }
    index = i < 0 ? box.n_outputs + i : box.output_index[size_t(i)];
    return {};
}

SeqId output_seq(const ContextBox & box, int32_t index) {
    return box.output_seq.empty() ? -1 : box.output_seq[size_t(index)];
}

Status find_logits(ContextBox & box, int32_t i, const float *& out) noexcept {
    return guarded(Code::no_logits, [&]() -> Status {
        int32_t index = 0;
        if (Status status = output_index(box, i, index); !status.ok()) {
            return status;
        }
        if (const SeqId seq = output_seq(box, index); box.samplers.find(seq) != box.samplers.end()) {
            return Status(Code::no_logits, text("output ", i, " was sampled on the back end by the chain of sequence ",
                                                seq, ", its logits were not kept: see sampled_logits()"));
        }
        if (!box.has_logits) {
            return Status(Code::no_logits, text("this model computes no logits",
                                                box.memory ? " with embeddings=True, nor in encode()" : ""));
        }
        out = llama_get_logits_ith(box.ptr, index - box.n_outputs); // from the end: a batch in slices has other indices
        return out ? Status() : Status(Code::no_logits, text("this context computes no logits for index ", i));
    });
}

Status find_embedding(ContextBox & box, int32_t i, const float *& out) noexcept {
    return guarded(Code::no_logits, [&]() -> Status {
        int32_t index = 0;
        if (Status status = output_index(box, i, index); !status.ok()) {
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

Status find_pooled(ContextBox & box, SeqId seq, const float *& out) noexcept {
    return guarded(Code::no_logits, [&]() -> Status {
        Status bad;
        if (!valid_seq(box, seq, "seq_id", bad)) {
            return bad;
        }
        if (box.output_index.empty()) {
            return Status(Code::no_logits, "there are no outputs: nothing was decoded yet");
        }
        out = llama_get_embeddings_seq(box.ptr, seq);
        return out ? Status()
                   : Status(Code::no_logits, text("no pooled embeddings for sequence ", seq,
                                                  " (pooling_type, or the sequence was not in the last batch)"));
    });
}

Status all_logits(ContextBox & box, const float *& out, int32_t & n) noexcept {
    for (int32_t i = -1; i >= -std::max(box.n_outputs, 1); --i) {
        if (Status status = find_logits(box, i, out); !status.ok()) {
            return status;
        }
    }
    return guarded(Code::no_logits, [&]() -> Status {
        out = llama_get_logits(box.ptr);
        n = box.n_outputs;
        return {};
    });
}

Status all_embeddings(ContextBox & box, const float *& out, int32_t & n) noexcept {
    if (Status status = find_embedding(box, -1, out); !status.ok()) {
        return status;
    }
    return guarded(Code::no_logits, [&]() -> Status {
        out = llama_get_embeddings(box.ptr);
        n = box.n_outputs;
        return {};
    });
}

size_t n_logits(const ContextBox & box) {
    return size_t(llama_vocab_n_tokens(llama_model_get_vocab(box.model->ptr)));
}

size_t n_embedding(const ContextBox & box) {
    return size_t(llama_model_n_embd_out(box.model->ptr));
}

size_t n_pooled(const ContextBox & box) {
    return llama_pooling_type(box.ptr) == LLAMA_POOLING_TYPE_RANK ? llama_model_n_cls_out(box.model->ptr)
                                                                  : n_embedding(box);
}

size_t n_layer_input(const ContextBox & box) {
    return size_t(llama_model_n_embd(box.model->ptr));
}

Status read_logits(ContextBox & box, int32_t i, float * out, size_t room, Output & output) noexcept {
    const float * data = nullptr;
    Status status = find_logits(box, i, data);
    return status.ok() ? take_output(box, data, n_logits(box), out, room, output) : status;
}

Status read_embedding(ContextBox & box, int32_t i, float * out, size_t room, Output & output) noexcept {
    const float * data = nullptr;
    Status status = find_embedding(box, i, data);
    return status.ok() ? take_output(box, data, n_embedding(box), out, room, output) : status;
}

Status read_pooled(ContextBox & box, SeqId seq, float * out, size_t room, Output & output) noexcept {
    const float * data = nullptr;
    Status status = find_pooled(box, seq, data);
    return status.ok() ? take_output(box, data, n_pooled(box), out, room, output) : status;
}

Status read_nextn(ContextBox & box, int32_t i, float * out, size_t room, Output & output) noexcept {
    const float * data = nullptr;
    Status status = find_nextn(box, i, data);
    return status.ok() ? take_output(box, data, n_embedding(box), out, room, output) : status;
}

Status read_layer_input(ContextBox & box, int32_t layer, int32_t i, float * out, size_t room,
                        Output & output) noexcept {
    const float * data = nullptr;
    Status status = find_layer_input(box, layer, i, data);
    return status.ok() ? take_output(box, data, n_layer_input(box), out, room, output) : status;
}

Status read_all(ContextBox & box, bool embeddings, std::vector<float> & out, int32_t & n_rows) noexcept {
    return guarded(Code::no_logits, [&]() -> Status {
        const float * data = nullptr;
        Status status = embeddings ? all_embeddings(box, data, n_rows) : all_logits(box, data, n_rows);
        if (status.ok()) {
            const size_t width = embeddings ? n_embedding(box) : n_logits(box);
            out.assign(data, data + size_t(n_rows) * width);
        }
        return status;
    });
}

Status output_value(ContextBox & box, const Output & output, size_t i, float & out) noexcept {
    Status status = check_fresh(box, output);
    if (status.ok()) {
        out = output.data[i];
    }
    return status;
}

Status output_argmax(ContextBox & box, const Output & output, int32_t & out) noexcept {
    Status status = check_fresh(box, output);
    if (status.ok()) {
        out = int32_t(largest(output.data, output.n).index);
    }
    return status;
}

Status output_log_prob(ContextBox & box, const Output & output, size_t i, double & out) noexcept {
    Status status = check_fresh(box, output);
    if (status.ok()) {
        out = output.data[i] - log_sum_exp(output.data, output.n);
    }
    return status;
}

Status output_most_probable(ContextBox & box, const Output & output, size_t count,
                            std::vector<LogProb> & out) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        Status status = check_fresh(box, output);
        if (status.ok()) {
            out = most_probable(output.data, output.n, count);
        }
        return status;
    });
}

Status output_stale(ContextBox & box, const Output & output, bool & stale) noexcept {
    stale = box.generation != output.generation;
    return {};
}

Status output_copy(ContextBox & box, const Output & output, float * out) noexcept {
    Status status = check_fresh(box, output);
    if (status.ok()) {
        std::memcpy(out, output.data, output.n * sizeof(float));
    }
    return status;
}

} // namespace lloyal
