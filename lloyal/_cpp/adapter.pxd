# Declarations of adapter.hpp.

from libc.stdint cimport int32_t
from libcpp.memory cimport shared_ptr
from libcpp.string cimport string
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core
cimport lloyal.libllama.llama as c

cdef extern from "adapter.hpp" namespace "lloyal" nogil:
    cppclass AdapterBox:
        c.llama_adapter_lora* ptr
        core.ModelHandle model
    ctypedef shared_ptr[AdapterBox] AdapterHandle

    core.Status adapter_load(core.ModelHandle model, const string& path, AdapterHandle& out)
    core.Status adapters_set "lloyal::inside<lloyal::adapters_set>"(
        const core.ContextHandle& ctx, const vector[AdapterHandle]& adapters, const vector[float]& scales)
    core.Status control_vector_set "lloyal::inside<lloyal::control_vector_set>"(
        const core.ContextHandle& ctx, const float* data, size_t len, int32_t n_embd, int32_t il_start,
        int32_t il_end)
