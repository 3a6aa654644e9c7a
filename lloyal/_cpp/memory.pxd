# Declarations of memory: operations on sequences. What it is made of is part of a context, see core.pxd.

from libc.stdint cimport int32_t, int64_t, uint64_t
from libcpp cimport bool
from libcpp.vector cimport vector

from lloyal._cpp.core cimport ContextBox, ContextHandle, Run, Status

cdef extern from "memory/memory.hpp" namespace "lloyal" nogil:
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
    Status memory_cells "lloyal::inside<lloyal::memory_cells>"(
        const ContextHandle& ctx, int64_t& n_cells, int64_t& n_used)
    Status rollback_kind "lloyal::inside<lloyal::rollback_kind>"(
        const ContextHandle& ctx, int32_t seq, int32_t n_tokens, int& kind)
    Status known_rows "lloyal::inside<lloyal::known_rows>"(const ContextHandle& ctx, int32_t seq, vector[Run]& out)
    Status known_version "lloyal::inside<lloyal::known_version>"(const ContextHandle& ctx, int32_t seq, uint64_t& out)
