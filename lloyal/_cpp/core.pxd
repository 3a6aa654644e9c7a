# Declarations of our own C++ (the headers beside this file).
#
# What changes a context or a sampler, or reads what may change, is declared by `inside`, which takes the handle and is the
# one caller for the time of the call (calls.hpp); what computes graphs, by `computing`. Nothing else takes a box, but for what never changes.

from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool
from libcpp.memory cimport shared_ptr
from libcpp.string cimport string
from libcpp.vector cimport vector

cimport lloyal.libllama.ggml as g
cimport lloyal.libllama.llama as c

cdef extern from "calls.hpp" nogil:
    pass

cdef extern from "status.hpp" namespace "lloyal" nogil:
    cppclass Status:
        int native
        string message
        bool ok() const
        int value() const

cdef extern from "log.hpp" namespace "lloyal" nogil:
    cppclass LogLine:
        int level
        string text
    void log_install()
    bool log_pending()
    vector[LogLine] log_drain(uint64_t& lost)
    string log_last()
    void log_mark()

cdef extern from "budget.hpp" namespace "lloyal" nogil:
    void budget_on_poll(bool (*poll)() noexcept nogil)

cdef extern from "fence.hpp" namespace "lloyal" nogil:
    void fence_install()

cdef extern from "exit.hpp" namespace "lloyal" nogil:
    bool exiting()
    void exit_begin()

cdef extern from "fork.hpp" namespace "lloyal" nogil:
    void fork_install()
    bool forked()

cdef extern from "provenance.hpp" namespace "lloyal" nogil:
    cppclass Run:
        int32_t begin
        int32_t end
        uint64_t epoch
        uint64_t first
    cppclass Runs:
        const vector[Run]& list() const
        int32_t begin() const
        int32_t end() const
        bool empty() const

cdef extern from "memory.hpp" namespace "lloyal" nogil:
    cppclass MemoryKind:
        pass
    const char* memory_kind_name(MemoryKind kind)
    cppclass MemoryMap:
        MemoryKind kind
        bool unified
        bool shared
        bool mrope
        bool v_trans
        bool quantized
        uint32_t n_rs_seq
        bool has_recurrent() const
        int32_t window_begin(int32_t pos) const

cdef extern from "handles.hpp" namespace "lloyal" nogil:
    cppclass LiveCounts:
        int64_t models
        int64_t contexts
        int64_t samplers
        int64_t adapters
        int64_t checkpoints
        int64_t connections
    LiveCounts& live_counts()

    cppclass ModelBox:
        c.llama_model* ptr
        vector[uint8_t] sample
    ctypedef shared_ptr[ModelBox] ModelHandle

    ctypedef bool (*PollFn)() noexcept nogil

    cppclass ContextBox:
        ModelHandle model
        c.llama_context* ptr
        uint64_t id
        MemoryMap map
    ctypedef shared_ptr[ContextBox] ContextHandle

    Status model_load(const vector[string]& paths, c.llama_model_params params,
                      const vector[g.ggml_backend_dev_t]& devices, const vector[float]& tensor_split,
                      const vector[string]& patterns, const vector[g.ggml_backend_dev_t]& places, ModelHandle& out)
    Status model_save(ModelBox& model, const string& path)
    Status context_create(ModelHandle model, c.llama_context_params params, ContextHandle parent, PollFn poll,
                          ContextHandle& out)
    void context_request_abort(ContextBox& box)

cdef extern from "memory.hpp" namespace "lloyal" nogil:
    bool memory_can_shift(const ContextBox& box)
    Status memory_clear "lloyal::inside<lloyal::memory_clear>"(const ContextHandle& ctx, bool data)
    Status memory_seq_rm "lloyal::inside<lloyal::memory_seq_rm>"(
        const ContextHandle& ctx, int32_t seq, int32_t p0, int32_t p1)
    Status memory_seq_cp "lloyal::inside<lloyal::memory_seq_cp>"(
        const ContextHandle& ctx, int32_t src, int32_t dst, int32_t p0, int32_t p1)
    Status memory_seq_keep "lloyal::inside<lloyal::memory_seq_keep>"(const ContextHandle& ctx, int32_t seq)
    Status memory_seq_add "lloyal::computing<lloyal::memory_seq_add>"(
        const ContextHandle& ctx, int32_t seq, int32_t p0, int32_t p1, int32_t delta)
    Status memory_seq_div "lloyal::computing<lloyal::memory_seq_div>"(
        const ContextHandle& ctx, int32_t seq, int32_t p0, int32_t p1, int d)
    Status memory_seq_pos "lloyal::inside<lloyal::memory_seq_pos>"(
        const ContextHandle& ctx, int32_t seq, int32_t& pos_min, int32_t& pos_max)

cdef extern from "threads.hpp" namespace "lloyal" nogil:
    Status check_threads(int32_t n)

cdef extern from "batch.hpp" namespace "lloyal" nogil:
    cppclass BatchEntry:
        bool has_token
        c.llama_token token
        c.llama_pos pos
        vector[c.llama_seq_id] seqs
        bool logits
    cppclass Batch:
        Batch() except +
        void clear()
        void add(c.llama_token token, c.llama_pos pos, const c.llama_seq_id* seqs, int32_t n_seqs, bool logits) except +
        void extend(const c.llama_token* tokens, size_t n, c.llama_pos pos0, c.llama_seq_id seq, bool logits_all,
                    bool logits_last) except +
        void extend_embd(const float* rows, size_t n, int32_t n_embd, c.llama_pos pos0, c.llama_seq_id seq,
                         bool logits_all, bool logits_last) except +
        void set_logits(size_t i, bool value)
        size_t size() const
        bool has_embd() const
        int32_t n_embd() const
        BatchEntry entry(size_t i) except +

cdef extern from "decode.hpp" namespace "lloyal" nogil:
    Status decode "lloyal::computing<lloyal::decode>"(const ContextHandle& ctx, Batch& batch, bool tenant)
    Status encode "lloyal::computing<lloyal::encode>"(const ContextHandle& ctx, Batch& batch)

cdef extern from "raw_state.hpp" namespace "lloyal" nogil:
    Status state_seq_set_data "lloyal::inside<lloyal::state_seq_set_data>"(
        const ContextHandle& ctx, const uint8_t* data, size_t size, int32_t dest, uint32_t flags, size_t& read)
    Status state_set_data "lloyal::inside<lloyal::state_set_data>"(
        const ContextHandle& ctx, const uint8_t* data, size_t size, bool exact, size_t& read)
    Status state_seq_read_payload "lloyal::inside<lloyal::state_seq_read_payload>"(
        const ContextHandle& ctx, const uint8_t* data, size_t size, int32_t dest)

cdef extern from "vocab.hpp" namespace "lloyal" nogil:
    Status tokenize(const c.llama_vocab* vocab, const char* data, size_t size, bool add_special, bool parse_special,
                    vector[c.llama_token]& out)
    Status detokenize(const c.llama_vocab* vocab, const vector[c.llama_token]& tokens, bool remove_special,
                      bool unparse_special, string& out)
    Status token_to_piece(const c.llama_vocab* vocab, c.llama_token token, bool special, string& out)
