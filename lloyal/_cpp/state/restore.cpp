#include "memory/io.hpp"
#include "state/checkpoint.hpp"

#include "llama-context.h"
#include "llama-kv-cache.h"
#include "llama-memory-recurrent.h"

#include <algorithm>
#include <cstring>

namespace lloyal {
namespace {

// The state of one sequence's rows as llama.cpp's cache reads it.
void script_rows(ScriptedReader & reader, const KvLayout & layout, const Runs & rows,
                 const std::vector<Segment> & segments) {
    const uint32_t n = uint32_t(rows.size());
    reader.script.reserve(16 + size_t(n) * (layout.has_ext ? 24 : 12) + layout.header.size());
    reader.put(layout.n_stream);
    for (uint32_t s = 0; s < layout.n_stream; ++s) {
        reader.put(s == 0 ? n : uint32_t(0));
        if (s > 0 || n == 0) {
            continue;
        }
        size_t segment = 0;
        uint32_t in_segment = 0;
        for (const Run & run : rows.list()) {
            for (Pos pos = run.begin; pos < run.end; ++pos) {
                reader.put(pos);
                reader.put(uint32_t(1));
                if (layout.has_ext) {
                    while (in_segment == segments[segment].n) {
                        ++segment;
                        in_segment = 0;
                    }
                    const Segment & from = segments[segment];
                    reader.put(from.chunk->ext[from.row + in_segment++]);
                }
                reader.put(SeqId(0)); // read and dropped: the destination's id is used
            }
        }
        reader.script.insert(reader.script.end(), layout.header.begin(), layout.header.end());
    }
}

// llama.cpp names the part of a tensor that is one stream's, we the whole tensor.
const void * address(const Slice & slice) {
    return static_cast<const char *>(slice.tensor->data) + slice.offset;
}

// Pair what llama.cpp asked to fill (rows in order, tensor by tensor) with where the rows lie.
void copy_rows(CopyList & copies, const ScriptedReader & reader, const std::vector<RowTensor> & tensors,
               uint32_t n_rows, const std::vector<Segment> & segments) {
    const auto wrong = [](const char * what) {
        return std::runtime_error(std::string("llama.cpp asked for ") + what + " than the checkpoint holds");
    };
    // The first tensor says which cells; the others have to agree.
    RowRuns cells;
    for (size_t i = 0; !tensors.empty() && cells.n_rows < n_rows && i < reader.targets.size(); ++i) {
        const Slice & target = reader.targets[i];
        cells.list.push_back({uint32_t(target.offset / tensors[0].piece), uint32_t(target.size / tensors[0].piece)});
        cells.n_rows += cells.list.back().n;
    }
    size_t next = 0;
    for (const RowTensor & tensor : tensors) {
        for (uint32_t k = 0; k < tensor.n_pieces; ++k) {
            for (const RowRuns::Run & run : cells.list) {
                if (next == reader.targets.size() ||
                    address(reader.targets[next]) != address({tensor.tensor, tensor.offset(run.row, k), 0}) ||
                    reader.targets[next].size != run.n * tensor.piece) {
                    throw wrong("other tensors");
                }
                ++next;
            }
        }
    }
    if (next != reader.targets.size() || (!tensors.empty() && cells.n_rows != n_rows)) {
        throw wrong("more tensors");
    }
    scatter_rows(copies, cells, tensors, segments);
}

void copy_blob(CopyList & copies, const ScriptedReader & reader, const Blob & blob) {
    size_t piece = 0;
    size_t used = 0;
    for (const Slice & target : reader.targets) {
        size_t done = 0;
        while (done < target.size) {
            if (piece == blob.pieces.size()) {
                throw std::runtime_error("llama.cpp asked for more tensor bytes than the checkpoint holds");
            }
            const Blob::Piece & from = blob.pieces[piece];
            const size_t n = std::min(target.size - done, from.size - used);
            copies.add(
                {blob.buffers[from.buffer]->tensor(), from.offset + used, target.tensor, target.offset + done, n});
            done += n;
            used += n;
            if (used == from.size) {
                ++piece;
                used = 0;
            }
        }
    }
    if (piece != blob.pieces.size()) {
        throw std::runtime_error("llama.cpp asked for fewer tensor bytes than the checkpoint holds");
    }
}

void drop_sequence(ContextBox & box, SeqId seq) {
    for (llama_kv_cache * cache : box.map.caches) {
        cache->seq_rm(seq, -1, -1);
    }
    if (box.map.recurrent) {
        box.map.recurrent->seq_rm(seq, -1, -1);
    }
    box.memory->seq_rm(seq, -1, -1); // whatever else this memory keeps by sequence
}

void forget_sequence(ContextBox & box, SeqId seq) {
    box.drop_outputs();
    drop_sequence(box, seq);
    box.provenance.assign(seq, {});
    box.map.reset_ring(seq);
}

size_t free_cells(const MemoryMap & map, size_t index, SeqId dest) {
    const llama_kv_cache & cache = *map.caches[index];
    const llama_kv_cells & cells = cache.get_cells(dest);
    size_t n = cells.size() - cells.get_used();
    if (map.caches[index] == map.window) {
        // Cells outside their only sequence's window are overwritten as if free.
        for (uint32_t i = 0; i < cells.size(); ++i) {
            if (!cells.is_empty(i) && cells.seq_count(i) == 1) {
                const SeqId owner = cells.seq_get(i);
                n += owner != dest && cells.pos_get(i) < map.window_begin(cells.seq_pos_max(owner) + 1);
            }
        }
    }
    return n;
}

// Cells that only `seq` uses, for positions from `begin` on.
size_t own_cells(const llama_kv_cache & cache, SeqId seq, Pos begin = 0) {
    const llama_kv_cells & cells = cache.get_cells(seq);
    size_t n = 0;
    for (uint32_t i = 0; i < cells.used_max_p1(); ++i) {
        n += !cells.is_empty(i) && cells.seq_has(i, seq) && cells.seq_count(i) == 1 && cells.pos_get(i) >= begin;
    }
    return n;
}

SeqId find_spare(const ContextBox & box, SeqId dest) {
    for (SeqId seq = box.provenance.n_seq_max() - 1; seq >= 0; --seq) {
        if (seq != dest && box.provenance.of(seq).empty() && box.leases[seq] == Lease::none &&
            box.memory->seq_pos_max(seq) < 0) {
            return seq;
        }
    }
    return -1;
}

// A restore in the making: what is read where, and how it is swapped in.
struct Restore {
    ContextBox & box;
    CheckpointStore & store;
    CheckpointBox & ck;
    SeqId dest;

