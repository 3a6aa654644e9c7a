from lloyal.llama.state cimport ContextState

cdef class ContextSampling(ContextState):
    pass
