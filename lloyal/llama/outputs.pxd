cimport lloyal._cpp.core as core
cimport lloyal._cpp.decode as cdecode
from lloyal.llama.base cimport ContextBase

# Where a row is copied to: `array` is None, and `start` null, if it is not.
cdef class OutputCopy:
    cdef object array
    cdef float[::1] view
    cdef float* start
    cdef size_t room

cdef OutputCopy output_copy(size_t n, bint copy, object out)

cdef class Logits:
    cdef core.ContextHandle handle
    cdef cdecode.Output row
    cdef object snapshot
    cdef Py_ssize_t shape[1]

    cdef object _array(self)
    cdef bint _stale(self)

cdef Logits wrap_output(core.ContextHandle& handle, cdecode.Output& output)

# `Context` has these as methods; they are called for every token.
cdef object logits(ContextBase ctx, object index, object copy, object out)
cdef object embeddings(ContextBase ctx, object index, object seq_id, object copy, object out)
