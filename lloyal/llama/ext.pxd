from lloyal.llama.state cimport ContextState

cdef class ContextExt(ContextState):
    pass
