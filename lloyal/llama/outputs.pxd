cimport lloyal._cpp.core as core

cdef class Logits:
    cdef core.ContextHandle handle
    cdef unsigned long long generation
    cdef const float* row
    cdef Py_ssize_t shape[1]
    cdef Py_ssize_t strides[1]

    cdef int check_fresh(self) except -1

cdef Logits wrap_row(core.ContextHandle& handle, const float* row, Py_ssize_t n)
cdef object copy_row(const float* row, Py_ssize_t n, object out)
