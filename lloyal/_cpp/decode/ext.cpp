#include "decode/ext.hpp"

#include "core/log.hpp"
#include "decode/outputs.hpp"
#include "model/graph_check.hpp"

#include "llama-context.h"
#include "llama-ext.h"
#include "llama-graph.h"
#include "llama-memory.h"
#include "llama-model.h"

#include <algorithm>

namespace lloyal {
namespace {

Status check_layer(const ContextBox & box, int32_t layer) {
    const int32_t n_layer = llama_model_n_layer(box.model->ptr);
    return layer >= 0 && layer <= n_layer
               ? Status()
               : Status(Code::invalid_argument, text("layer ", layer, ": this model has layers 0 to ", n_layer - 1,
                                                     ", and ", n_layer, " stands for the input of the head"));
}

Status check_whole(const ContextBox & box) {
    return box.in_slices ? Status(Code::no_logits, "the last batch was computed in slices, which leave nothing behind")
                         : Status();
}

// The index of a token of the last batch, whether it has an output or not.
Status check_token(const ContextBox & box, int32_t i) {
    const int32_t n = int32_t(box.output_index.size());
    if (Status status = check_whole(box); !status.ok()) {
        return status;
    }
    if (n == 0) {
        return Status(Code::no_logits, "there is nothing yet: nothing was decoded since this was turned on");
    }
    return i >= 0 && i < n ? Status()
                           : Status(Code::no_logits, text("index ", i, ": the last batch has ", n, " tokens"));
}

} // namespace

Status context_memory(ContextBox & box, std::vector<BufferUse> & out) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        for (const auto & [buft, use] : llama_get_memory_breakdown(box.ptr)) {
            BufferUse row;
            row.buffer = ggml_backend_buft_name(buft);
            row.device = ggml_backend_buft_get_device(buft);
            row.is_host = ggml_backend_buft_is_host(buft);
            row.model = use.model;
            row.context = use.context;
            row.compute = use.compute;
            out.push_back(std::move(row));
        }
        return {};
    });
}

Status context_set_embeddings(ContextBox & box, bool value) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        if (box.ptr->get_cparams().embeddings == value) {
            return {};
        }
        llama_synchronize(box.ptr);
        box.drop_outputs(); // their layout depends on it
        if (value) {
            embeddings_check(*box.ptr);
        }
        llama_set_embeddings(box.ptr, value);
        // Some models leave out the logits now; only the graph tells. Without a memory there never are any.
        if (box.memory) {
            const llama_memory_context_ptr full = box.memory->init_full();
            const uint32_t n_seqs =
                llama_n_seq_max(box.ptr); // as llama.cpp does: caches of several streams need all of them
            box.ptr->graph_reserve(n_seqs, n_seqs, n_seqs, full.get(), true);
            box.graph_has_logits = box.ptr->get_gf_res_reserve()->get_logits() != nullptr;
        }
        return {};
    });
}

Status context_set_causal(ContextBox & box, bool value) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        llama_set_causal_attn(box.ptr, value);
        return {};
    });
}

Status context_set_nextn(ContextBox & box, bool value, bool masked) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        const llm_graph_result * graph = box.ptr->get_gf_res_reserve();
        if (value && (llama_pooling_type(box.ptr) != LLAMA_POOLING_TYPE_NONE || !graph || !graph->get_h_nextn())) {
            return Status(Code::unsupported,
                          llama_pooling_type(box.ptr) != LLAMA_POOLING_TYPE_NONE
                              ? "a context that pools has no hidden states: pooling='none'"
                              : "this model's graph does not give the hidden states of a prediction head");
        }
        llama_synchronize(box.ptr);
        box.drop_outputs();
        llama_set_embeddings_nextn(box.ptr, value, masked);
        return {};
    });
}

Status find_nextn(ContextBox & box, int32_t i, const float *& out) noexcept {
    return guarded(Code::no_logits, [&]() -> Status {
        const llama_cparams & params = box.ptr->get_cparams();
        if (!params.embeddings_nextn) {
            return Status(Code::no_logits, "set_embeddings_nextn(True) first");
        }
        int32_t row = 0;
        Status status = params.embeddings_nextn_masked ? output_index(box, i, row) : check_token(box, i);
        if (status.ok()) {
            status = check_whole(box);
        }
        // These graphs compute the rows of all tokens, and llama.cpp takes the first of them for those with outputs.
        if (status.ok() && params.embeddings_nextn_masked && size_t(box.n_outputs) < box.output_index.size() &&
            params.ctx_type == LLAMA_CONTEXT_TYPE_MTP) {
            status =
                Status(Code::no_logits, "a prediction head gives the hidden states of batches whose entries all have "
                                        "outputs: ask for all, or for the rest in a batch of its own");
        }
        if (!status.ok()) {
            return status;
        }
        out = llama_get_embeddings_nextn_ith(box.ptr, i);
        return out ? Status() : Status(Code::no_logits, text("there is no hidden state for index ", i));
    });
}

Status context_set_nextn_offset(ContextBox & box, int32_t offset) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        const int32_t n = llama_model_n_layer_nextn(box.model->ptr);
        if (offset < 0 || offset >= n) {
            return Status(Code::invalid_argument,
                          text("offset ", offset, ": this model has ", n, " prediction layers"));
        }
        llama_set_nextn_layer_offset(box.ptr, offset);
        return {};
    });
}

Status context_set_layer_input(ContextBox & box, int32_t layer, bool value) noexcept {
    return guarded(Code::out_of_device_memory, [&]() -> Status {
        if (Status status = check_layer(box, layer); !status.ok()) {
            return status;
        }
        // llama.cpp aborts in the next graph where an architecture does not keep the tensor, so look for it in the last.
        const llm_graph_result * graph = box.ptr->get_gf_res_reserve();
        if (value && (!graph || !graph->get_layer_inp(layer))) {
            return Status(Code::unsupported, text("this model's graph does not give the input of layer ", layer));
        }
        llama_synchronize(box.ptr);
        box.drop_outputs();
        llama_set_embeddings_layer_inp(box.ptr, uint32_t(layer), value);
        context_reserve(box);
        return {};
    });
}

Status find_layer_input(ContextBox & box, int32_t layer, int32_t i, const float *& out) noexcept {
    return guarded(Code::no_logits, [&]() -> Status {
        if (Status status = check_layer(box, layer); !status.ok()) {
            return status;
        }
        if (!box.ptr->get_cparams().embeddings_layer_inp[size_t(layer)]) {
            return Status(Code::no_logits, text("set_embeddings_layer_inp(", layer, ", True) first"));
        }
        if (Status status = check_token(box, i); !status.ok()) {
            return status;
        }
        out = llama_get_embeddings_layer_inp(box.ptr, uint32_t(layer)) +
              size_t(i) * size_t(llama_model_n_embd(box.model->ptr));
        return {};
    });
}

} // namespace lloyal
