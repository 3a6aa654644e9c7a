cimport lloyal._cpp.core as core
cimport lloyal.libllama.llama as c

cdef class Model:
    cdef core.ModelHandle handle
    cdef readonly object params  # ModelParams
    cdef readonly object path  # str
    cdef object _vocab
    cdef object _metadata

    cdef core.ModelHandle pin(self) except *
    cdef int _load(self, list paths, params) except -1

# One entry of kv_overrides, for loading and for quantizing.
cdef c.llama_model_kv_override kv_override(bytes key, value) except *
