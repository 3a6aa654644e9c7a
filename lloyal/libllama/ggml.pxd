# Declarations of the parts of ggml.h, ggml-cpu.h, ggml-backend.h and gguf.h that ring 1 uses.

from libc.stdint cimport int64_t
from libcpp cimport bool

cdef extern from "ggml.h" nogil:
    ctypedef struct ggml_tensor
    ctypedef struct ggml_threadpool
    ctypedef ggml_threadpool* ggml_threadpool_t

    ctypedef bool (*ggml_abort_callback)(void* data) noexcept nogil

    ctypedef enum ggml_type:
        GGML_TYPE_F32
        GGML_TYPE_F16
        GGML_TYPE_Q4_0
        GGML_TYPE_Q4_1
        GGML_TYPE_Q5_0
        GGML_TYPE_Q5_1
        GGML_TYPE_Q8_0
        GGML_TYPE_IQ4_NL
        GGML_TYPE_BF16
        GGML_TYPE_COUNT

    ctypedef enum ggml_log_level:
        GGML_LOG_LEVEL_NONE
        GGML_LOG_LEVEL_DEBUG
        GGML_LOG_LEVEL_INFO
        GGML_LOG_LEVEL_WARN
        GGML_LOG_LEVEL_ERROR
        GGML_LOG_LEVEL_CONT

    ctypedef void (*ggml_log_callback)(ggml_log_level level, const char* text, void* user_data) noexcept nogil

    const char* ggml_type_name(ggml_type type)
    bool ggml_is_quantized(ggml_type type)
    const char* ggml_version()
    const char* ggml_commit()

cdef extern from "ggml-cpu.h" nogil:
    ctypedef enum ggml_numa_strategy:
        GGML_NUMA_STRATEGY_DISABLED
        GGML_NUMA_STRATEGY_DISTRIBUTE
        GGML_NUMA_STRATEGY_ISOLATE
        GGML_NUMA_STRATEGY_NUMACTL
        GGML_NUMA_STRATEGY_MIRROR

cdef extern from "gguf.h" nogil:
    ctypedef struct gguf_context

cdef extern from "ggml-backend.h" nogil:
    ctypedef struct ggml_backend_buffer_type
    ctypedef ggml_backend_buffer_type* ggml_backend_buffer_type_t
    ctypedef struct ggml_backend_device
    ctypedef ggml_backend_device* ggml_backend_dev_t
    ctypedef struct ggml_backend_reg
    ctypedef ggml_backend_reg* ggml_backend_reg_t
    ctypedef bool (*ggml_backend_sched_eval_callback)(ggml_tensor* t, bool ask, void* user_data) noexcept nogil

    ctypedef enum ggml_backend_dev_type_t "enum ggml_backend_dev_type":
        GGML_BACKEND_DEVICE_TYPE_CPU
        GGML_BACKEND_DEVICE_TYPE_GPU
        GGML_BACKEND_DEVICE_TYPE_IGPU
        GGML_BACKEND_DEVICE_TYPE_ACCEL
        GGML_BACKEND_DEVICE_TYPE_META

    const char* ggml_backend_buft_name(ggml_backend_buffer_type_t buft)
    ggml_backend_dev_t ggml_backend_buft_get_device(ggml_backend_buffer_type_t buft)
    bool ggml_backend_buft_is_host(ggml_backend_buffer_type_t buft)

    const char* ggml_backend_dev_name(ggml_backend_dev_t device)
    const char* ggml_backend_dev_description(ggml_backend_dev_t device)
    void ggml_backend_dev_memory(ggml_backend_dev_t device, size_t* free, size_t* total)
    ggml_backend_dev_type_t ggml_backend_dev_get_type "ggml_backend_dev_type" (ggml_backend_dev_t device)
    ggml_backend_reg_t ggml_backend_dev_backend_reg(ggml_backend_dev_t device)

    const char* ggml_backend_reg_name(ggml_backend_reg_t reg)
    void* ggml_backend_reg_get_proc_address(ggml_backend_reg_t reg, const char* name)
    ggml_backend_reg_t ggml_backend_reg_by_name(const char* name)
    size_t ggml_backend_reg_count()
    ggml_backend_reg_t ggml_backend_reg_get(size_t index)
    void ggml_backend_register(ggml_backend_reg_t reg)
    size_t ggml_backend_dev_count()
    ggml_backend_dev_t ggml_backend_dev_get(size_t index)
    ggml_backend_dev_t ggml_backend_dev_by_name(const char* name)
    ggml_backend_reg_t ggml_backend_load(const char* path)
    size_t ggml_backend_reg_dev_count(ggml_backend_reg_t reg)
    void ggml_backend_load_all_from_path(const char* dir_path)