    SeqId source = -1; // the sequence whose rows [.., shared_end) are the checkpoint's own
    Pos shared_end = 0;

    struct KvRead {
        size_t cache;
        Runs rows;
        std::vector<Segment> segments;
    };
    std::vector<KvRead> reads{};

    static KvRead read_from(const CheckpointBox::Part & part, Pos begin) {
        return {part.cache, part.rows.slice(begin, POS_END), slice(part.segments(), begin, POS_END)};
    }

    void find_shared() {
        if (ck.partial) {
            return;
        }
        if (!box.map.unified) {
            // Nothing can be copied beside a part that is shared, but a trim may be all there is to do.
            if (box.provenance.of(dest).common_end(ck.rows) == ck.rows.end()) {
                source = dest;
                shared_end = ck.rows.end();
            }
            return;
        }
        for (SeqId i = 0; i <= box.provenance.n_seq_max(); ++i) {
            const SeqId seq = i == 0 ? dest : i - 1;
            const Pos end = box.provenance.of(seq).common_end(ck.rows);
            if (end > shared_end && end > ck.rows.begin()) {
                source = seq;
                shared_end = end;
            }
        }
    }

    void plan(bool sharing) {
        reads.clear();
        for (const CheckpointBox::Part & part : ck.parts) {
            const bool shares = sharing && is_base(box.map, part.cache) && source >= 0;
            reads.push_back(read_from(part, shares ? shared_end : 0));
        }
    }

    bool reads_rows() const {
        return std::any_of(reads.begin(), reads.end(), [](const KvRead & read) { return !read.rows.empty(); });
    }

    bool fits(bool giving_up_dest) const {
        return std::all_of(reads.begin(), reads.end(), [&](const KvRead & read) {
            const size_t need = size_t(read.rows.size());
            const size_t n = free_cells(box.map, read.cache, dest);
            return need <= n ||
                   (giving_up_dest && need <= n + own_cells(*box.map.caches[read.cache], dest, kept_end(read.cache)));
        });
    }

