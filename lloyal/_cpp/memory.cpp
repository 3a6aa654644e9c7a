#include "memory.hpp"

#include "handles.hpp"

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
#include <limits>

namespace lloyal {
namespace {

constexpr Pos POS_END = std::numeric_limits<Pos>::max();

Pos open_begin(Pos p0) {
    return p0 < 0 ? 0 : p0;
}
Pos open_end(Pos p1) {
    return p1 < 0 ? POS_END : p1;
}

Status no_memory() {
    return Status(Code::unsupported, "this model keeps no memory between calls (encoder or diffusion model)");
}

} // namespace

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

MemoryMap::MemoryMap(const llama_model & model, const llama_context & context, llama_memory_t memory,
                     const llama_context_params & params) {
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
    // Every cache gets the types of the parameters; asking a cache for its V type crashes where it has none (MLA).
    type_k = int32_t(params.type_k);
    type_v = int32_t(params.type_v);
    quantized = !caches.empty() && (ggml_is_quantized(params.type_k) || ggml_is_quantized(params.type_v));
    // Quantized keys are rotated through a matrix that heads of other sizes do not have; other types abort in rope.
    const char * no_matrix = std::getenv("LLAMA_ATTN_ROT_DISABLE");
    unrotated = quantized && no_matrix && std::atoi(no_matrix) != 0;
    keys_rotate = params.type_k == GGML_TYPE_F32 || params.type_k == GGML_TYPE_F16 ||
                  (ggml_is_quantized(params.type_k) && hparams.n_embd_head_k() % 64 == 0 && !unrotated);
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

bool MemoryMap::window_complete(const Runs & rows, int32_t seq, int32_t pos) const {
    if (!window) {
        return true;
    }
    const Runs needed = rows.slice(window_begin(pos), pos);
    if (needed.empty()) {
        return true;
    }
    // When llama.cpp reuses a cell it drops the older rows of that sequence too, so nothing is missing above the minimum.
    const Pos have = window->seq_pos_min(seq);
    return have >= 0 && have <= needed.begin();
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
                found[seq] = {tail, recurrent->cells[size_t(tail)].pos};
            }
        }
    }
    return found;
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

bool valid_seq(const ContextBox & box, SeqId seq, const char * name, Status & status) {
    const int32_t n = box.provenance.n_seq_max();
    if (seq >= 0 && seq < n) {
        return true;
    }
    status = Status(Code::invalid_argument, text(name, "=", seq, " is not a sequence of this context: it has 0 to ",
                                                 n - 1, " (raise n_seq_max for more)"));
    return false;
}

bool memory_can_shift(const ContextBox & box) {
    return box.memory && !box.map.mrope && !box.map.has_state() && box.map.keys_rotate &&
           llama_memory_can_shift(box.memory);
}

Rollback memory_can_rollback(ContextBox & box, SeqId seq, int32_t n_tokens) {
    MemoryMap & map = box.map;
    const Runs & rows = box.provenance.of(seq);
    const Pos end = rows.end();
    if (map.kind == MemoryKind::none || map.shared || rows.empty() || n_tokens < 0 || n_tokens > end - rows.begin()) {
        return Rollback::none;
    }
    if (n_tokens == 0) {
        return Rollback::trim;
    }
    const Pos pos = end - n_tokens; // the next token's position afterwards
    if (n_tokens == end - rows.begin()) {
        return Rollback::trim; // everything goes: always possible
    }
    if (!map.window_complete(rows, seq, pos)) {
        return Rollback::none;
    }
    if (map.has_state()) {
        return n_tokens <= map.ring_depth[seq] && !map.ring_pending[seq] ? Rollback::ring : Rollback::none;
    }
    return Rollback::trim;
}

Status memory_clear(ContextBox & box, bool data) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        if (!box.memory) {
            return no_memory();
        }
        llama_synchronize(box.ptr);
        box.memory->clear(data);
        box.provenance.clear();
        for (SeqId seq = 0; seq < box.provenance.n_seq_max(); ++seq) {
            box.map.reset_ring(seq);
        }
        return {};
    });
}

