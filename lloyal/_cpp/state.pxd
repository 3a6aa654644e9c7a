# Declarations of state: raw states, checkpoints, what they cost.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libcpp cimport bool
from libcpp.atomic cimport atomic
from libcpp.map cimport map as cppmap
from libcpp.memory cimport shared_ptr
from libcpp.vector cimport vector

cimport lloyal.libllama.ggml as g
from lloyal._cpp.core cimport ContextBox, ContextHandle, Run, Runs, Status

cdef extern from "state/raw_state.hpp" namespace "lloyal" nogil:
    Status state_seq_set_data "lloyal::inside<lloyal::state_seq_set_data>"(
        const ContextHandle& ctx, const uint8_t* data, size_t size, int32_t dest, uint32_t flags, size_t& read)
    Status state_set_data "lloyal::inside<lloyal::state_set_data>"(
        const ContextHandle& ctx, const uint8_t* data, size_t size, bool exact, size_t& read)
    Status state_seq_read_payload "lloyal::inside<lloyal::state_seq_read_payload>"(
        const ContextHandle& ctx, const uint8_t* data, size_t size, int32_t dest)
    Status state_seq_write "lloyal::inside<lloyal::state_seq_write>"(
        const ContextHandle& ctx, uint8_t* out, size_t size, int32_t seq, uint32_t flags, size_t& need, size_t& written)
    Status state_write "lloyal::inside<lloyal::state_write>"(
        const ContextHandle& ctx, uint8_t* out, size_t size, size_t& need, size_t& written)

cdef extern from "state/copy.hpp" namespace "lloyal" nogil:
    cppclass BufferPool:
        size_t idle_bytes() const
        int64_t reserve() const
        void set_reserve(int64_t bytes)
        cppmap[g.ggml_backend_buffer_type_t, size_t] live_bytes() except +

cdef extern from "state/checkpoint.hpp" namespace "lloyal" nogil:
    cppclass Where:
        pass
    Where where_device "lloyal::Where::device"
    Where where_host "lloyal::Where::host"
    Where where_cells "lloyal::Where::cells"

    cppclass CheckpointBox:
        bool partial
        int32_t seq
        Runs rows
        int32_t pos_min
        int32_t pos_max
        int32_t window_begin
        int32_t lease
        atomic[bool] pinned
        atomic[bool] evicted
        size_t nbytes() except +
        cppmap[g.ggml_backend_buffer_type_t, size_t] buffers() except +
        size_t n_segments() except +
    ctypedef shared_ptr[CheckpointBox] CheckpointHandle

    cppclass CheckpointStore:
        shared_ptr[BufferPool] pool
        int64_t budget_bytes
        bool evict
    CheckpointStore& store_of(ContextBox& box) except +

    Status checkpoint_take "lloyal::inside<lloyal::checkpoint_take>"(
        const ContextHandle& context, int32_t seq, Where where, bool partial, CheckpointHandle& out)
    Status checkpoint_restore "lloyal::inside<lloyal::checkpoint_restore>"(
        CheckpointBox& checkpoint, const ContextHandle& context, int32_t dest)
    Status checkpoint_trim "lloyal::inside<lloyal::checkpoint_trim>"(const ContextHandle& ctx)
    Status memory_compact "lloyal::inside<lloyal::memory_compact>"(const ContextHandle& ctx)
    struct Estimate:
        size_t copied_bytes
        int64_t rows
        int64_t free_cells
        int64_t n_cells
        size_t device_free
        bool is_host
        double device_seconds
        double cells_seconds
    Status checkpoint_estimate "lloyal::inside<lloyal::checkpoint_estimate>"(
        const ContextHandle& context, int32_t seq, bool partial, Estimate& out)
    cppclass LayoutSignature:
        vector[uint8_t] rope
        vector[uint8_t] tensors
    Status layout_signature(ContextBox& box, LayoutSignature& out)
    Status checkpoint_export_size(CheckpointBox& checkpoint, size_t& size)
    Status checkpoint_export(CheckpointBox& checkpoint, uint8_t* out, size_t size)
    Status checkpoint_import "lloyal::inside<lloyal::checkpoint_import>"(
        const ContextHandle& context, const uint8_t* data, size_t size, bool partial, int32_t seq,
        const vector[Run]& rows, int32_t window_begin, bool known,
        CheckpointHandle& out)
    Status checkpoint_to_host "lloyal::inside<lloyal::checkpoint_to_host>"(
        const ContextHandle& ctx, CheckpointBox& checkpoint, CheckpointHandle& out)
    Status store_meta_bytes "lloyal::inside<lloyal::store_meta_bytes>"(const ContextHandle& ctx, size_t& out)
    Status store_set_budget "lloyal::inside<lloyal::store_set_budget>"(const ContextHandle& ctx, int64_t bytes, bool evict)
