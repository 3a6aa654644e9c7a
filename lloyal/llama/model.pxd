cimport lloyal.libllama.llama as c
from lloyal.llama.model_info cimport ModelInfo

cdef class Model(ModelInfo):
    cdef int _load(self, list paths, params) except -1

# One entry of kv_overrides, for loading and for quantizing.
cdef c.llama_model_kv_override kv_override(bytes key, value) except *
