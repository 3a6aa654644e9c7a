from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES

cimport lloyal._cpp.core as core
cimport lloyal._cpp.decode as cdecode
from lloyal.llama.base cimport ContextBase

cdef inline void fill_buffer(Py_buffer* buffer, object owner, const float* data, Py_ssize_t* shape, int flags):
    """A read-only buffer of one row, which `owner` keeps alive; `shape` lies in `owner` too."""
    buffer.buf = <void*>data
    buffer.obj = owner
    buffer.len = shape[0] * sizeof(float)
    buffer.itemsize = sizeof(float)
    buffer.readonly = 1
    buffer.ndim = 1
    buffer.format = NULL
    if flags & PyBUF_FORMAT:
        buffer.format = b"f"
    buffer.shape = NULL
    if flags & PyBUF_ND:
        buffer.shape = shape
    buffer.strides = NULL
    if (flags & PyBUF_STRIDES) == PyBUF_STRIDES:
        buffer.strides = &buffer.itemsize
    buffer.suboffsets = NULL
    buffer.internal = NULL

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
