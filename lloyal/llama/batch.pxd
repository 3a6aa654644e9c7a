cimport lloyal._cpp.core as core

cdef class Batch:
    cdef core.Batch box
    cdef bint in_use  # a decode reads it without the GIL

    cdef int lock(self) except -1
    cdef void unlock(self) noexcept
    cdef int check_free(self) except -1
