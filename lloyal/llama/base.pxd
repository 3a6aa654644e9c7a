cimport lloyal._cpp.core as core

cdef class Closing:
    pass

cdef class ContextBase(Closing):
    cdef core.ContextHandle handle
    cdef object __weakref__

    cdef core.ContextHandle pin(self) except *