    // The rows of `dest` before this position are the checkpoint's own, and stay.
    Pos kept_end(size_t cache) const { return source == dest && is_base(box.map, cache) ? shared_end : 0; }

    // Free what `fits(true)` counted.
    void give_up_dest() {
        for (size_t i = 0; i < box.map.caches.size(); ++i) {
            box.map.caches[i]->seq_rm(dest, kept_end(i), -1);
        }
    }

    // Let llama.cpp place every part in `seq`, then issue the copies.
    void read_into(SeqId seq) {
        CopyList copies;
        for (const KvRead & read : reads) {
            const KvLayout & layout = store.layouts[read.cache];
            if (read.rows.empty()) {
                layout.cache->seq_rm(seq, -1, -1);
                continue;
            }
            RowRuns cells;
            if (place_rows(layout, seq, read.rows, cells)) {
                scatter_rows(copies, cells, layout.tensors(seq), read.segments);
                continue;
            }
            ScriptedReader reader;
            script_rows(reader, layout, read.rows, read.segments);
            layout.cache->state_read(reader, seq, 0);
            copy_rows(copies, reader, layout.tensors(seq), uint32_t(read.rows.size()), read.segments);
        }
        script_state(seq, copies);
        copies.run(*box.ptr, *box.store->pool);
    }

    void read_state_into(SeqId seq) {
        CopyList copies;
        script_state(seq, copies);
        copies.run(*box.ptr, *box.store->pool);
    }

    void script_state(SeqId seq, CopyList & copies) {
        if (ck.recurrent) {
            ScriptedReader reader;
            reader.script = ck.recurrent->meta;
            box.map.recurrent->state_read(reader, seq, 0);
            copy_blob(copies, reader, *ck.recurrent);
        }
    }

    // Make `dest` what the checkpoint was, from the shared rows and what `spare` holds. Nothing here can fail.
    void swap_in(SeqId spare) {
        for (size_t i = 0; i < box.map.caches.size(); ++i) {
            llama_kv_cache & cache = *box.map.caches[i];
            const auto read = std::find_if(reads.begin(), reads.end(), [i](const KvRead & r) { return r.cache == i; });
            if (ck.partial && read == reads.end()) {
                if (box.provenance.of(dest).end() > ck.rows.end()) {
                    cache.seq_rm(dest, ck.rows.end(), -1);
                }
                continue;
            }
            cache.seq_rm(dest, kept_end(i), -1);
            if (source >= 0 && source != dest && is_base(box.map, i)) {
                cache.seq_cp(source, dest, -1, shared_end);
            }
            if (spare >= 0 && read != reads.end() && !read->rows.empty()) {
                cache.seq_cp(spare, dest, -1, -1);
                cache.seq_rm(spare, -1, -1);
            }
        }
        if (ck.recurrent && spare >= 0) {
            box.map.recurrent->seq_rm(dest, -1, -1);
            box.map.recurrent->seq_cp(spare, dest, -1, -1);
            box.map.recurrent->seq_rm(spare, -1, -1);
        }
        finish();
    }

