cimport lloyal._cpp.core as core

cdef class ContextBase:
    cdef core.ContextHandle handle
    cdef object __weakref__

    cdef core.ContextHandle pin(self) except *
