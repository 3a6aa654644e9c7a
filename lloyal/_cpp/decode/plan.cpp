#include "decode/plan.hpp"

#include "core/log.hpp"
#include "state/chunks.hpp"

#include "llama-arch.h"
#include "llama-batch.h"
#include "llama-context.h"
#include "llama-kv-cache.h"
#include "llama-memory.h"
#include "llama-model.h"

#include <algorithm>
#include <set>
#include <stdexcept>

namespace lloyal {
namespace {

Status invalid(std::string message) {
    return Status(Code::invalid_batch, std::move(message));
}

bool same_sequences(const Batch & batch, size_t i, size_t j) {
    if (batch.n_seq(i) != batch.n_seq(j)) {
        return false;
    }
    for (int32_t k = 0; k < batch.n_seq(i); ++k) {
        if (batch.seq(i, size_t(k)) != batch.seq(j, size_t(k))) {
            return false;
        }
    }
    return true;
}

std::set<SeqId> sequences(const Batch & batch) {
    std::set<SeqId> seqs;
    for (size_t i = 0; i < batch.size(); ++i) {
        for (int32_t k = 0; k < batch.n_seq(i); ++k) {
            seqs.insert(batch.seq(i, size_t(k)));
        }
    }
    return seqs;
}
size_t n_sequences(const Batch & batch) {
    return sequences(batch).size();
}

// llama.cpp computes these wrongly, or not the same, when a micro-batch holds several sequences.
bool one_sequence_at_a_time(const ContextBox & box) {
    const llm_arch arch = box.model->ptr->arch;
    return arch == LLM_ARCH_PLAMO2 || arch == LLM_ARCH_RWKV7 || arch == LLM_ARCH_ARWKV7;
}

Batch cut(const Batch & batch, size_t begin, size_t end) {
    Batch part;
    for (size_t i = begin; i < end; ++i) {
        std::vector<SeqId> seqs;
        for (int32_t k = 0; k < batch.n_seq(i); ++k) {
            seqs.push_back(batch.seq(i, size_t(k)));
        }
        const llama_token token = batch.has_token() ? batch.token(i) : LLAMA_TOKEN_NULL;
        if (batch.has_embd()) {
            part.add_row(token, batch.embd(i), batch.n_embd(), batch.sections(i), seqs.data(), int32_t(seqs.size()),
                         batch.logits(i));
        } else {
            part.add(token, batch.pos(i), seqs.data(), int32_t(seqs.size()), batch.logits(i));
        }
    }
    return part;
}

// Cut a batch where its sequences change, and after every n_ubatch tokens. What was computed for an earlier slice is gone
// when the last one has been computed, so only that may have outputs.
Status cut_up(const ContextBox & box, const Batch & batch, const std::string & why, std::vector<Batch> & slices) {
    const llama_cparams & params = box.ptr->get_cparams();
    const size_t n_ubatch = llama_n_ubatch(box.ptr);
    std::vector<size_t> begins;
    for (size_t i = 0; i < batch.size(); ++i) {
        if (i == 0 || i - begins.back() == n_ubatch || !same_sequences(batch, i, i - 1)) {
            begins.push_back(i);
        }
    }
    bool extracts = params.embeddings || !box.samplers.empty();
    if (!box.hidden) { // which are taken slice by slice
        extracts = extracts || params.embeddings_nextn ||
                   std::any_of(params.embeddings_layer_inp.begin(), params.embeddings_layer_inp.end(),
                               [](bool layer) { return layer; });
    }
    for (size_t i = 0; i < begins.back(); ++i) {
        if (extracts || batch.logits(i)) {
            return invalid(text(why, ": decode at most n_ubatch=", n_ubatch,
                                " tokens of one sequence at once, or ask for no output before index ", begins.back()));
        }
    }
    for (size_t i = 0; i < begins.size(); ++i) {
        slices.push_back(cut(batch, begins[i], i + 1 < begins.size() ? begins[i + 1] : batch.size()));
    }
    return {};
}

// True if llama.cpp may compute this batch in several micro-batches.
bool several_parts(const ContextBox & box, const Batch & batch) {
    if (batch.size() > llama_n_ubatch(box.ptr)) {
        return true;
    }
    if (n_sequences(batch) == 1) {
        return false;
    }
    if (!box.map.unified || box.map.has_state()) {
        return true; // sequences of equal length are computed together
    }
    const llama_kv_cells & cells = box.map.window->get_cells(0);
    return cells.size() - cells.get_used() < batch.size(); // it falls back to that when there is no room otherwise
}

// Have llama.cpp plan the batch as decode would; false if there is no room for it.
bool fits(ContextBox & box, const llama_batch_ext & native) {
    const llama_cparams & params = box.ptr->get_cparams();
    llama_batch_allocr splitter(box.model->ptr->hparams.n_pos_per_embd());
    if (!splitter.init(native, box.model->ptr->vocab, params.embeddings)) {
        return true; // decode will say why it refuses it
    }
    const llama_memory_context_ptr planned = box.memory->init_batch(splitter, params.n_ubatch, params.embeddings);
    return planned && planned->get_status() == LLAMA_MEMORY_STATUS_SUCCESS;
}

// Have llama.cpp look for cells from the first free one of each stream of the batch, where it looks after a removal. False if
// some stream has none; it then finds the same cells again only when as many plans have been made as there are streams.
bool search_from_first_free(ContextBox & box, const Batch & batch) {
    bool all = true;
    for (const SeqId seq : sequences(batch)) {
        for (llama_kv_cache * cache : {box.map.caches[0], box.map.window}) {
            const llama_kv_cells & cells = cache->get_cells(seq);
            uint32_t first = 0;
            while (first < cells.size() && !cells.is_empty(first)) {
                ++first;
            }
            if (first == cells.size()) {
                all = false;
                continue;
            }
            const Pos pos = cells.seq_pos_max(seq) + 1;
            put_rows(*cache, seq, {first}, {pos});
            cache->seq_rm(seq, pos, pos + 1);
        }
    }
    return all;
}

} // namespace

void BatchExtDeleter::operator()(llama_batch_ext * batch) const {
    llama_batch_ext_free(batch);
}

BatchExtPtr native_batch(ContextBox & box, const Batch & batch) {
    BatchExtPtr native(llama_batch_ext_init(box.ptr));
    const size_t width = size_t(batch.n_embd());
    for (size_t i = 0; i < batch.size(); ++i) {
        const llama_embd row{batch.has_embd() ? batch.embd(i) : nullptr, 1, width};
        const int32_t at = batch.has_token() ? llama_batch_ext_add_token(native.get(), batch.seq(i, 0), batch.token(i))
                                             : llama_batch_ext_add_embd(native.get(), batch.seq(i, 0), row);
        bool added = at == int32_t(i);
        if (added && batch.has_token() && batch.has_embd()) {
            added = llama_batch_ext_set_embd_token(native.get(), at, row);
        }
        for (int32_t k = 1; added && k < batch.n_seq(i); ++k) {
            added = llama_batch_ext_add_seq(native.get(), at, batch.seq(i, k));
        }
        added = added && llama_batch_ext_set_pos(native.get(), at, batch.sections(i).data()) &&
                llama_batch_ext_set_output_logits(native.get(), at, batch.logits(i));
        if (!added) {
            throw std::runtime_error(text("llama.cpp refused entry ", i, " of the batch: ", log_last()));
        }
    }
    return native;
}

WindowCells::WindowCells(ContextBox & box) : box_(&box) {
    std::vector<uint32_t> seen;
    for (SeqId seq = 0; box.map.window && seq < box.provenance.n_seq_max(); ++seq) {
        const uint32_t stream = box.map.window->get_stream(seq);
        if (std::find(seen.begin(), seen.end(), stream) != seen.end()) {
            continue;
        }
        seen.push_back(stream);
        const llama_kv_cells & cells = box.map.window->get_cells(seq);
        for (uint32_t i = 0; i < cells.used_max_p1(); ++i) {
            if (!cells.is_empty(i)) {
                rows_.push_back({seq, i, cells.pos_get(i), cells.ext_get(i), cells.seq_get_all(i)});
            }
        }
    }
}

bool WindowCells::put_back() {
    bool needed = false;
    for (const Row & row : rows_) {
        // llama.cpp's plan undoes what it did to the cells it took, in this way; not to older rows, which it drops with them.
        auto & cells = const_cast<llama_kv_cells &>(box_->map.window->get_cells(row.stream));
        llama_kv_cells::seq_set_t lost = row.seqs;
        if (cells.is_empty(row.cell)) {
            cells.pos_set(row.cell, row.pos);
            cells.ext_set(row.cell, row.ext);
        } else {
            lost &= ~cells.seq_get_all(row.cell);
        }
        for (SeqId seq = 0; lost.any() && seq < box_->provenance.n_seq_max(); ++seq) {
            if (lost.test(size_t(seq))) {
                cells.seq_add(row.cell, seq);
                needed = needed || row.pos >= box_->map.window_begin(box_->provenance.of(seq).end());
            }
        }
    }
    return needed;
}

void drop_stale_window(ContextBox & box) {
    for (SeqId seq = 0; seq < box.provenance.n_seq_max(); ++seq) {
        if (const Pos end = box.provenance.of(seq).end(); end > 0) {
            box.map.drop_stale_window(seq, end);
        }
    }
}

Status check_coupled(const ContextBox & box, const Batch & batch) {
    for (size_t i = 0; i < batch.size(); ++i) {
        if (batch.n_seq(i) < 2) {
            continue;
        }
        const auto refuse = [&](SeqId seq, const std::string & why) {
            return invalid(text("index ", i, " is of sequences ", batch.seq(i, 0), " and ", seq, ", ", why));
        };
        for (int32_t k = 1; k < batch.n_seq(i); ++k) {
            const SeqId seq = batch.seq(i, size_t(k));
            if (box.model->ptr->hparams.ple_n_heads > 0) {
                return refuse(seq,
                              "and this model looks back over the tokens of one sequence: decode it once, and seq_cp");
            }
            if (box.map.kind == MemoryKind::recurrent) {
                return refuse(seq,
                              "and recurrent memory takes tokens of one sequence only: decode it once, and seq_cp");
            }
            if (!box.map.unified) {
                return refuse(seq, "which have buffers of their own: make the context with kv_unified=True");
            }
            if (!(box.provenance.of(seq) == box.provenance.of(batch.seq(i, 0)))) {
                return refuse(seq, "which hold different rows: it would be computed for the first one only");
            }
        }
        if (i > 0 && same_sequences(batch, i, i - 1)) {
            continue; // looked at with the first of them
        }
        Pos last = batch.pos(i);
        for (size_t j = i + 1; j < batch.size() && same_sequences(batch, i, j); ++j) {
            last = std::max(last, batch.pos(j));
        }
        for (size_t j = 0; j < batch.size(); ++j) {
            int32_t n = 0;
            for (int32_t k = 0; k < batch.n_seq(i); ++k) {
                for (int32_t m = 0; m < batch.n_seq(j); ++m) {
                    n += batch.seq(j, size_t(m)) == batch.seq(i, size_t(k));
                }
            }
            if (n > 0 && n < batch.n_seq(i) && batch.pos(j) < last) {
                return refuse(batch.seq(i, 1), text("but index ", j, " before it is not of all of them"));
            }
        }
    }
    return {};
}

Status cache_full(const Batch & batch) {
    return Status(
        Code::cache_full,
        text("no room in the cache for ", batch.size(), " more tokens: free a sequence (seq_rm), or raise n_ctx"), 1);
}

Status plan_decode(ContextBox & box, const Batch & batch, std::vector<Batch> & slices) {
    if (one_sequence_at_a_time(box) && n_sequences(batch) > 1) {
        if (!fits(box, *native_batch(box, batch))) { // or the first slices would be in when the last finds no room
            return cache_full(batch);
        }
        return cut_up(box, batch,
                      text("llama.cpp computes batches of several sequences wrongly for ",
                           llm_arch_name(box.model->ptr->arch), " models"),
                      slices);
    }
    if (!box.map.window || !several_parts(box, batch)) {
        return {};
    }
    const BatchExtPtr native = native_batch(box, batch);
    WindowCells cells(box);
    // A plan over several streams leaves them searching from each other's places, so that the next finds other cells.
    const bool settled = box.map.unified || search_from_first_free(box, batch);
    bool loses = false;
    for (size_t n_plans = settled ? 1 : 1 + n_sequences(batch); n_plans > 0; --n_plans) {
        if (fits(box, *native)) {
            loses = cells.put_back();
            continue;
        }
        cells.put_back();
        drop_stale_window(box); // cells that a fork shares are never reused, however stale
        WindowCells rest(box);
        if (!fits(box, *native)) {
            rest.put_back();
            cells.put_back();
            return cache_full(batch);
        }
        loses = rest.put_back();
        cells = std::move(rest);
    }
    if (settled && !box.map.unified) {
        search_from_first_free(box, batch);
    }
    if (!loses) {
        return {};
    }
    return cut_up(box, batch,
                  text("the batch is computed in several parts, "
                       "and the later ones would take cells of the sliding-window cache that the earlier ones need"),
                  slices);
}

} // namespace lloyal
