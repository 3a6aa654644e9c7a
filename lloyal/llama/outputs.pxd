cimport lloyal._cpp.calls as calls
cimport lloyal._cpp.core as core

# Where a row is copied to: `array` is None, and `start` null, if it is not.
cdef class RowCopy:
    cdef object array
    cdef float[::1] view
    cdef float* start
    cdef size_t room

cdef RowCopy row_copy(size_t n, bint copy, object out)

cdef class Logits:
    cdef core.ContextHandle handle
    cdef calls.Row row
    cdef object snapshot
    cdef Py_ssize_t shape[1]

    cdef object _array(self)
    cdef bint _stale(self)

cdef Logits wrap_row(core.ContextHandle& handle, calls.Row& row)
