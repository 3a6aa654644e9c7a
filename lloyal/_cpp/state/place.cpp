// Which cells rows get, where llama.cpp's own search takes longer than the copy.
#include "state/chunks.hpp"

#include "llama-batch.h"
#include "llama-kv-cache.h"

#include <algorithm>

namespace lloyal {
namespace {

// llama.cpp looks at the sequence of every cell that it passes: in a full cache of few holes that is most of a restore.
constexpr uint32_t MANY_CELLS = 4096;

} // namespace

bool place_rows(const KvLayout & layout, SeqId seq, const Runs & rows, RowRuns & placed) {
    llama_kv_cache & cache = *layout.cache;
    if (layout.has_ext || cache.get_cells(seq).get_used() < MANY_CELLS) {
        return false;
    }
    const llama_kv_cells & cells = cache.get_cells(seq);
    if (cells.seq_pos_max(seq) >= 0) {
        cache.seq_rm(seq, -1, -1); // looks at every cell
    }
    const uint32_t n = uint32_t(rows.size());
    if (cells.size() - cells.get_used() < n) {
        return false; // cells outside their sequence's window may do
    }
    std::vector<uint32_t> free;
    free.reserve(n);
    for (uint32_t i = 0; free.size() < n; ++i) {
        if (cells.is_empty(i)) {
            free.push_back(i);
            placed.add(i, 1);
        }
    }
    std::vector<Pos> pos;
    pos.reserve(n);
    for (const Run & run : rows.list()) {
        for (Pos at = run.begin; at < run.end; ++at) {
            pos.push_back(at);
        }
    }
    put_rows(cache, seq, free, pos);
    return true;
}

void put_rows(llama_kv_cache & cache, SeqId seq, const std::vector<uint32_t> & cells,
              const std::vector<Pos> & positions) {
    const uint32_t n = uint32_t(cells.size());
    llama_kv_cache::slot_info slots{};
    slots.resize(1);
    slots.s0 = slots.s1 = uint32_t(cache.get_stream(seq));
    slots.strm[0] = llama_seq_id(slots.s0);
    slots.idxs[0] = cells;
    // As llama.cpp fills one from a state: without tokens, which only caches with extended cells keep.
    std::vector<Pos> pos = positions;
    std::vector<llama_token> token(n);
    std::vector<int32_t> n_seq_id(n, 1);
    llama_seq_id owner = seq;
    std::vector<llama_seq_id *> seq_id(n, &owner);
    llama_ubatch batch{};
    batch.b_equal_seqs = 1;
    batch.n_tokens = batch.n_seq_tokens = n;
    batch.n_seqs = batch.n_seqs_unq = batch.n_pos = 1;
    batch.token = token.data();
    batch.pos = pos.data();
    batch.n_seq_id = n_seq_id.data();
    batch.seq_id = seq_id.data();
    batch.seq_id_unq = &owner;
    cache.apply_ubatch(slots, batch);
}

void scatter_rows(CopyList & copies, const RowRuns & cells, const std::vector<RowTensor> & tensors,
                  const std::vector<Segment> & segments) {
    auto run = cells.list.begin();
    uint32_t in_run = 0;
    for (const Segment & segment : segments) {
        const auto rows = std::make_shared<RowRuns>();
        while (run != cells.list.end() && rows->n_rows < segment.n) {
            const uint32_t n = std::min(segment.n - rows->n_rows, run->n - in_run);
            rows->add(run->row + in_run, n);
            in_run += n;
            if (in_run == run->n) {
                ++run;
                in_run = 0;
            }
        }
        for (size_t t = 0; t < tensors.size(); ++t) {
            const RowTensor & tensor = tensors[t];
            copies.add(RowCopy{tensor.piece, tensor.n_pieces, tensor.place(),
                               segment.chunk->place(tensor, t, segment.row), rows, false});
        }
    }
}

} // namespace lloyal
