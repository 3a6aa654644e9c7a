from lloyal.llama.base cimport ContextBase

cdef class ContextState(ContextBase):
    pass
