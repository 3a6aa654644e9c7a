// What the checkpoints of one context cost together: counting, the budget, and who has to go when it is full.
#include "state/checkpoint.hpp"

#include "core/lease.hpp"

#include "llama-model.h"

#include <algorithm>
#include <set>
#include <unordered_map>
#include <unordered_set>

namespace lloyal {

CheckpointStore::CheckpointStore(ContextBox & box) : whole_only(false), pool(std::make_shared<BufferPool>()) {
    if (box.map.shared) {
        return;
    }
    switch (box.map.kind) {
        case MemoryKind::attention:
        case MemoryKind::sliding_window:
        case MemoryKind::recurrent:
        case MemoryKind::hybrid:
        case MemoryKind::hybrid_sliding_window: break;
        default:
            whole_only = true; // caches that mirror each other or fold rows: copied as one
            return;
    }
    for (llama_kv_cache * cache : box.map.caches) {
        layouts.emplace_back(cache, box.model->ptr->hparams, box.map.v_trans);
        device_chunks_.push_back(std::make_shared<ChunkIndex>());
        host_chunks_.push_back(std::make_shared<ChunkIndex>());
    }
}

CheckpointStore & store_of(ContextBox & box) {
    return *box.store;
}

std::vector<CheckpointHandle> CheckpointStore::live() {
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<CheckpointHandle> found;
    std::erase_if(checkpoints_, [&](const std::weak_ptr<CheckpointBox> & weak) {
        CheckpointHandle handle = weak.lock();
        if (handle && !handle->evicted) {
            found.push_back(handle);
        }
        return !handle;
    });
    return found;
}

void CheckpointStore::track(const CheckpointHandle & checkpoint) {
    std::lock_guard<std::mutex> lock(mutex_);
    std::erase_if(checkpoints_, [](const std::weak_ptr<CheckpointBox> & weak) { return weak.expired(); });
    checkpoints_.push_back(checkpoint);
}

size_t CheckpointStore::live_bytes() const {
    size_t n = 0;
    for (const auto & [buft, bytes] : pool->live_bytes()) {
        n += bytes;
    }
    return n;
}

size_t CheckpointStore::meta_bytes() {
    size_t n = 0;
    std::set<const void *> counted; // lists and chunks
    for (const CheckpointHandle & ck : live()) {
        std::lock_guard<std::mutex> lock(ck->content);
        n += sizeof(CheckpointBox) + ck->rows.list().size() * sizeof(Run);
        for (const CheckpointBox::Part & part : ck->parts) {
            n += sizeof part + part.rows.list().size() * sizeof(Run);
            for (const SegmentList * list = part.list.get(); list && counted.insert(list).second;
                 list = list->base().get()) {
                const Chunk & chunk = *list->last().chunk;
                n += sizeof *list + (counted.insert(&chunk).second ? chunk.meta_bytes() : 0);
            }
        }
        for (const auto & blob : {&ck->recurrent, &ck->whole}) {
            if (*blob) {
                n += (*blob)->meta.size() + (*blob)->pieces.size() * sizeof(Blob::Piece);
            }
        }
    }
    return n;
}

namespace {

// Which buffers would be freed if some checkpoints went: each with the last that holds it.
class Holders {
  public:
    void hold(const CheckpointBox & ck) {
        for (const CheckpointBox::Part & part : ck.parts) {
            for (const SegmentList * list = part.list.get(); list && n_[list]++ == 0; list = list->base().get()) {
                hold(list->last().chunk->buffers);
            }
        }
        for (const auto & blob : {&ck.recurrent, &ck.whole}) {
            if (*blob) {
                hold((*blob)->buffers);
            }
        }
    }
    void let_go(const CheckpointBox & ck) {
        for (const CheckpointBox::Part & part : ck.parts) {
            for (const SegmentList * list = part.list.get(); list && --n_[list] == 0; list = list->base().get()) {
                let_go(list->last().chunk->buffers);
            }
        }
        for (const auto & blob : {&ck.recurrent, &ck.whole}) {
            if (*blob) {
                let_go((*blob)->buffers);
            }
        }
    }
    void start() { freed_ = 0; }
    int64_t freed() const { return freed_; }

  private:
    using Buffers = std::vector<std::shared_ptr<DeviceBuffer>>;
    void hold(const Buffers & buffers) {
        for (const auto & buffer : buffers) {
            freed_ -= n_[buffer.get()]++ == 0 ? int64_t(buffer->size()) : 0;
        }
    }
    void let_go(const Buffers & buffers) {
        for (const auto & buffer : buffers) {
            freed_ += --n_[buffer.get()] == 0 ? int64_t(buffer->size()) : 0;
        }
    }

