// Checkpoints: the state of one sequence as a value. Any number per sequence, each freed by itself, restored anywhere.
#pragma once

#include "core/handles.hpp"
#include "state/chunks.hpp"

#include <atomic>
#include <functional>
#include <limits>
#include <optional>

namespace lloyal {

enum class Where : int { device = 0, host, cells };

struct CheckpointBox;
using CheckpointHandle = std::shared_ptr<CheckpointBox>;

// What a context keeps for its checkpoints: how its caches are laid out, the shared chunks, the buffer pool, the budget.
class CheckpointStore {
  public:
    explicit CheckpointStore(ContextBox & box);

    std::vector<KvLayout> layouts; // by cache of the memory map; empty if the memory is not taken apart
    bool whole_only;               // this memory is copied as one blob
    std::shared_ptr<BufferPool> pool;

    int64_t budget_bytes = -1; // no budget
    bool evict = false;

    // How fast this context's checkpoints were taken: seconds a byte copied to a device, and a row shared as cells.
    struct Speed {
        double seconds = 0;
        double units = 0;
        void add(double s, double n) { // the past counts half
            seconds = seconds / 2 + s;
            units = units / 2 + n;
        }
    };
    Speed device_speed;
    Speed cells_speed;

    ChunkIndex & chunks(size_t cache, bool host) { return *(host ? host_chunks_ : device_chunks_)[cache]; }
    uint64_t tick() { return ++clock_; } // order of use, for eviction
    std::vector<CheckpointHandle> live();
    void track(const CheckpointHandle & checkpoint);
    // Copy out of large chunks what little of them is still needed, so that they can go; what `taking` holds, or another
    // thread reads, stays. The caller is in `box`.
    void repack(ContextBox & box, const CheckpointBox * taking);
    // Make room for `bytes` more under the budget, or say why not and leave everything. What `taking` already shares is kept.
    Status make_room(size_t bytes, const CheckpointBox & taking);
    // Evict what frees so much, or nothing and false; `on_device`: of a device's memory.
    bool drop(size_t bytes, const CheckpointBox & taking, bool on_device);
    size_t live_bytes() const;
    size_t meta_bytes(); // host bytes of bookkeeping, shared ones counted once

  private:
    std::vector<std::shared_ptr<ChunkIndex>> device_chunks_; // by cache
    std::vector<std::shared_ptr<ChunkIndex>> host_chunks_;
    std::atomic<uint64_t> clock_{0};
    std::mutex mutex_;
    std::vector<std::weak_ptr<CheckpointBox>> checkpoints_;
};

struct CheckpointBox {
    ContextHandle context;
    Where where = Where::device;
    bool partial = false;
    SeqId seq = 0; // the sequence it was taken from
    Runs rows;     // every logical row up to its end
    Pos pos_min = -1;
    Pos pos_max = -1;
    Pos window_begin = 0;  // its rows of a sliding-window cache begin here
    SeqId lease = -1;      // where=cells: the sequence that holds the cells
    uint64_t encoding = 0; // the encoder's output that its context had

    struct Part {
        size_t cache; // index in the memory map
        Runs rows;
        std::shared_ptr<const SegmentList> list; // null if there are no rows

        std::vector<Segment> segments() const { return list ? list->all() : std::vector<Segment>{}; }
    };
    std::vector<Part> parts;
    std::optional<Blob> recurrent;
    std::optional<Blob> whole;
    size_t whole_cells = 0; // of its attention part: more than rows where positions repeat

    // Held while the parts are read or dropped: a thread in its context may evict it while another one copies it out.
    mutable std::mutex content;
    std::atomic<bool> pinned{false};
    std::atomic<bool> evicted{false};
    std::atomic<uint64_t> used_at{0};

    CheckpointBox() { ++live_counts().checkpoints; }
    CheckpointBox(const CheckpointBox &) = delete;
    ~CheckpointBox();

    size_t nbytes() const; // tensor bytes it refers to, shared ones included
    std::map<ggml_backend_buffer_type_t, size_t> buffers() const;
    size_t n_segments() const;
    void drop(); // give up what it holds; it can no longer be restored
};

CheckpointStore & store_of(ContextBox & box);
Status store_meta_bytes(ContextBox & box, size_t & out) noexcept;
Status store_set_budget(ContextBox & box, int64_t bytes, bool evict) noexcept;

// What taking and restoring share: errors, what a context can be asked for, and which cache keeps every row.
Status checkpoint_guarded(const std::function<Status()> & body) noexcept;
Status check_checkpointable(const ContextBox & box, SeqId seq, const char * name);
Status check_not_evicted(const CheckpointBox & checkpoint);
Status check_lease(const CheckpointBox & checkpoint); // where=cells: that its cells still are what they were
bool is_base(const MemoryMap & map, size_t cache);

Status checkpoint_take(ContextHandle context, SeqId seq, Where where, bool partial, CheckpointHandle & out) noexcept;
// The same state in host memory, sharing what host checkpoints of its context, which is `box`, already hold.
Status checkpoint_to_host(ContextBox & box, CheckpointBox & checkpoint, CheckpointHandle & out) noexcept;
// Give back all memory that no checkpoint needs.
Status checkpoint_trim(ContextBox & box) noexcept;
// What taking a checkpoint would cost, for choosing a place.
struct Estimate {
    size_t copied_bytes = 0; // not held by a checkpoint in the same place yet
    int64_t rows = 0;
    int64_t free_cells = 0; // of the fullest cache that keeps every row
    int64_t n_cells = 0;
    size_t device_free = std::numeric_limits<size_t>::max(); // as the device reports it
    bool is_host = true;                                     // all of it is in host memory
    double device_seconds = -1;                              // predicted from earlier ones, negative before the first
    double cells_seconds = -1;
};
Status checkpoint_estimate(ContextHandle context, SeqId seq, bool partial, Estimate & out) noexcept;
// Restore into sequence `dest` of `context`, which may be another context of the same model and layout.
Status checkpoint_restore(CheckpointBox & checkpoint, ContextBox & context, SeqId dest) noexcept;
// The layout of a context's state as bytes: equal means a state of one fits the other.
struct LayoutSignature {
    std::vector<uint8_t> rope;    // how keys are rotated
    std::vector<uint8_t> tensors; // kind of memory, windows, types and sizes
};
Status layout_signature(ContextBox & box, LayoutSignature & out) noexcept;

// Serialization: every tensor byte in a fixed order, behind the caller's header and checksum.
Status checkpoint_export_size(CheckpointBox & checkpoint, size_t & size) noexcept;
Status checkpoint_export(CheckpointBox & checkpoint, uint8_t * out, size_t size) noexcept;
// `partial`, `seq`, `rows`, `window_begin`: from the header, not trusted. Makes a host checkpoint. `known`: the bytes are proved to
// be what this process wrote, so that the content ids among them mean what they say.
Status checkpoint_import(ContextHandle context, const uint8_t * data, size_t size, bool partial, SeqId seq,
                         const std::vector<Run> & rows, Pos window_begin, bool known, CheckpointHandle & out) noexcept;
// Put the rows of every sequence next to each other, in order. Nothing else changes: who shares what, ids, outputs.
Status memory_compact(ContextBox & box) noexcept;

} // namespace lloyal
