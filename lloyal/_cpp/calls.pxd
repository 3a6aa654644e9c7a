# Declarations of calls.hpp: what takes several steps in one stay.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool
from libcpp.string cimport string
from libcpp.vector cimport vector

cimport lloyal.libllama.llama as c
from lloyal._cpp.checkpoint cimport CheckpointBox, CheckpointHandle
from lloyal._cpp.core cimport ContextBox, ContextHandle, Run, Status
from lloyal._cpp.sampler cimport SamplerHandle

cdef extern from "calls.hpp" namespace "lloyal" nogil:
    cppclass Row:
        const float* data
        size_t n
        uint64_t generation

    # Constants of a context.
    size_t n_embedding(const ContextBox& box)
    size_t n_pooled(const ContextBox& box)
    size_t n_layer_input(const ContextBox& box)

    Status read_logits "lloyal::inside<lloyal::read_logits>"(
        const ContextHandle& ctx, int32_t i, float* out, size_t room, Row& row)
    Status read_embedding "lloyal::inside<lloyal::read_embedding>"(
        const ContextHandle& ctx, int32_t i, float* out, size_t room, Row& row)
    Status read_pooled "lloyal::inside<lloyal::read_pooled>"(
        const ContextHandle& ctx, int32_t seq, float* out, size_t room, Row& row)
    Status read_nextn "lloyal::inside<lloyal::read_nextn>"(
        const ContextHandle& ctx, int32_t i, float* out, size_t room, Row& row)
    Status read_layer_input "lloyal::inside<lloyal::read_layer_input>"(
        const ContextHandle& ctx, int32_t layer, int32_t i, float* out, size_t room, Row& row)
    Status read_all "lloyal::inside<lloyal::read_all>"(
        const ContextHandle& ctx, bool embeddings, vector[float]& out, int32_t& n_rows)
    Status read_sample "lloyal::inside<lloyal::read_sample>"(
        const ContextHandle& ctx, int32_t i, c.llama_token& token, vector[c.llama_token]& ids, Row& logits, Row& probs)
    Status row_value "lloyal::inside<lloyal::row_value>"(const ContextHandle& ctx, const Row& row, size_t i, float& out)
    Status row_argmax "lloyal::inside<lloyal::row_argmax>"(const ContextHandle& ctx, const Row& row, int32_t& out)
    Status row_stale "lloyal::inside<lloyal::row_stale>"(const ContextHandle& ctx, const Row& row, bool& stale)
    Status row_copy "lloyal::inside<lloyal::row_copy>"(const ContextHandle& ctx, const Row& row, float* out)
    Status synchronize "lloyal::inside<lloyal::synchronize>"(const ContextHandle& ctx)
    Status set_n_threads "lloyal::inside<lloyal::set_n_threads>"(
        const ContextHandle& ctx, int32_t n_threads, int32_t n_threads_batch)
    Status rollback_kind "lloyal::inside<lloyal::rollback_kind>"(
        const ContextHandle& ctx, int32_t seq, int32_t n_tokens, int& kind)
    Status known_rows "lloyal::inside<lloyal::known_rows>"(const ContextHandle& ctx, int32_t seq, vector[Run]& out)
    Status state_seq_write "lloyal::inside<lloyal::state_seq_write>"(
        const ContextHandle& ctx, uint8_t* out, size_t size, int32_t seq, uint32_t flags, size_t& need, size_t& written)
    Status state_write "lloyal::inside<lloyal::state_write>"(
        const ContextHandle& ctx, uint8_t* out, size_t size, size_t& need, size_t& written)
    Status sampler_name "lloyal::inside<lloyal::sampler_name>"(const SamplerHandle& sampler, string& out)
    Status sampler_seed_used "lloyal::inside<lloyal::sampler_seed_used>"(
        const SamplerHandle& sampler, bool& found, uint32_t& seed)
    Status checkpoint_to_host "lloyal::inside<lloyal::checkpoint_to_host_inside>"(
        const ContextHandle& ctx, CheckpointBox& checkpoint, CheckpointHandle& out)
    Status store_meta_bytes "lloyal::inside<lloyal::store_meta_bytes>"(const ContextHandle& ctx, size_t& out)
    Status store_set_budget "lloyal::inside<lloyal::store_set_budget>"(const ContextHandle& ctx, int64_t bytes, bool evict)
    Status count_available_leases "lloyal::inside<lloyal::count_available_leases>"(const ContextHandle& ctx, int32_t& out)
