from lloyal.llama.adapter cimport ContextAdapters

cdef class ContextSampling(ContextAdapters):
    pass
