# Declarations of decode: batches, computing them, and their outputs.

from libc.stdint cimport int32_t, uint64_t
from libcpp cimport bool
from libcpp.string cimport string
from libcpp.vector cimport vector

cimport lloyal.libllama.ggml as g
cimport lloyal.libllama.llama as c
from lloyal._cpp.core cimport ContextBox, ContextHandle, Status

cdef extern from "decode/batch.hpp" namespace "lloyal" nogil:
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

cdef extern from "decode/batch_ext.hpp" namespace "lloyal" nogil:
    cppclass BatchExtEntry "lloyal::BatchExt::Entry":
        c.llama_token token
        vector[c.llama_seq_id] seqs
        c.llama_pos pos[4]
        size_t n_pos
        bool output
    cppclass BatchExt:
        BatchExt() except +
        void clear()
        size_t size() const
        void limit(size_t n_max, int32_t n_seq_max, size_t n_sections)
        Status add(c.llama_seq_id seq, c.llama_token token, const float* row, size_t n, int32_t& index)
        Status add_seq(int32_t i, c.llama_seq_id seq)
        Status set_embd(int32_t i, const float* row, size_t n)
        Status set_pos(int32_t i, const vector[c.llama_pos]& pos)
        Status set_output(int32_t i, bool value)
        Status entry(int32_t i, BatchExtEntry& out)
        Status build(Batch& out)

cdef extern from "decode/decode.hpp" namespace "lloyal" nogil:
    Status decode "lloyal::computing<lloyal::decode>"(const ContextHandle& ctx, Batch& batch, bool tenant)
    Status encode "lloyal::computing<lloyal::encode>"(const ContextHandle& ctx, Batch& batch)
    Status process_decode "lloyal::computing<lloyal::process_decode>"(
        const ContextHandle& ctx, const Batch& batch, bool tenant)
    Status process_encode "lloyal::computing<lloyal::process_encode>"(
        const ContextHandle& ctx, const Batch& batch)
    int32_t process_n_embd(const ContextBox& box, bool encoding)

cdef extern from "decode/hidden.hpp" namespace "lloyal" nogil:
    Status context_keep_hidden "lloyal::inside<lloyal::context_keep_hidden>"(
        const ContextHandle& ctx, const vector[int32_t]& layers, int32_t most)
    Status context_is_on "lloyal::inside<lloyal::context_is_on>"(
        const ContextHandle& ctx, const ContextHandle& parent, bool& out)
    cppclass HeadInfo:
        bool mtp
        bool shared
        bool chained
        int32_t n_embd
        int32_t n_embd_features
    Status context_head_info "lloyal::inside<lloyal::context_head_info>"(const ContextHandle& ctx, HeadInfo& out)

cdef extern from "decode/log_probs.hpp" namespace "lloyal" nogil:
    cppclass LogProb:
        double value
        int32_t index

cdef extern from "decode/outputs.hpp" namespace "lloyal" nogil:
    cppclass Output:
        const float* data
        size_t n
        uint64_t generation

    # Constants of a context.
    size_t n_logits(const ContextBox& box)
    size_t n_embedding(const ContextBox& box)
    size_t n_pooled(const ContextBox& box)
    size_t n_layer_input(const ContextBox& box)

    Status read_logits "lloyal::inside<lloyal::read_logits>"(
        const ContextHandle& ctx, int32_t i, float* out, size_t room, Output& output)
    Status read_embedding "lloyal::inside<lloyal::read_embedding>"(
        const ContextHandle& ctx, int32_t i, float* out, size_t room, Output& output)
    Status read_pooled "lloyal::inside<lloyal::read_pooled>"(
        const ContextHandle& ctx, int32_t seq, float* out, size_t room, Output& output)
    Status read_nextn "lloyal::inside<lloyal::read_nextn>"(
        const ContextHandle& ctx, int32_t i, float* out, size_t room, Output& output)
    Status read_layer_input "lloyal::inside<lloyal::read_layer_input>"(
        const ContextHandle& ctx, int32_t layer, int32_t i, float* out, size_t room, Output& output)
    Status read_all "lloyal::inside<lloyal::read_all>"(
        const ContextHandle& ctx, bool embeddings, vector[float]& out, int32_t& n_rows)
    Status output_value "lloyal::inside<lloyal::output_value>"(const ContextHandle& ctx, const Output& output, size_t i, float& out)
    Status output_argmax "lloyal::inside<lloyal::output_argmax>"(const ContextHandle& ctx, const Output& output, int32_t& out)
    Status output_stale "lloyal::inside<lloyal::output_stale>"(const ContextHandle& ctx, const Output& output, bool& stale)
    Status output_copy "lloyal::inside<lloyal::output_copy>"(const ContextHandle& ctx, const Output& output, float* out)

    Status output_log_prob "lloyal::inside<lloyal::output_log_prob>"(
        const ContextHandle& ctx, const Output& output, size_t i, double& out)
    Status output_most_probable "lloyal::inside<lloyal::output_most_probable>"(
        const ContextHandle& ctx, const Output& output, size_t count, vector[LogProb]& out)

cdef extern from "decode/ext.hpp" namespace "lloyal" nogil:
    cppclass BufferUse:
        string buffer
        g.ggml_backend_dev_t device
        bool is_host
        size_t model
        size_t context
        size_t compute

    Status context_memory "lloyal::inside<lloyal::context_memory>"(
        const ContextHandle& ctx, vector[BufferUse]& out)
    Status context_set_embeddings "lloyal::inside<lloyal::context_set_embeddings>"(
        const ContextHandle& ctx, bool value)
    Status context_set_causal "lloyal::inside<lloyal::context_set_causal>"(
        const ContextHandle& ctx, bool value)
    Status context_set_nextn "lloyal::inside<lloyal::context_set_nextn>"(
        const ContextHandle& ctx, bool value, bool masked)
    Status context_set_nextn_offset "lloyal::inside<lloyal::context_set_nextn_offset>"(
        const ContextHandle& ctx, int32_t offset)
    Status context_set_layer_input "lloyal::inside<lloyal::context_set_layer_input>"(
        const ContextHandle& ctx, int32_t layer, bool value)