    std::unordered_map<const void *, size_t> n_; // holders of a list, and of a buffer
    int64_t freed_ = 0;
};

// The rows of a chunk that are needed, from the beginning of each stretch to its end.
class Needed {
  public:
    explicit Needed(uint32_t n_rows) : rows_(n_rows) {}
    void add(const Segment & segment) { std::fill_n(rows_.begin() + segment.row, segment.n, true); }
    size_t n() const { return size_t(std::count(rows_.begin(), rows_.end(), true)); }
    // What a new chunk takes over, and by row of the old one its row there.
    Located located(const std::shared_ptr<const Chunk> & chunk, std::vector<uint32_t> & row_in_new) const {
        Located kept;
        uint32_t row = 0;
        uint32_t n = 0;
        row_in_new.assign(rows_.size(), 0);
        for (const Run & run : chunk->rows.list()) {
            for (Pos pos = run.begin; pos < run.end; ++pos, ++row) {
                if (rows_[row]) {
                    row_in_new[row] = n++;
                    kept.rows.append({pos, pos + 1, run.epoch, run.first + uint64_t(pos - run.begin)});
                    append(kept.from, {chunk, row, 1, pos});
                }
            }
        }
        return kept;
    }

  private:
    std::vector<bool> rows_;
};

} // namespace

void CheckpointStore::repack(ContextBox & box, const CheckpointBox * taking) {
    struct Use {
        size_t cache;
        std::shared_ptr<const Chunk> chunk;
        Needed needed;
        bool read_now = false;
        std::vector<uint32_t> row_in_new{};
        std::shared_ptr<const Chunk> fresh{};
    };
    std::map<const Chunk *, Use> uses;
    std::unordered_set<const SegmentList *> seen[2];
    const auto needs = [&](const CheckpointBox & ck, bool read_now) {
        for (const CheckpointBox::Part & part : ck.parts) {
            for (const SegmentList * list = part.list.get(); list && seen[read_now].insert(list).second;
                 list = list->base().get()) {
                const Segment & segment = list->last();
                Use & use =
                    uses.try_emplace(segment.chunk.get(), Use{part.cache, segment.chunk, Needed(segment.chunk->n_rows)})
                        .first->second;
                use.needed.add(segment);
                use.read_now = use.read_now || read_now;
            }
        }
    };
    const std::vector<CheckpointHandle> checkpoints = live();
    std::vector<std::unique_lock<std::mutex>> locks;
    for (const CheckpointHandle & ck : checkpoints) {
        locks.emplace_back(ck->content, std::try_to_lock);
        needs(*ck, !locks.back());
    }
    if (taking) {
        needs(*taking, true);
    }
    CopyList copies;
    std::vector<std::pair<Use *, std::unique_ptr<Chunk>>> made;
    for (auto & [raw, use] : uses) {
        if (!use.read_now && use.needed.n() * 2 <= raw->n_rows) {
            const Located kept = use.needed.located(use.chunk, use.row_in_new);
            made.emplace_back(&use, take_chunk(layouts[use.cache], 0, kept, *pool, raw->host, copies));
        }
    }
    if (made.empty()) {
        return;
    }
    copies.run(*box.ptr, *box.store->pool);
    for (auto & [use, chunk] : made) {
        ChunkIndex & index = chunks(use->cache, chunk->host);
        // One that was not found by its content before (it came from bytes) is not found now.
        use->fresh = index.remove(use->chunk.get()) ? index.add(std::move(chunk))
                                                    : std::shared_ptr<const Chunk>(std::move(chunk));
    }
    std::unordered_map<const SegmentList *, std::shared_ptr<const SegmentList>> now; // by what it was
    for (const CheckpointHandle & ck : checkpoints) {
        for (CheckpointBox::Part & part : ck->parts) {
            std::vector<std::shared_ptr<const SegmentList>> before;
            std::shared_ptr<const SegmentList> list = part.list;
            for (; list && !now.contains(list.get()); list = list->base()) {
                before.push_back(list);
            }
            list = list ? now[list.get()] : nullptr;
            for (size_t i = before.size(); i-- > 0;) {
                const Use & use = uses.at(before[i]->last().chunk.get());
                if (use.fresh || list != before[i]->base()) {
                    Segment segment = before[i]->last();
                    if (use.fresh) {
                        segment = {use.fresh, use.row_in_new[segment.row], segment.n, segment.pos};
                    }
                    list = std::make_shared<const SegmentList>(std::move(list), std::move(segment));
                    list->last().chunk->home = list;
                } else {
                    list = before[i];
                }
                now[before[i].get()] = list;
            }
            if (list != part.list) { // never of one that is being read
                part.list = std::move(list);
            }
        }
    }
}

Status CheckpointStore::make_room(size_t bytes, const CheckpointBox & taking) {
    const auto fits = [&] { return budget_bytes < 0 || live_bytes() + bytes <= size_t(budget_bytes); };
    if (bytes == 0 || fits()) {
        return {};
    }
    try {
        repack(*taking.context, &taking);
    } catch (const std::exception &) { // no room even for that: nothing has changed, and evicting may do
    }
    if (fits()) {
        return {};
    }
    const auto refused = [&](const char * advice) {
        return Status(Code::out_of_device_memory, text("the budget of ", budget_bytes, " bytes has ", live_bytes(),
                                                       " in use, the checkpoint needs ", bytes, " more", advice));
    };
    if (!evict) {
        return refused(": release some, or set evict=True");
    }
    if (!drop(live_bytes() + bytes - size_t(budget_bytes), taking, false)) {
        return refused(", and what may be evicted does not free as much");
    }
    return {};
}

bool CheckpointStore::drop(size_t bytes, const CheckpointBox & taking, bool on_device) {
    struct Candidate {
        CheckpointHandle handle;
        std::unique_lock<std::mutex> lock;
    };
    std::vector<Candidate> candidates;
    Holders holders;
    holders.hold(taking);
    for (const CheckpointHandle & ck : live()) {
        // Reading its parts needs no lock: only their context drops them, and we are in it.
        holders.hold(*ck);
        if (ck->pinned || ck->where == Where::cells || (on_device && ck->where != Where::device)) {
            continue;
        }
        // One that another thread is reading right now is in use.
        if (std::unique_lock<std::mutex> lock(ck->content, std::try_to_lock); lock) {
            candidates.push_back({ck, std::move(lock)});
        }
    }
    std::sort(candidates.begin(), candidates.end(),
              [](const Candidate & a, const Candidate & b) { return a.handle->used_at < b.handle->used_at; });
    const int64_t wanted = int64_t(bytes);
    holders.start();
    size_t n = 0;
    while (n < candidates.size() && holders.freed() < wanted) {
        holders.let_go(*candidates[n++].handle);
    }
    if (holders.freed() < wanted) {
        return false;
    }
    // Those that free nothing that is needed stay, the most recently used first.
    for (size_t i = n; i-- > 0;) {
        CheckpointBox & ck = *candidates[i].handle;
        holders.hold(ck);
        if (holders.freed() >= wanted) {
            continue;
        }
        holders.let_go(ck);
        ck.drop();
        ck.evicted = true;
    }
    return true;
}

Status checkpoint_trim(ContextBox & box) noexcept {
    return checkpoint_guarded([&]() -> Status {
        box.store->pool->trim(); // what is kept for the next save makes room
        box.store->repack(box, nullptr);
        box.store->pool->trim();
        return {};
    });
}

CheckpointBox::~CheckpointBox() {
    drop();
    --live_counts().checkpoints;
}

void CheckpointBox::drop() {
    parts.clear();
    recurrent.reset();
    whole.reset();
    if (lease >= 0) {
        lease_release(*context, std::exchange(lease, -1));
    }
}

size_t CheckpointBox::nbytes() const {
    std::lock_guard<std::mutex> lock(content);
    size_t n = (recurrent ? recurrent->bytes() : 0) + (whole ? whole->bytes() : 0);
    for (const Part & part : parts) {
        n += size_t(part.rows.size()) * context->store->layouts[part.cache].row_bytes();
    }
    return n;
}

std::map<ggml_backend_buffer_type_t, size_t> CheckpointBox::buffers() const {
    std::lock_guard<std::mutex> lock(content);
    std::map<ggml_backend_buffer_type_t, size_t> found;
    for (const Part & part : parts) {
        const std::vector<RowTensor> & tensors = context->store->layouts[part.cache].streams[0];
        for (const Segment & segment : part.segments()) {
            for (size_t t = 0; t < tensors.size(); ++t) {
                found[segment.chunk->buffers[segment.chunk->places[t].buffer]->buft()] +=
                    segment.n * tensors[t].row_bytes();
            }
        }
    }
    for (const auto & blob : {&recurrent, &whole}) {
        if (*blob) {
            for (const auto & buffer : (*blob)->buffers) {
                found[buffer->buft()] += buffer->size();
            }
        }
    }
    return found;
}

size_t CheckpointBox::n_segments() const {
    std::lock_guard<std::mutex> lock(content);
    size_t n = 0;
    for (const Part & part : parts) {
        n += part.list ? part.list->size() : 0;
    }
    return n;
}

Status store_meta_bytes(ContextBox & box, size_t & out) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        out = store_of(box).meta_bytes();
        return {};
    });
}

Status store_set_budget(ContextBox & box, int64_t bytes, bool evict) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        store_of(box).budget_bytes = bytes;
        store_of(box).evict = evict;
        return {};
    });
}

} // namespace lloyal
