# Declarations of the parts of llama.cpp's src/llama-ext.h that ring 1 uses: a staging header in C++, which changes with
# every version.

from libc.stdint cimport int32_t, uint32_t
from libcpp cimport bool
from libcpp.map cimport map as cppmap

cimport lloyal.libllama.ggml as g
cimport lloyal.libllama.llama as c

cdef extern from "llama-ext.h" nogil:
    ctypedef struct llama_memory_breakdown_data:
        size_t model
        size_t context
        size_t compute
    ctypedef cppmap[g.ggml_backend_buffer_type_t, llama_memory_breakdown_data] llama_memory_breakdown

    int32_t llama_model_n_expert(const c.llama_model* model)
    int32_t llama_model_n_devices(const c.llama_model* model)
    g.ggml_backend_dev_t llama_model_get_device(const c.llama_model* model, int i)
    llama_memory_breakdown llama_get_memory_breakdown(const c.llama_context* ctx)
    int32_t llama_model_dflash_selector_top_k(const c.llama_model* model)
    const int32_t* llama_model_target_layer_ids(const c.llama_model* model)
    uint32_t llama_model_target_layer_ids_n(const c.llama_model* model)
    uint32_t llama_model_get_tok_embd(const c.llama_model* model, float* out)
