// What a context's memory is made of, and what its caches hold right now.
#include "memory/memory.hpp"

#include "llama-context.h"
#include "llama-kv-cache-dsa-iswa.h"
#include "llama-kv-cache-dsa.h"
#include "llama-kv-cache-dsv4.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache-msa.h"
#include "llama-kv-cache.h"
#include "llama-memory-hybrid-idx.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"
#include "llama-memory-recurrent.h"
#include "llama-model.h"

#include <algorithm>
#include <cstdlib>

namespace lloyal {

const char * memory_kind_name(MemoryKind kind) {
    switch (kind) {
        case MemoryKind::none: return "none";
        case MemoryKind::attention: return "attention";
        case MemoryKind::sliding_window: return "sliding_window";
        case MemoryKind::recurrent: return "recurrent";
        case MemoryKind::hybrid: return "hybrid";
        case MemoryKind::hybrid_sliding_window: return "hybrid_sliding_window";
        case MemoryKind::sparse_attention: return "sparse_attention";
        case MemoryKind::compressed: return "compressed";
        case MemoryKind::hybrid_indexed: return "hybrid_indexed";
    }
    return "none";
}

namespace {

// Quantized keys are taken out of a fixed rotation before they are shifted and put back into it after, head by head. There is
// none for heads of other sizes, and it would be wrong where only a part of the head takes part. (BF16 aborts in rope.)
bool rotates_quantized(const llama_hparams & hparams, const llama_context_params & params) {
    const char * disabled = std::getenv("LLAMA_ATTN_ROT_DISABLE");
    if (!ggml_is_quantized(params.type_k) || (disabled && std::atoi(disabled) != 0) ||
        hparams.n_embd_head_k() % 64 != 0) {
        return false;
    }
    for (uint32_t il = 0; il < hparams.n_layer(); ++il) {
        if (hparams.has_kv(il) &&
            (hparams.n_embd_head_k(il) != hparams.n_embd_head_k() || hparams.n_rot(il) != hparams.n_embd_head_k(il))) {
            return false;
        }
    }
    return true;
}

} // namespace

MemoryMap::MemoryMap(const llama_model & model, const llama_context & context, llama_memory_t memory,
                     const llama_context_params & params, const MemoryMap * parent) {
    const llama_hparams & hparams = model.hparams;
    const llama_cparams & cparams = context.get_cparams();
    n_swa = hparams.n_swa;
    swa_type = int(hparams.swa_type);
    n_rs_seq = cparams.n_rs_seq;
    unified = cparams.kv_unified || cparams.n_seq_max == 1;
    v_trans = !cparams.flash_attn;
    const llama_rope_type rope = llama_model_rope_type(&model);
    mrope = rope == LLAMA_ROPE_TYPE_MROPE || rope == LLAMA_ROPE_TYPE_IMROPE;
    if (model.pos_embd) {
        n_pos_max = int32_t(model.pos_embd->ne[1]);
    }
    ring_depth.assign(cparams.n_seq_max, 0);
    ring_pending.assign(cparams.n_seq_max, false);

    const auto add_iswa = [this](llama_kv_cache_iswa * cache) {
        caches.push_back(cache->get_base());
        caches.push_back(cache->get_swa());
        window = cache->get_swa();
    };
    // Most derived first: hybrid_idx is a hybrid.
    if (!memory) {
        kind = MemoryKind::none;
    } else if (auto * idx = dynamic_cast<llama_memory_hybrid_idx *>(memory)) {
        kind = MemoryKind::hybrid_indexed;
        caches.push_back(idx->get_mem_attn());
        if (idx->get_mem_idx()) {
            caches.push_back(idx->get_mem_idx());
        }
        recurrent = idx->get_mem_recr();
    } else if (auto * hybrid = dynamic_cast<llama_memory_hybrid *>(memory)) {
        kind = MemoryKind::hybrid;
        caches.push_back(hybrid->get_mem_attn());
        recurrent = hybrid->get_mem_recr();
    } else if (auto * hybrid_iswa = dynamic_cast<llama_memory_hybrid_iswa *>(memory)) {
        kind = MemoryKind::hybrid_sliding_window;
        add_iswa(hybrid_iswa->get_mem_attn());
        recurrent = hybrid_iswa->get_mem_recr();
    } else if (auto * recr = dynamic_cast<llama_memory_recurrent *>(memory)) {
        kind = MemoryKind::recurrent;
        recurrent = recr;
    } else if (auto * iswa = dynamic_cast<llama_kv_cache_iswa *>(memory)) {
        kind = MemoryKind::sliding_window;
        add_iswa(iswa);
    } else if (auto * dsa_iswa = dynamic_cast<llama_kv_cache_dsa_iswa *>(memory)) {
        kind = MemoryKind::sparse_attention;
        caches = {dsa_iswa->get_dsa()->get_mla(), dsa_iswa->get_dsa()->get_lid(), dsa_iswa->get_swa()};
        window = dsa_iswa->get_swa();
    } else if (auto * dsa = dynamic_cast<llama_kv_cache_dsa *>(memory)) {
        kind = MemoryKind::sparse_attention;
        caches = {dsa->get_mla(), dsa->get_lid()};
    } else if (auto * msa = dynamic_cast<llama_kv_cache_msa *>(memory)) {
        kind = MemoryKind::sparse_attention;
        caches = {msa->get_base(), msa->get_idx()};
    } else if (auto * dsv4 = dynamic_cast<llama_kv_cache_dsv4 *>(memory)) {
        kind = MemoryKind::compressed;
        unified = false; // one stream per sequence, whatever kv_unified says
        add_iswa(dsv4->get_raw());
        for (llama_kv_cache * cache : {dsv4->get_csa(), dsv4->get_hca(), dsv4->get_lid()}) {
            if (cache) {
                caches.push_back(cache);
            }
        }
    } else {
        kind = MemoryKind::attention;
        if (auto * kv = dynamic_cast<llama_kv_cache *>(memory)) {
            caches.push_back(kv);
            // A plain cache of a model with a window masks, and reuses, cells outside it.
            window = swa_type != LLAMA_SWA_TYPE_NONE ? kv : nullptr;
        }
    }
    std::erase(caches, nullptr);
    // Recurrent memory has no rows, and those of compressed memory stand for several positions each.
    rows = caches.empty() || kind == MemoryKind::compressed ? nullptr : caches.front();
    for (const llama_kv_cache * cache : caches) {
        for (const llama_kv_cache * other : parent ? parent->caches : std::vector<llama_kv_cache *>{}) {
            shared = shared || &cache->get_cells(0) == &other->get_cells(0);
        }
    }
    if (memory) {
        for (const auto & [buft, bytes] : memory->memory_breakdown()) {
            ggml_backend_dev_t device = ggml_backend_buft_get_device(buft);
            split = split || (device && ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_META);
        }
    }
    // Every cache gets the types of the parameters; asking a cache for its V type crashes where it has none (MLA).
    type_k = int32_t(params.type_k);
    type_v = int32_t(params.type_v);
    quantized = !caches.empty() && (ggml_is_quantized(params.type_k) || ggml_is_quantized(params.type_v));
    const char * no_matrix = std::getenv("LLAMA_ATTN_ROT_DISABLE");
    unrotated = quantized && no_matrix && std::atoi(no_matrix) != 0;
    keys_rotate =
        params.type_k == GGML_TYPE_F32 || params.type_k == GGML_TYPE_F16 || rotates_quantized(hparams, params);
}

int32_t MemoryMap::window_begin(int32_t pos) const {
    const int32_t n = int32_t(n_swa);
    switch (swa_type) {
        case LLAMA_SWA_TYPE_STANDARD: return std::max(0, pos - n + 1);
        case LLAMA_SWA_TYPE_CHUNKED: return n > 0 ? pos / n * n : 0;
        case LLAMA_SWA_TYPE_SYMMETRIC: return std::max(0, pos - n / 2);
        default: return 0;
    }
}

std::vector<Pos> MemoryMap::positions(const llama_kv_cache & cache, int32_t seq) {
    std::vector<Pos> found;
    for (const auto & [pos, cell] : cache.get_cells(seq).seq_pos_get(seq)) {
        found.push_back(pos);
    }
    return found;
}

int64_t MemoryMap::n_rows(const llama_kv_cache & cache, int32_t seq, Pos begin, Pos end) {
    if (begin >= end) {
        return 0;
    }
    const auto & held = cache.get_cells(seq).seq_pos_get(seq);
    return std::distance(held.lower_bound({begin, 0}), held.lower_bound({end, 0}));
}

bool MemoryMap::window_complete(const Runs & rows, int32_t seq) const {
    if (!window || rows.empty()) {
        return true;
    }
    const Pos end = rows.end();
    const Pos begin = window_begin(end);
    // What it holds is always among the rows, so that counting is enough.
    return n_rows(*window, seq, begin, end) == rows.slice(begin, end).size();
}

void MemoryMap::drop_stale_window(int32_t seq, int32_t next_pos) {
    if (window) {
        const int32_t begin = window_begin(next_pos);
        if (begin > 0) {
            window->seq_rm(seq, 0, begin);
        }
    }
}

bool MemoryMap::shares_cells(int32_t seq, Pos begin, Pos end) const {
    for (const llama_kv_cache * cache : caches) {
        const llama_kv_cells & cells = cache->get_cells(seq);
        for (uint32_t i = 0; i < cells.used_max_p1(); ++i) {
            if (!cells.is_empty(i) && cells.seq_has(i, seq) && cells.seq_count(i) > 1) {
                if (const Pos pos = cells.pos_get(i); pos >= begin && pos < end) {
                    return true;
                }
            }
        }
    }
    return false;
}

void MemoryMap::reset_ring(int32_t seq) {
    ring_depth[seq] = 0;
    ring_pending[seq] = false;
}

std::vector<StateCell> MemoryMap::state_cells() const {
    std::vector<StateCell> found;
    if (recurrent) {
        found.resize(ring_depth.size());
        for (size_t seq = 0; seq < found.size(); ++seq) {
            // llama.cpp keeps the cell of sequence i in entry i of the same table.
            if (const int32_t tail = recurrent->cells[seq].tail; tail >= 0) {
                found[seq] = {tail, recurrent->cells[size_t(tail)].pos, recurrent->rs_idx[seq]};
            }
        }
    }
    return found;
}

void MemoryMap::distrust_empty_cells() {
    for (size_t i = 0; recurrent && i < recurrent->cells.size(); ++i) {
        if (recurrent->cells[i].is_empty()) {
            recurrent->cells[i].src = -1;
        }
    }
}

void MemoryMap::update_rings(const std::vector<int32_t> & n_tokens, const std::vector<StateCell> & before,
                             int32_t n_ubatch, bool split) {
    if (n_rs_seq == 0) {
        return;
    }
    int32_t n_seqs = 0;
    int32_t n_most = 0;
    for (const int32_t n : n_tokens) {
        n_seqs += n > 0;
        n_most = std::max(n_most, n);
    }
    // llama.cpp computes sequences of equal length together, and the last 1 + n_rs_seq tokens of one never apart. What
    // it computes together must lie side by side, so it swaps states, and the snapshots behind them stay where they
    // were. With one sequence there is nothing to swap; otherwise a state that is where it was has its snapshots, if
    // no sequence was computed in two parts, which might have swapped it to and fro.
    const bool together =
        unified && n_most * n_seqs <= n_ubatch &&
        std::all_of(n_tokens.begin(), n_tokens.end(), [=](int32_t n) { return n == 0 || n == n_most; });
    const bool in_one_part = !split && (together || n_most <= 1 + int32_t(n_rs_seq));
    const std::vector<StateCell> after = state_cells();
    for (size_t seq = 0; seq < n_tokens.size(); ++seq) {
        const bool computed = n_tokens[seq] > 0;
        const bool stayed = before.empty() || before[seq].cell == after[seq].cell;
        if (computed) {
            ring_pending[seq] = false;
            const bool kept = !recurrent || n_seqs == 1 || together || (in_one_part && stayed);
            ring_depth[seq] = kept && !split ? std::min(int32_t(n_rs_seq), n_tokens[seq] - 1) : 0;
        } else if (recurrent && n_seqs > 1 && !(in_one_part && stayed)) {
            ring_depth[seq] = 0;
        }
    }
}

} // namespace lloyal
