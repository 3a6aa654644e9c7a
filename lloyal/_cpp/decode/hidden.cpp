#include "decode/hidden.hpp"

#include "decode/decode.hpp"
#include "decode/ext.hpp"
#include "decode/outputs.hpp"

#include "llama-context.h"
#include "llama-ext.h"
#include "llama-model.h"

#include <algorithm>

namespace lloyal {
namespace {

size_t width_of(const ContextBox & box, int32_t layer) {
    return layer == llama_model_n_layer(box.model->ptr) ? n_embedding(box) : n_layer_input(box);
}

Status turn(ContextBox & box, int32_t layer, bool on) {
    return layer == llama_model_n_layer(box.model->ptr) ? context_set_nextn(box, on, false)
                                                        : context_set_layer_input(box, layer, on);
}

// Where the rows of the last call lie, or null if somebody has turned them off.
const float * rows_of(ContextBox & box, int32_t layer) {
    const llama_cparams & params = box.ptr->get_cparams();
    if (layer == llama_model_n_layer(box.model->ptr)) {
        return params.embeddings_nextn && !params.embeddings_nextn_masked ? llama_get_embeddings_nextn(box.ptr)
                                                                          : nullptr;
    }
    return params.embeddings_layer_inp[size_t(layer)] ? llama_get_embeddings_layer_inp(box.ptr, uint32_t(layer))
                                                      : nullptr;
}

} // namespace

Status context_keep_hidden(ContextBox & box, const std::vector<int32_t> & layers, int32_t most) noexcept {
    return guarded(Code::out_of_device_memory, [&]() -> Status {
        if (most < 1) {
            return Status(Code::invalid_argument, text("most=", most, " must be at least 1"));
        }
        if (box.hidden && box.hidden->layers == layers && box.hidden->most == most) {
            return {};
        }
        auto made = std::make_shared<HiddenSources>();
        made->layers = layers;
        made->most = most;
        for (size_t i = 0; i < layers.size(); ++i) {
            if (Status status = turn(box, layers[i], true); !status.ok()) {
                for (size_t k = 0; k < i; ++k) {
                    if (!box.hidden ||
                        std::count(box.hidden->layers.begin(), box.hidden->layers.end(), layers[k]) == 0) {
                        turn(box, layers[k], false);
                    }
                }
                return status;
            }
            made->width += width_of(box, layers[i]);
        }
        if (box.hidden) {
            for (const int32_t layer : box.hidden->layers) {
                if (std::count(layers.begin(), layers.end(), layer) == 0) {
                    turn(box, layer, false);
                }
            }
        }
        box.hidden = layers.empty() ? nullptr : std::move(made);
        return {};
    });
}

void collect_hidden(ContextBox & box, size_t n) {
    const size_t width = box.hidden->width;
    const size_t begin = box.hidden_rows.size();
    box.hidden_rows.resize(begin + n * width);
    size_t at = begin;
    for (const int32_t layer : box.hidden->layers) {
        const float * rows = rows_of(box, layer);
        if (!rows) {
            box.hidden_rows.clear();
            return;
        }
        const size_t part = width_of(box, layer);
        for (size_t i = 0; i < n; ++i) {
            std::copy(rows + i * part, rows + (i + 1) * part, box.hidden_rows.data() + at + i * width);
        }
        at += part;
    }
}

const float * hidden_row(const ContextBox & box, size_t i) {
    return box.hidden && (i + 1) * box.hidden->width <= box.hidden_rows.size()
               ? box.hidden_rows.data() + i * box.hidden->width
               : nullptr;
}

Status context_is_on(ContextBox & box, const ContextHandle & parent, bool & out) noexcept {
    out = std::any_of(box.keeps.begin(), box.keeps.end(),
                      [&](const std::shared_ptr<void> & kept) { return kept.get() == parent.get(); });
    return {};
}

Status context_head_info(ContextBox & box, HeadInfo & out) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        out.mtp = box.ptr->get_cparams().ctx_type == LLAMA_CONTEXT_TYPE_MTP;
        out.shared = box.map.shared;
        out.chained = box.model->ptr->dspark_markov_w1 ||
                      (box.model->ptr->arch == LLM_ARCH_DFLASH && box.model->ptr->hparams.dsv4_hc_mult > 0);
        out.n_embd = process_n_embd(box, false);
        out.n_embd_features = process_n_embd(box, true);
        return {};
    });
}

} // namespace lloyal
