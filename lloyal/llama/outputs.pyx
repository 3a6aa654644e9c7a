# cython: language_level=3
"""Views of a context's outputs, which belong to the context and are overwritten by its next decode."""

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES, PyBUF_WRITABLE
from libc.string cimport memcpy

cimport lloyal._cpp.core as core

from lloyal.errors import Busy, InvalidArgument, NoLogits

__all__ = ["Logits"]

cdef object _KEY = object()  # a bare __new__ would make one that points nowhere


cdef Logits wrap_row(core.ContextHandle& handle, const float* row, Py_ssize_t n):
    cdef Logits view = Logits.__new__(Logits, _KEY)
    view.handle = handle
    view.generation = handle.get().generation
    view.row = row
    view.shape[0] = n
    view.strides[0] = sizeof(float)
    return view


cdef object copy_row(const float* row, Py_ssize_t n, object out):
    cdef float[::1] target
    if out is None:
        import numpy

        out = numpy.empty(n, dtype=numpy.float32)
    target = out
    if target.shape[0] != n:
        raise InvalidArgument(f"out has {target.shape[0]} values, the row has {n}")
    memcpy(&target[0], row, n * sizeof(float))
    return out


cdef class Logits:
    """One row of outputs: a view of float32 values that the context owns.

    Indexing, `argmax` and `numpy.asarray` do not copy. The view raises `NoLogits` once the context has decoded again;
    a NumPy array made from it without copying does not know, and is valid only until then.
    """

    def __cinit__(self, key=None):
        if key is not _KEY:
            raise TypeError("Logits cannot be made directly: use Context.logits")

    cdef int check_fresh(self) except -1:
        if self.handle.get().generation != self.generation:
            raise NoLogits("this view is stale: the context has decoded or restored since (use copy=True to keep a row)")
        # Nobody can enter while this thread holds the GIL, so the row stays where it is until it lets go.
        if core.context_busy(self.handle.get()[0]):
            raise Busy("another thread is inside this context, which may overwrite the row")
        return 0

    def __len__(self):
        return self.shape[0]

    # @overload (self, index: int) -> float
    # @overload (self, index: slice) -> NDArray[float32]
    def __getitem__(self, index: int | slice):
        cdef Py_ssize_t i
        if isinstance(index, slice):
            return self.__array__()[index]
        i = index
        if i < 0:
            i += self.shape[0]
        if not 0 <= i < self.shape[0]:
            raise IndexError(f"index {index} of {self.shape[0]} values")
        self.check_fresh()
        return self.row[i]

    def argmax(self) -> int:
        """Index of the largest value, the first of equals. Releases the GIL."""
        cdef core.ContextHandle handle = self.handle
        cdef int best
        self.check_fresh()
        core.context_enter(handle.get()[0])
        with nogil:
            best = core.argmax(self.row, <int>self.shape[0])
            core.context_leave(handle.get()[0])
        return best

    def copy(self) -> NDArray[float32]:
        """A NumPy array of its own, float32, shape (n,)."""
        import numpy

        row = numpy.empty(self.shape[0], dtype=numpy.float32)
        self.check_fresh()
        return copy_row(self.row, self.shape[0], row)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        import numpy

        self.check_fresh()
        view = numpy.frombuffer(self, dtype=numpy.float32)
        if copy or (dtype is not None and numpy.dtype(dtype) != numpy.float32):
            if copy is False:
                raise ValueError(f"a {dtype} array of float32 logits needs a copy")
            return view.astype(dtype or numpy.float32)
        return view

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        self.check_fresh()
        if flags & PyBUF_WRITABLE:
            raise BufferError("logits are read-only")
        buffer.buf = <void*>self.row
        buffer.obj = self
        buffer.len = self.shape[0] * sizeof(float)
        buffer.itemsize = sizeof(float)
        buffer.readonly = 1
        buffer.ndim = 1
        buffer.format = NULL
        if flags & PyBUF_FORMAT:
            buffer.format = b"f"
        buffer.shape = NULL
        if flags & PyBUF_ND:
            buffer.shape = self.shape
        buffer.strides = NULL
        if (flags & PyBUF_STRIDES) == PyBUF_STRIDES:
            buffer.strides = self.strides
        buffer.suboffsets = NULL
        buffer.internal = NULL

    def __releasebuffer__(self, Py_buffer* buffer):
        pass

    def __repr__(self):
        stale = self.handle.get().generation != self.generation
        return f"<Logits of {self.shape[0]} values{', stale' if stale else ''}>"
