# Declarations of ext.hpp.

from libc.stdint cimport int32_t
from libcpp cimport bool
from libcpp.string cimport string
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core
cimport lloyal.libllama.ggml as g

cdef extern from "ext.hpp" namespace "lloyal" nogil:
    cppclass BufferUse:
        string buffer
        g.ggml_backend_dev_t device
        bool is_host
        size_t model
        size_t context
        size_t compute

    core.Status context_memory "lloyal::inside<lloyal::context_memory>"(
        const core.ContextHandle& ctx, vector[BufferUse]& out)
    core.Status context_set_embeddings "lloyal::inside<lloyal::context_set_embeddings>"(
        const core.ContextHandle& ctx, bool value)
    core.Status context_set_causal "lloyal::inside<lloyal::context_set_causal>"(
        const core.ContextHandle& ctx, bool value)
    core.Status context_set_nextn "lloyal::inside<lloyal::context_set_nextn>"(
        const core.ContextHandle& ctx, bool value, bool masked)
    core.Status context_set_nextn_offset "lloyal::inside<lloyal::context_set_nextn_offset>"(
        const core.ContextHandle& ctx, int32_t offset)
    core.Status context_set_layer_input "lloyal::inside<lloyal::context_set_layer_input>"(
        const core.ContextHandle& ctx, int32_t layer, bool value)
    core.Status token_embedding(core.ModelBox& model, float* out, size_t& n)
