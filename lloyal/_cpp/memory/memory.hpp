// One view over llama.cpp's memory types: which caches a context has, what can be done to a sequence in them, and the
// sequence operations themselves, validated, with provenance kept.
#pragma once

#include "core/status.hpp"
#include "memory/provenance.hpp"

#include "llama.h"

#include <string>
#include <vector>

class llama_kv_cache;
class llama_kv_cache_iswa;
class llama_memory_recurrent;

namespace lloyal {

struct ContextBox;

enum class MemoryKind : int {
    none = 0,
    attention,
    sliding_window,
    recurrent,
    hybrid,
    hybrid_sliding_window,
    sparse_attention,
    compressed,
    hybrid_indexed,
};
const char * memory_kind_name(MemoryKind kind);

enum class Rollback : int { none = 0, trim, ring };

struct StateCell {
    int32_t cell = -1; // -1: the sequence has none
    Pos pos = -1;
    uint32_t pending = 0; // the snapshot it goes back to in the next decode
    bool operator==(const StateCell &) const = default;
};

// What a context's memory is made of, found once from its dynamic type.
struct MemoryMap {
    MemoryKind kind = MemoryKind::none;
    std::vector<llama_kv_cache *> caches; // every attention-like cache, the window cache included
    llama_kv_cache * window = nullptr;    // the sliding-window cache
    llama_kv_cache * rows = nullptr;      // the one that holds every row; null where the state alone stands for them
    llama_memory_recurrent * recurrent = nullptr;
    bool unified = true;
    bool shared = false; // borrows another context's cells: llama.cpp's operations on it are silent no-ops
    bool split = false;  // its tensors are split over several devices
    bool mrope = false;
    bool v_trans = false; // no flash attention: V is stored transposed
    int32_t type_k = -1;  // ggml types of the caches, by the parameters
    int32_t type_v = -1;
    bool quantized = false;   // K or V is a block type
    bool unrotated = false;   // quantized keys are stored without llama.cpp's fixed rotation
    bool keys_rotate = false; // llama.cpp can rotate keys of this type when positions change
    uint32_t n_swa = 0;
    int swa_type = 0;
    uint32_t n_rs_seq = 0;
    int32_t n_pos_max = -1; // learned position table: positions at or past this abort in ggml

    // Per sequence, how many tokens the recurrent rollback ring can take back right now, and whether a rollback waits.
    std::vector<int32_t> ring_depth;
    std::vector<bool> ring_pending;

    // `parent`: the map of the context whose memory this one may borrow, or null.
    MemoryMap(const llama_model & model, const llama_context & context, llama_memory_t memory,
              const llama_context_params & params, const MemoryMap * parent);

    bool has_recurrent() const { return recurrent != nullptr; }
    // Memory that folds rows into a state: it goes back by its ring only, and copies whole sequences.
    bool has_state() const { return recurrent != nullptr || kind == MemoryKind::compressed; }
    // The first position that a token at `pos` attends to in the window cache.
    int32_t window_begin(int32_t pos) const;
    // True if the window cache holds all that a token behind these rows of `seq` would attend to.
    bool window_complete(const Runs & rows, int32_t seq) const;
    // The positions of `seq` in a cache, in order; rows that share one repeat it.
    static std::vector<Pos> positions(const llama_kv_cache & cache, int32_t seq);
    // The rows of `seq` in a cache at [begin, end).
    static int64_t n_rows(const llama_kv_cache & cache, int32_t seq, Pos begin, Pos end);
    // Drop cells no later token of `seq` can attend to; they may be shared, and shared cells are never reused.
    void drop_stale_window(int32_t seq, int32_t next_pos);
    // True if a cell of `seq` at one of these positions belongs to another sequence too.
    bool shares_cells(int32_t seq, Pos begin, Pos end) const;
    // After a fork or restore nothing is left in the ring of `seq`.
    void reset_ring(int32_t seq);

    // Where the recurrent state of each sequence lies, and the position it has reached. Empty for other memory.
    std::vector<StateCell> state_cells() const;
    // llama.cpp counts an empty cell between those of a batch as set to zero from then on. What was stopped may have left
    // anything there.
    void distrust_empty_cells();
    // What the rings hold after a decode of n_tokens[seq] tokens each that found the states at `before`. With `split`
    // llama.cpp did not keep the last tokens of a sequence together.
    void update_rings(const std::vector<int32_t> & n_tokens, const std::vector<StateCell> & before, int32_t n_ubatch,
                      bool split);
};

bool memory_can_shift(const ContextBox & box);
Rollback memory_can_rollback(ContextBox & box, SeqId seq, int32_t n_tokens);

Status memory_clear(ContextBox & box, bool data) noexcept;
// The same without asking who holds the sequence: for the holder.
Status memory_seq_rm_any(ContextBox & box, SeqId seq, Pos p0, Pos p1) noexcept;
Status memory_seq_cp_any(ContextBox & box, SeqId src, SeqId dst, Pos p0, Pos p1) noexcept;
Status memory_seq_rm(ContextBox & box, SeqId seq, Pos p0, Pos p1) noexcept;
Status memory_seq_cp(ContextBox & box, SeqId src, SeqId dst, Pos p0, Pos p1) noexcept;
Status memory_seq_keep(ContextBox & box, SeqId seq) noexcept;
Status memory_seq_add(ContextBox & box, SeqId seq, Pos p0, Pos p1, Pos delta) noexcept;
Status memory_seq_div(ContextBox & box, SeqId seq, Pos p0, Pos p1, int d) noexcept;
Status memory_seq_pos(ContextBox & box, SeqId seq, Pos & pos_min, Pos & pos_max) noexcept;
// Cells of the fullest cache, of all its streams; states of sequences where there is no other cache.
Status memory_cells(ContextBox & box, int64_t & n_cells, int64_t & n_used) noexcept;
Status rollback_kind(ContextBox & box, SeqId seq, int32_t n_tokens, int & kind) noexcept;
Status known_rows(ContextBox & box, SeqId seq, std::vector<Run> & out) noexcept;
Status known_version(ContextBox & box, SeqId seq, uint64_t & out) noexcept;

// True if `seq` names a sequence of this context; otherwise fills `status`.
bool valid_seq(const ContextBox & box, SeqId seq, const char * name, Status & status);

} // namespace lloyal
