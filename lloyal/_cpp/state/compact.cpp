// Putting the cells of a cache in order, without changing what it holds.
#include "memory/io.hpp"
#include "state/checkpoint.hpp"

#include "llama-context.h"
#include "llama-kv-cache.h"

#include <algorithm>
#include <tuple>

namespace lloyal {
namespace {

// One cache, copied out in its new order, and the state of all its sequences as llama.cpp reads it.
struct Ordered {
    const KvLayout & layout;
    ScriptedReader script;
    std::vector<std::unique_ptr<Chunk>> chunks; // by stream; null if it is empty
};

// The used cells of a stream by the first sequence of each, then by position.
std::vector<uint32_t> in_order(const llama_kv_cells & cells) {
    std::vector<std::tuple<SeqId, Pos, uint32_t>> found;
    for (uint32_t i = 0; i < cells.used_max_p1(); ++i) {
        if (!cells.is_empty(i)) {
            SeqId first = 0;
            while (!cells.seq_has(i, first)) {
                ++first;
            }
            found.emplace_back(first, cells.pos_get(i), i);
        }
    }
    std::sort(found.begin(), found.end());
    std::vector<uint32_t> order;
    for (const auto & [seq, pos, cell] : found) {
        order.push_back(cell);
    }
    return order;
}

Ordered copy_out(const ContextBox & box, const KvLayout & layout, BufferPool & pool, CopyList & copies) {
    Ordered out{layout, {}, {}};
    out.script.put(layout.n_stream);
    for (uint32_t s = 0; s < layout.n_stream; ++s) {
        const SeqId seq = SeqId(s); // with several streams each sequence has its own
        const llama_kv_cells & cells = layout.cache->get_cells(seq);
        const std::vector<uint32_t> order = in_order(cells);
        out.script.put(uint32_t(order.size()));
        Located located;
        for (size_t row = 0; row < order.size(); ++row) {
            const uint32_t cell = order[row];
            out.script.put(cells.pos_get(cell));
            out.script.put(uint32_t(cells.seq_count(cell)));
            if (layout.has_ext) {
                out.script.put(cells.ext_get(cell));
            }
            for (SeqId held = 0; held < box.provenance.n_seq_max(); ++held) {
                if (cells.seq_has(cell, held)) {
                    out.script.put(held);
                }
            }
            append(located.from, {nullptr, cell, 1, Pos(row)});
        }
        if (order.empty()) {
            out.chunks.push_back(nullptr);
            continue;
        }
        located.rows.append(Run{0, Pos(order.size()), 0, 0}); // only their number counts: nobody looks for this chunk
        out.chunks.push_back(take_chunk(layout, seq, located, pool, false, copies));
        out.script.script.insert(out.script.script.end(), layout.header.begin(), layout.header.end());
    }
    return out;
}

// llama.cpp places the rows of a whole state from cell 0 on.
void copy_in(const Ordered & ordered, CopyList & copies) {
    for (uint32_t s = 0; s < ordered.layout.n_stream; ++s) {
        const std::vector<RowTensor> & tensors = ordered.layout.tensors(SeqId(s));
        for (size_t t = 0; ordered.chunks[s] && t < tensors.size(); ++t) {
            const Chunk & chunk = *ordered.chunks[s];
            for (uint32_t k = 0; k < tensors[t].n_pieces; ++k) {
                const RowPlace from = chunk.place(tensors[t], t), to = tensors[t].place();
                copies.add({from.tensor, row_offset(from, tensors[t].piece, 0, k), to.tensor,
                            row_offset(to, tensors[t].piece, 0, k), chunk.n_rows * tensors[t].piece});
            }
        }
    }
}

size_t used_bytes(const CheckpointStore & store) {
    size_t n = 0;
    for (const KvLayout & layout : store.layouts) {
        for (uint32_t s = 0; s < layout.n_stream; ++s) {
            n += layout.cache->get_cells(SeqId(s)).get_used() * layout.row_bytes();
        }
    }
    return n;
}

} // namespace

Status memory_compact(ContextBox & box) noexcept {
    return checkpoint_guarded([&]() -> Status {
        if (Status status = check_checkpointable(box, 0, "seq_id"); !status.ok()) {
            return status;
        }
        CheckpointStore & store = store_of(box);
        if (store.whole_only) {
            return Status(Code::unsupported,
                          text(memory_kind_name(box.map.kind),
                               " memory cannot be compacted: its caches mirror each other cell by cell"));
        }
        llama_synchronize(box.ptr);
        const size_t need = used_bytes(store);
        if (store.budget_bytes >= 0 && store.live_bytes() + need > size_t(store.budget_bytes)) {
            return Status(Code::out_of_device_memory,
                          text("compacting holds all ", need, " bytes of the cache for a moment, the budget of ",
                               store.budget_bytes, " has ", store.live_bytes(), " in use: raise it, or release some"));
        }
        store.pool->expect(need, store.budget_bytes >= 0);
        std::vector<Ordered> caches;
        CopyList out;
        for (const KvLayout & layout : store.layouts) {
            caches.push_back(copy_out(box, layout, *store.pool, out));
        }
        out.run(*box.ptr, *store.pool);
        CopyList in;
        for (Ordered & cache : caches) {
            cache.layout.cache->state_read(cache.script, -1, 0);
            copy_in(cache, in);
        }
        try {
            in.run(*box.ptr, *store.pool);
        } catch (const std::exception &) {
            in.run(*box.ptr, *store.pool); // everything is still here: again, from the beginning
        }
        return {};
    });
}

} // namespace lloyal
