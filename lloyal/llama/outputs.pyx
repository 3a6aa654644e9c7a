# cython: language_level=3
"""Views of a context's outputs, which belong to the context and are overwritten by its next decode."""

from cpython.buffer cimport PyBUF_WRITABLE
from libc.stdint cimport int32_t, int64_t
from libcpp cimport bool as cbool
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core
cimport lloyal._cpp.decode as cdecode
from lloyal.llama.args cimport as_index, as_int32, as_integer
from lloyal.llama.base cimport ContextBase
from lloyal.llama.status cimport check

from lloyal.errors import InvalidArgument

__all__ = ["Logits"]

cdef object _KEY = object()  # a bare __new__ would make one that points nowhere


cdef Logits wrap_output(core.ContextHandle& handle, cdecode.Output& output):
    cdef Logits view = Logits.__new__(Logits, _KEY)
    view.handle = handle
    view.row = output
    view.shape[0] = output.n
    return view


cdef class OutputCopy:
    pass


cdef OutputCopy output_copy(size_t n, bint copy, object out):
    cdef OutputCopy into = OutputCopy()
    if out is None:
        if not copy:
            return into
        import numpy

        out = numpy.empty(n, dtype=numpy.float32)
    into.view = out
    if <size_t>into.view.shape[0] != n:
        raise InvalidArgument(f"out has {into.view.shape[0]} values, the row has {n}")
    into.array = out
    into.room = n
    into.start = &into.view[0] if n else NULL
    return into


cdef class Logits:
    """One row of outputs: a view of float32 values that the context owns.

    Indexing and `argmax` read it in place; it raises `NoLogits` once the context has decoded again. What leaves it as an
    array or a buffer is a copy, made once and shared by all of them, and stays what it is.
    """

    def __cinit__(self, key=None):
        if key is not _KEY:
            raise TypeError("Logits cannot be made directly: use Context.logits")

    def __len__(self):
        return self.row.n

    # @overload (self, index: int) -> float
    # @overload (self, index: slice) -> NDArray[float32]
    def __getitem__(self, index: int | slice):
        cdef core.ContextHandle handle = self.handle
        cdef core.Status status
        cdef size_t i
        cdef float value = 0
        if isinstance(index, slice):
            return self._array()[index]
        i = as_index(index, self.row.n)
        status = cdecode.output_value(handle, self.row, i, value)
        check(status)
        return value

    def argmax(self) -> int:
        """Index of the largest value, the first of equals. Releases the GIL."""
        cdef core.ContextHandle handle = self.handle
        cdef core.Status status
        cdef int32_t best = 0
        with nogil:
            status = cdecode.output_argmax(handle, self.row, best)
        check(status)
        return best

    def logprob(self, token: int) -> float:
        """The natural logarithm of a token's probability, by a softmax in float64. Releases the GIL.

        NaN if a value of the row is NaN or +inf, or all are -inf.
        """
        cdef core.ContextHandle handle = self.handle
        cdef core.Status status
        cdef size_t i = as_integer(token, "token", 0, <int64_t>self.row.n - 1)
        cdef double value = 0
        with nogil:
            status = cdecode.output_log_prob(handle, self.row, i, value)
        check(status)
        return value

    def top(self, n: int) -> list[tuple[float, int]]:
        """The `n` most probable tokens as (log-probability, token), the best first. Releases the GIL.

        Log-probabilities are those of `logprob`.
        """
        cdef core.ContextHandle handle = self.handle
        cdef core.Status status
        cdef size_t count = as_integer(n, "n", 0, 2**31 - 1)
        cdef vector[cdecode.LogProb] best
        with nogil:
            status = cdecode.output_most_probable(handle, self.row, count, best)
        check(status)
        return [(best[i].value, best[i].index) for i in range(best.size())]

    def copy(self) -> NDArray[float32]:
        """A NumPy array of its own, float32, shape (n,)."""
        import numpy

        cdef core.ContextHandle handle = self.handle
        cdef core.Status status
        cdef float[::1] target
        row = numpy.empty(self.row.n, dtype=numpy.float32)
        target = row
        status = cdecode.output_copy(handle, self.row, &target[0])
        check(status)
        return row

    cdef object _array(self):
        # The copy that arrays and buffers share, which cannot be written; refused for a row that has gone.
        cdef core.ContextHandle handle = self.handle
        cdef core.Status status
        cdef float value = 0
        if self.snapshot is None:
            row = self.copy()
            row.flags.writeable = False
            self.snapshot = row
        else:
            status = cdecode.output_value(handle, self.row, 0, value)
            check(status)
        return self.snapshot

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        import numpy

        row = self._array()
        if copy or (dtype is not None and numpy.dtype(dtype) != numpy.float32):
            if copy is False:
                raise ValueError(f"a {dtype} array of float32 logits needs a copy")
            return row.astype(dtype or numpy.float32)
        return row

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        cdef const float[::1] row
        if flags & PyBUF_WRITABLE:
            raise BufferError("logits are read-only")
        row = self._array()  # this object keeps it, and `buffer` this object
        fill_buffer(buffer, self, &row[0], self.shape, flags)

    def __releasebuffer__(self, Py_buffer* buffer):
        pass

    def __repr__(self):
        return f"<Logits of {self.row.n} values{', stale' if self._stale() else ''}>"

    cdef bint _stale(self):
        cdef core.ContextHandle handle = self.handle
        cdef cbool stale = False
        cdecode.output_stale(handle, self.row, stale)
        return stale


cdef object logits(ContextBase ctx, index: int, copy: bool, out: BufferLike | None):
    cdef core.ContextHandle handle
    cdef core.Status status
    cdef cdecode.Output output
    cdef int32_t i = as_int32(index, "index")
    cdef OutputCopy into
    handle = ctx.pin()
    into = output_copy(cdecode.n_logits(handle.get()[0]), copy, out)
    with nogil:  # it waits for the devices
        status = cdecode.read_logits(handle, i, into.start, into.room, output)
    check(status)
    return wrap_output(handle, output) if into.array is None else into.array


cdef object embeddings(ContextBase ctx, index: int | None, seq_id: int | None, copy: bool, out: BufferLike | None):
    cdef core.ContextHandle handle
    cdef core.Status status
    cdef cdecode.Output output
    cdef OutputCopy into
    cdef int32_t i = -1 if index is None else as_int32(index, "index")
    cdef int32_t seq = -1 if seq_id is None else as_int32(seq_id, "seq_id")
    cdef bint pooled = seq_id is not None
    if index is not None and seq_id is not None:
        raise InvalidArgument("give index or seq_id, not both")
    handle = ctx.pin()
    into = output_copy(cdecode.n_pooled(handle.get()[0]) if pooled else cdecode.n_embedding(handle.get()[0]), copy, out)
    with nogil:
        if pooled:
            status = cdecode.read_pooled(handle, seq, into.start, into.room, output)
        else:
            status = cdecode.read_embedding(handle, i, into.start, into.room, output)
    check(status)
    return wrap_output(handle, output) if into.array is None else into.array