    void finish() {
        box.provenance.assign(dest, ck.rows);
        box.map.reset_ring(dest);
    }
};

Status restore_failed(SeqId dest, const std::exception & e) {
    const auto * memory = dynamic_cast<const DeviceMemoryError *>(&e);
    return Status(memory ? Code::out_of_device_memory : Code::decode_failed,
                  text(e.what(), "; sequence ", dest, " is now empty: the state could not be prepared beside it"));
}

Status restore_parts(Restore & restore) {
    ContextBox & box = restore.box;
    const SeqId dest = restore.dest;
    restore.find_shared();
    restore.plan(true);
    if (!restore.ck.recurrent && !restore.reads_rows()) {
        restore.swap_in(-1);
        return {};
    }
    // An empty sequence has nothing to lose: what fails leaves it empty, and there is nothing to swap.
    const bool in_place = restore.source < 0 && box.provenance.of(dest).empty() && box.memory->seq_pos_max(dest) < 0;
    const SeqId spare = box.map.unified && !in_place ? find_spare(box, dest) : -1;
    const auto stage = [&] {
        try {
            restore.read_into(spare);
        } catch (...) {
            drop_sequence(box, spare);
            throw;
        }
    };
    const auto or_empty = [&](auto && read) -> Status {
        try {
            read();
            return {};
        } catch (const std::exception & e) {
            const Status status = restore_failed(dest, e);
            forget_sequence(box, dest);
            return status;
        }
    };
    if (spare >= 0 && restore.fits(false)) {
        stage();
        restore.swap_in(spare);
        return {};
    }
    // No room beside the destination: what it holds goes first, but for the rows that are shared;
    if (spare >= 0 && restore.source >= 0 && restore.fits(true)) {
        const Status status = or_empty([&] {
            restore.give_up_dest();
            stage();
        });
        if (status.ok()) {
            restore.swap_in(spare);
        }
        return status;
    }
    // or everything that has to be read goes straight into it.
    if (!restore.reads_rows()) {
        const Status status = or_empty([&] { restore.read_state_into(dest); });
        if (status.ok()) {
            restore.swap_in(-1);
        }
        return status;
    }
    restore.source = -1;
    restore.shared_end = 0;
    restore.plan(false);
    if (!restore.fits(true)) {
        return Status(Code::cache_full, text("the state has ", restore.ck.rows.size(),
                                             " rows, and there are too few free cells even without what sequence ",
                                             dest, " holds: free another sequence, or raise n_ctx"));
    }
    if (Status status = or_empty([&] { restore.read_into(dest); }); !status.ok()) {
        return status;
    }
    if (restore.ck.partial) {
        for (size_t i = 0; i < box.map.caches.size(); ++i) {
            if (is_base(box.map, i)) {
                box.map.caches[i]->seq_rm(dest, restore.ck.rows.end(), -1);
            }
        }
    }
    restore.finish();
    return {};
}

Status restore_whole(ContextBox & box, CheckpointBox & ck, SeqId dest) {
    for (size_t i = 0; i < box.map.caches.size(); ++i) {
        const size_t room = free_cells(box.map, i, dest) + own_cells(*box.map.caches[i], dest);
        const bool counted = box.map.kind != MemoryKind::compressed && box.map.caches[i] != box.map.window;
        if (counted && ck.whole_cells > room) {
            return Status(Code::cache_full, text("the state has ", ck.whole_cells, " cells, there is room for ", room));
        }
    }
    const auto place = [&](SeqId seq, CopyList & copies) {
        ScriptedReader reader;
        reader.script = ck.whole->meta;
        box.memory->state_read(reader, seq, 0);
        copy_blob(copies, reader, *ck.whole);
    };
    if (const SeqId spare = box.map.unified ? find_spare(box, dest) : -1; spare >= 0) {
        CopyList copies;
        bool placed = true;
        try {
            place(spare, copies);
        } catch (const std::exception &) { // no room beside the destination
            placed = false;
            drop_sequence(box, spare);
        }
        if (placed) {
            try {
                copies.run(*box.ptr, *box.store->pool);
            } catch (...) {
                drop_sequence(box, spare);
                throw;
            }
            drop_sequence(box, dest);
            box.memory->seq_cp(spare, dest, -1, -1);
            drop_sequence(box, spare);
            box.provenance.assign(dest, ck.rows);
            box.map.reset_ring(dest);
            return {};
        }
    }
    try {
        CopyList copies;
        place(dest, copies);
        copies.run(*box.ptr, *box.store->pool);
    } catch (const std::exception & e) {
        const Status status = restore_failed(dest, e);
        forget_sequence(box, dest);
        return status;
    }
    box.provenance.assign(dest, ck.rows);
    box.map.reset_ring(dest);
    return {};
}

Status restore_cells(ContextBox & box, CheckpointBox & ck, SeqId dest) {
    if (Status status = check_lease(ck); !status.ok()) {
        return status;
    }
    if (Status status = memory_seq_rm(box, dest, -1, -1); !status.ok()) {
        return status;
    }
    return memory_seq_cp_any(box, ck.lease, dest, -1, -1);
}

Status restore_rows(ContextBox & box, CheckpointStore & store, CheckpointBox & ck, SeqId dest) {
    if (ck.where == Where::cells) {
        return restore_cells(box, ck, dest);
    }
    if (ck.whole) {
        return restore_whole(box, ck, dest);
    }
    if (store.whole_only) {
        // partial on sparse attention: positions only
        return memory_seq_rm(box, dest, ck.rows.end(), -1);
    }
    Restore restore{box, store, ck, dest};
    return restore_parts(restore);
}

// Why a checkpoint of one context cannot be read into another.
Status check_layout(ContextBox & from, ContextBox & to) {
    if (&from == &to) {
        return {};
    }
    LayoutSignature a, b;
    if (Status status = layout_signature(from, a); !status.ok()) {
        return status;
    }
    if (Status status = layout_signature(to, b); !status.ok()) {
        return status;
    }
    if (a.tensors != b.tensors) {
        return Status(Code::state_mismatch, "the other context's cache is laid out differently: "
                                            "it needs the same model, cache types, flash attention and kv_unified");
    }
    if (a.rope != b.rope) {
        return Status(Code::state_mismatch, "the other context rotates its keys differently: "
                                            "it needs the same rope settings (some models change theirs with n_ctx)");
    }
    return {};
}

} // namespace

Status check_not_evicted(const CheckpointBox & ck) {
    return ck.evicted
               ? Status(Code::stale_checkpoint, "this checkpoint was evicted to keep the budget (pin it to keep it)")
               : Status();
}

Status check_lease(const CheckpointBox & ck) {
    if (ck.context->provenance.of(ck.lease) == ck.rows) {
        return {};
    }
    return Status(Code::stale_checkpoint, text("the cells of this checkpoint (sequence ", ck.lease,
                                               ") were changed: the memory was cleared or restored as a whole"));
}

Status checkpoint_restore(CheckpointBox & ck, ContextBox & box, SeqId dest) noexcept {
    return checkpoint_guarded([&]() -> Status {
        if (Status status = check_checkpointable(box, dest, "seq_id"); !status.ok()) {
            return status;
        }
        std::lock_guard<std::mutex> lock(ck.content);
        if (Status status = check_not_evicted(ck); !status.ok()) {
            return status;
        }
        if (box.leases[dest] == Lease::checkpoint) {
            return Status(Code::no_lease, text("sequence ", dest, " holds the cells of a checkpoint"));
        }
        if (Status status = check_layout(*ck.context, box); !status.ok()) {
            return status;
        }
        if (ck.encoding != box.encoding) {
            return Status(Code::stale_checkpoint, "the state belongs to what encode() had left when it was taken; "
                                                  "another text, or another context's, is encoded here");
        }
        const bool elsewhere = ck.context.get() != &box;
        if (elsewhere && ck.where == Where::cells) {
            return Status(Code::unsupported,
                          "where=\"cells\" lives in the cache of its own context: take it with where=\"device\"");
        }
        for (size_t i = 0; elsewhere && ck.whole && i < box.map.caches.size(); ++i) {
            // One piece, with the number of streams in it.
            if (box.map.caches[i]->get_n_stream() != ck.context->map.caches[i]->get_n_stream()) {
                return Status(
                    Code::state_mismatch,
                    "a state that is copied whole needs a context with the same n_seq_max, since kv_unified=False");
            }
        }
        llama_synchronize(box.ptr);
        CheckpointStore & store = store_of(box);
        ck.used_at = ck.context->store->tick();
        if (ck.rows.empty()) {
            forget_sequence(box, dest);
            return {};
        }
        const bool needs_prefix =
            ck.partial && ck.where != Where::cells && !ck.whole && box.map.kind != MemoryKind::recurrent;
        // Exactly these rows: others in between would stay, and be attended to.
        if (needs_prefix && !(box.provenance.of(dest).slice(0, ck.rows.end()) == ck.rows)) {
            return Status(Code::stale_checkpoint,
                          text("a partial checkpoint needs the rows it was taken on: sequence ", dest,
                               " no longer holds the same rows up to position ", ck.pos_max));
        }
        const Status status = restore_rows(box, store, ck, dest);
        if (status.ok()) {
            box.drop_outputs(); // they belong to what the sequence was
        }
        return status;
    });
}

} // namespace lloyal
