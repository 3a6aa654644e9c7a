cimport lloyal._cpp.core as core

cdef class Batch:
    cdef core.Batch box
