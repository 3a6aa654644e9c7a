cimport lloyal._cpp.core as core
cimport lloyal.libllama.llama as c

cdef core.ModelHandle load(list paths, params) except *

# One entry of kv_overrides, for loading and for quantizing.
cdef c.llama_model_kv_override kv_override(bytes key, value) except *