Status memory_seq_rm_any(ContextBox & box, SeqId seq, Pos p0, Pos p1) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        Status bad;
        if (!box.memory) {
            return no_memory();
        }
        if (seq == -1) {
            // Every sequence: one by one, since recurrent memory refuses -1.
            for (SeqId s = 0; s < box.provenance.n_seq_max(); ++s) {
                if (Status status = memory_seq_rm_any(box, s, p0, p1); !status.ok()) {
                    return status;
                }
            }
            return {};
        }
        if (!valid_seq(box, seq, "seq_id", bad)) {
            return bad;
        }
        const Runs & rows = box.provenance.of(seq);
        const Pos begin = std::max(open_begin(p0), rows.begin());
        const Pos end = std::min(open_end(p1), rows.end());
        if (rows.empty() || begin >= end || !rows.overlaps(begin, end)) {
            return {};
        }
        const bool everything = begin <= rows.begin() && end >= rows.end();
        if (everything) {
            box.memory->seq_rm(seq, -1, -1);
            box.provenance.remove(seq, 0, POS_END);
            box.map.reset_ring(seq);
            return {};
        }
        const bool tail = end == rows.end();
        Rollback how = Rollback::trim;
        if (tail) {
            how = memory_can_rollback(box, seq, end - begin);
        } else if (box.map.has_state()) {
            how = Rollback::none;
        }
        if (how == Rollback::none) {
            return Status(Code::unsupported,
                          text("positions ", begin, " to ", end - 1, " of sequence ", seq, " cannot be taken out of ",
                               memory_kind_name(box.map.kind),
                               " memory: what the earlier tokens need is gone; restore a checkpoint, or remove the "
                               "whole sequence and decode it again"));
        }
        if (!box.memory->seq_rm(seq, begin, tail ? -1 : end)) {
            return Status(Code::unsupported,
                          text("llama.cpp refused to remove positions ", begin, " to ", end - 1, " of sequence ", seq));
        }
        box.provenance.remove(seq, begin, end);
        if (how == Rollback::ring) {
            box.map.ring_depth[seq] = 0;
            box.map.ring_pending[seq] = true;
        }
        return {};
    });
}

Status memory_seq_cp_any(ContextBox & box, SeqId src, SeqId dst, Pos p0, Pos p1) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        Status bad;
        if (!box.memory) {
            return no_memory();
        }
        if (!valid_seq(box, src, "seq_id_src", bad) || !valid_seq(box, dst, "seq_id_dst", bad)) {
            return bad;
        }
        MemoryMap & map = box.map;
        const Runs & rows = box.provenance.of(src);
        const Pos begin = std::max(open_begin(p0), rows.begin());
        const Pos end = std::min(open_end(p1), rows.end());
        if (src == dst || begin >= end) {
            return {};
        }
        const bool whole = begin <= rows.begin() && end >= rows.end();
        if (!whole && (map.has_state() || !map.unified)) {
            return Status(Code::unsupported,
                          text("positions ", begin, " to ", end - 1, " of sequence ", src, " cannot be copied alone: ",
                               map.has_state() ? "recurrent or compressed memory copies the whole state"
                                               : "kv_unified=False copies whole sequences only"));
        }
        const Runs & there = box.provenance.of(dst);
        if (there.overlaps(begin, end) && !there.holds(rows.slice(begin, end))) {
            return Status(Code::invalid_argument, text("sequence ", dst, " already holds other rows between positions ",
                                                       begin, " and ", end - 1, ": seq_rm them first"));
        }
        if (!map.unified) {
            box.memory->seq_rm(dst, -1, -1);
            box.provenance.remove(dst, 0, POS_END);
        }
        if (map.ring_pending[src]) {
            // A fork does not carry a rollback that waits for the next decode; writing the state out and back applies it.
            const size_t size = llama_state_seq_get_size_ext(box.ptr, src, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY);
            std::vector<uint8_t> state(size);
            if (llama_state_seq_get_data_ext(box.ptr, state.data(), size, src, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) !=
                    size ||
                llama_state_seq_set_data_ext(box.ptr, state.data(), size, src, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) ==
                    0) {
                return Status(Code::decode_failed,
                              text("the pending rollback of sequence ", src, " could not be applied"));
            }
        }
        box.memory->seq_cp(src, dst, whole ? -1 : begin, whole ? -1 : end);
        if (!map.unified) {
            // Without this the copy waits for the next decode, and a save before it stores garbage.
            box.ptr->memory_update(false);
        }
        box.provenance.copy(src, dst, begin, end);
        map.reset_ring(src);
        map.reset_ring(dst);
        return {};
    });
}

namespace {

// A checkpoint's cells are read-only to everybody else.
Status check_not_held(const ContextBox & box, SeqId seq) {
    if (seq >= 0 && size_t(seq) < box.leases.size() && box.leases[seq] == Lease::checkpoint) {
        return Status(Code::no_lease, text("sequence ", seq, " holds the cells of a checkpoint: release that first"));
    }
    return {};
}

} // namespace

Status memory_seq_rm(ContextBox & box, SeqId seq, Pos p0, Pos p1) noexcept {
    if (Status status = check_not_held(box, seq); !status.ok()) {
        return status;
    }
    return memory_seq_rm_any(box, seq, p0, p1);
}

Status memory_seq_cp(ContextBox & box, SeqId src, SeqId dst, Pos p0, Pos p1) noexcept {
    if (Status status = check_not_held(box, dst); !status.ok()) {
        return status;
    }
    return memory_seq_cp_any(box, src, dst, p0, p1);
}

Status memory_seq_keep(ContextBox & box, SeqId seq) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        Status bad;
        if (!box.memory) {
            return no_memory();
        }
        if (!valid_seq(box, seq, "seq_id", bad)) {
            return bad;
        }
        // One by one: llama_memory_seq_keep cleans only the sequence's own stream when kv_unified is off.
        for (SeqId s = 0; s < box.provenance.n_seq_max(); ++s) {
            if (s != seq) {
                if (Status status = memory_seq_rm_any(box, s, -1, -1); !status.ok()) {
                    return status;
                }
            }
        }
        return {};
    });
}

