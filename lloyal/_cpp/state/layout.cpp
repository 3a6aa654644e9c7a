#include "state/layout.hpp"

#include "ggml-cpp.h"
#include "llama-hparams.h"
#include "llama-kv-cache.h"

#include <new>

namespace lloyal {
namespace {

template <typename T> void put(std::vector<uint8_t> & out, T value) {
    const auto * bytes = reinterpret_cast<const uint8_t *>(&value);
    out.insert(out.end(), bytes, bytes + sizeof value);
}

// The view of V that a graph would take: it shows which tensor holds it, and where. Nothing is computed.
const ggml_tensor & view_of_v(const llama_kv_cache & kv, ggml_context * views, uint32_t layer, uint32_t stream) {
    llama_kv_cache::slot_info slot{};
    slot.s0 = slot.s1 = stream;
    return *kv.get_v(views, int32_t(layer), 1, slot);
}

} // namespace

KvLayout::KvLayout(llama_kv_cache * kv, const llama_hparams & hparams, bool v_trans)
    : cache(kv), n_stream(kv->get_n_stream()), has_ext(kv->has_cell_ext()), streams(n_stream) {
    const std::vector<uint32_t> layers = kv->get_layer_ids();
    const uint32_t n_cells = kv->get_size();
    const bool has_v = !hparams.is_mla(); // those keep what V is made from in K
    const ggml_context_ptr views(
        ggml_init({(layers.size() * n_stream + 1) * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/true}));
    if (!views) {
        throw std::bad_alloc();
    }
    put(header, uint32_t(v_trans));
    put(header, uint32_t(layers.size()));
    for (const uint32_t layer : layers) {
        ggml_tensor * k = kv->get_k_storage(int32_t(layer));
        const size_t row = ggml_row_size(k->type, hparams.n_embd_k_gqa(layer));
        put(header, int32_t(k->type));
        put(header, uint64_t(row));
        for (uint32_t s = 0; row > 0 && s < n_stream; ++s) {
            streams[s].push_back({k, s * k->nb[2], row, 1, 0, n_cells});
        }
    }
    for (size_t i = 0; has_v && i < layers.size(); ++i) {
        const uint32_t width = hparams.n_embd_v_gqa(layers[i]);
        for (uint32_t s = 0; s < n_stream; ++s) {
            const ggml_tensor & v = view_of_v(*kv, views.get(), layers[i], s);
            const size_t element = ggml_type_size(v.type);
            const size_t row = ggml_row_size(v.type, width);
            if (s == 0) {
                put(header, int32_t(v.type));
                if (v_trans) {
                    put(header, uint32_t(element));
                    put(header, width);
                } else {
                    put(header, uint64_t(row));
                }
            }
            if (width > 0 && v_trans) {
                streams[s].push_back({v.view_src, v.view_offs, element, width, n_cells * element, n_cells});
            } else if (width > 0) {
                streams[s].push_back({v.view_src, v.view_offs, row, 1, 0, n_cells});
            }
        }
    }
}

const std::vector<RowTensor> & KvLayout::tensors(SeqId seq) const {
    return streams[cache->get_stream(seq)];
}

size_t KvLayout::row_bytes() const {
    size_t n = 0;
    for (const RowTensor & tensor : streams[0]) {
        n += tensor.row_bytes();
    }
    return n;
}

} // namespace lloyal
