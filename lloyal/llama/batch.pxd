cimport lloyal._cpp.decode as cdecode

cdef class Batch:
    cdef cdecode.Batch box
    cdef bint in_use  # a decode reads it without the GIL

    cdef int lock(self) except -1
    cdef void unlock(self) noexcept
    cdef int check_free(self) except -1