namespace {

Status check_shift(ContextBox & box, SeqId seq, const char * what) {
    Status bad;
    if (!box.memory) {
        return no_memory();
    }
    if (!valid_seq(box, seq, "seq_id", bad)) {
        return bad;
    }
    if (box.map.mrope) {
        return Status(Code::unsupported, text(what, ": models with M-RoPE positions cannot be shifted"));
    }
    if (Status held = check_not_held(box, seq); !held.ok()) {
        return held;
    }
    if (!memory_can_shift(box)) {
        return Status(Code::unsupported, text(what, ": ", memory_kind_name(box.map.kind), " memory of this model",
                                              box.map.keys_rotate ? "" : " with this type_k",
                                              " cannot be shifted (ctx.memory.can_shift is False)"));
    }
    return {};
}

Status check_own_cells(const ContextBox & box, SeqId seq, Pos begin, Pos end, const char * what) {
    if (box.map.shares_cells(seq, begin, end)) {
        return Status(Code::unsupported, text(what, ": sequence ", seq, " shares rows between positions ", begin,
                                              " and ", end - 1, " with another, which would move too"));
    }
    return {};
}

} // namespace

Status memory_seq_add(ContextBox & box, SeqId seq, Pos p0, Pos p1, Pos delta) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        if (Status bad = check_shift(box, seq, "seq_add"); !bad.ok()) {
            return bad;
        }
        const Runs rows = box.provenance.of(seq);
        const Pos begin = std::max(open_begin(p0), rows.begin());
        const Pos end = std::min(open_end(p1), rows.end());
        if (begin >= end || delta == 0) {
            return {};
        }
        const Runs moved = rows.slice(begin, end);
        if (moved.empty()) {
            return {};
        }
        if (int64_t(moved.begin()) + delta < 0 || int64_t(moved.end()) + delta >= POS_END) {
            return Status(Code::invalid_argument, text("seq_add: delta=", delta, " moves positions ", moved.begin(),
                                                       " to ", moved.end() - 1, " out of range"));
        }
        Runs rest = rows;
        rest.erase(begin, end);
        for (const Run & run : moved.list()) {
            if (rest.overlaps(run.begin + delta, run.end + delta)) {
                return Status(Code::invalid_argument, text("seq_add: delta=", delta, " moves positions ", run.begin,
                                                           " to ", run.end - 1, " onto others of sequence ", seq));
            }
        }
        if (Status bad = check_own_cells(box, seq, begin, end, "seq_add"); !bad.ok()) {
            return bad;
        }
        box.memory->seq_add(seq, begin, end, delta);
        box.ptr->memory_update(false); // shift K now, so that a save sees what the positions say
        box.provenance.remove(seq, begin, end);
        for (const Run & run : moved.list()) {
            box.provenance.rewrite(seq, run.begin + delta, run.end + delta);
        }
        return {};
    });
}

Status memory_seq_div(ContextBox & box, SeqId seq, Pos p0, Pos p1, int d) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        if (Status bad = check_shift(box, seq, "seq_div"); !bad.ok()) {
            return bad;
        }
        if (d < 1) {
            return Status(Code::invalid_argument, text("seq_div: d=", d, " must be 1 or more"));
        }
        const Runs rows = box.provenance.of(seq);
        const Pos begin = std::max(open_begin(p0), rows.begin());
        const Pos end = std::min(open_end(p1), rows.end());
        if (begin >= end || d == 1) {
            return {};
        }
        const Runs divided = rows.slice(begin, end);
        Runs rest = rows;
        rest.erase(begin, end);
        for (const Run & run : divided.list()) {
            if (rest.overlaps(run.begin / d, (run.end - 1) / d + 1)) {
                return Status(Code::invalid_argument, text("seq_div: d=", d, " moves positions ", run.begin, " to ",
                                                           run.end - 1, " onto others of sequence ", seq));
            }
        }
        if (Status bad = check_own_cells(box, seq, begin, end, "seq_div"); !bad.ok()) {
            return bad;
        }
        box.memory->seq_div(seq, begin, end, d);
        box.ptr->memory_update(false);
        box.provenance.remove(seq, begin, end);
        for (const Run & run : divided.list()) {
            // Rows that come to lie at one position share one id.
            box.provenance.rewrite(seq, run.begin / d, (run.end - 1) / d + 1);
        }
        return {};
    });
}

Status memory_seq_pos(ContextBox & box, SeqId seq, Pos & pos_min, Pos & pos_max) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        Status bad;
        if (!box.memory) {
            pos_min = pos_max = -1;
            return {};
        }
        if (!valid_seq(box, seq, "seq_id", bad)) {
            return bad;
        }
        pos_min = box.memory->seq_pos_min(seq);
        pos_max = box.memory->seq_pos_max(seq);
        return {};
    });
}

} // namespace lloyal
