from lloyal.llama.base cimport ContextBase

cdef class ContextState(ContextBase):
    cdef size_t _set_whole(self, data, bint exact) except? 0
