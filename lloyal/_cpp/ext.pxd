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

    core.Status context_memory(core.ContextBox& box, vector[BufferUse]& out)
    core.Status context_set_embeddings(core.ContextBox& box, bool value)
    core.Status context_set_causal(core.ContextBox& box, bool value)
    core.Status context_set_nextn(core.ContextBox& box, bool value, bool masked)
    core.Status nextn_row(core.ContextBox& box, int32_t i, const float*& out)
    core.Status context_set_nextn_offset(core.ContextBox& box, int32_t offset)
    core.Status context_set_layer_input(core.ContextBox& box, int32_t layer, bool value)
    core.Status layer_input_row(core.ContextBox& box, int32_t layer, int32_t i, const float*& out)
    core.Status logits_rows(core.ContextBox& box, const float*& out, int32_t& n)
    core.Status embeddings_rows(core.ContextBox& box, const float*& out, int32_t& n)
    core.Status token_embedding(core.ModelBox& model, float* out, size_t& n)
