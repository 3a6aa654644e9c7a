from lloyal.llama.base cimport ContextBase

cdef class Context(ContextBase):
    cdef readonly object params  # ContextParams
    cdef readonly object model  # Model
    cdef object _adapters
