# cython: language_level=3
"""Batches: the tokens of one decode call, with their positions and sequences."""

from libc.stdint cimport INT64_MAX, INT64_MIN, int32_t, int64_t
from libcpp.vector cimport vector

cimport lloyal._cpp.decode as cdecode
from lloyal.llama.args cimport as_index, as_int32, as_integer

from lloyal.errors import Busy, InvalidArgument

__all__ = ["Batch"]

cdef extern from "Python.h":
    bint PyIndex_Check(object)


cdef int _tokens(object values, vector[int32_t]& out) except -1:
    # Token ids from a list, an array or a NumPy array of 32 or 64 bit integers, without a Python loop over arrays.
    cdef const int32_t[::1] narrow
    cdef const int64_t[::1] wide
    cdef Py_ssize_t i
    if isinstance(values, (str, bytes, bytearray)):
        raise TypeError(f"tokens must be integers, not {type(values).__name__}: tokenize text first")
    if isinstance(values, (list, tuple)) or not hasattr(values, "__len__"):
        return _integers(values, out)
    try:
        narrow = values
    except (ValueError, TypeError, BufferError):
        pass
    else:
        if narrow.shape[0]:
            out.assign(&narrow[0], &narrow[0] + narrow.shape[0])
        return 0
    try:
        wide = values
    except (ValueError, TypeError, BufferError):
        return _integers(values, out)
    out.resize(wide.shape[0])
    for i in range(wide.shape[0]):
        if wide[i] < -0x80000000 or wide[i] > 0x7fffffff:
            raise InvalidArgument(f"token {wide[i]} at index {i} is no token id")
        out[i] = <int32_t>wide[i]
    return 0


cdef int _integers(object values, vector[int32_t]& out) except -1:
    for value in values:
        out.push_back(as_int32(value, "token"))
    return 0


cdef int32_t _first_pos(object pos0, size_t n) except? -1:
    return <int32_t>as_integer(pos0, "pos0", -0x80000000, 0x7fffffff - <int64_t>(n - 1 if n else 0))


cdef int _outputs(object logits) except -1:
    # The meaning of logits=: 0 none, 1 all, 2 the last.
    if isinstance(logits, str):
        if logits != "last":
            raise InvalidArgument(f"logits={logits!r} must be True, False or 'last'")
        return 2
    return bool(logits)


cdef class Batch:
    """Tokens for one `Context.decode` call (``llama_batch``). It grows as needed and owns its memory.

    A batch is reused by `clear()`; it belongs to no context. What it may hold (token range, sequence ids, size) is
    checked by decode, which knows the context. While a decode in another thread reads it, changing it raises `Busy`.
    """

    def __init__(self, *tokens: int):
        if tokens:
            raise TypeError("Batch() takes no arguments, it grows as needed: add tokens with their place, as in "
                            "batch.extend(tokens, pos0, seq_id, logits=\"last\")")

    cdef int check_free(self) except -1:
        if self.in_use:
            raise Busy("another thread is decoding this batch: use one batch for each thread")
        return 0

    cdef int lock(self) except -1:
        self.check_free()
        self.in_use = True
        return 0

    cdef void unlock(self) noexcept:
        self.in_use = False

    def add(self, token: int, pos: int, seq_ids: int | Iterable[int], logits: bool = False) -> None:
        """Add one token.

        Parameters
        ----------
        token : int
        pos : int
            Position in its sequences, from 0.
        seq_ids : int or sequence of int
            The sequences it belongs to.
        logits : bool
            Compute an output (logits, embeddings) for it.
        """
        cdef vector[int32_t] seqs
        cdef int32_t id = as_int32(token, "token")
        cdef int32_t at = as_int32(pos, "pos")
        cdef bint output = bool(logits)
        if PyIndex_Check(seq_ids) and not hasattr(seq_ids, "__len__"):
            seqs.push_back(as_int32(seq_ids, "seq_ids"))
        else:
            for seq in seq_ids:
                seqs.push_back(as_int32(seq, "seq_ids"))
        self.check_free()
        if self.box.has_embd():
            raise InvalidArgument("this batch holds embedding rows: clear() it before adding tokens")
        self.box.add(id, at, seqs.data(), <int32_t>seqs.size(), output)

    def extend(self, tokens: Iterable[int], pos0: int, seq_id: int, logits: bool | Literal["last"] = False) -> None:
        """Add tokens of one sequence at consecutive positions, in one native call.

        Parameters
        ----------
        tokens : sequence of int, or an array of int32 or int64
        pos0 : int
            Position of the first.
        seq_id : int
        logits : bool or "last"
            Outputs for all of them, none, or only the last.
        """
        cdef vector[int32_t] ids
        cdef int32_t seq = as_int32(seq_id, "seq_id")
        cdef int outputs = _outputs(logits)
        cdef int32_t start
        _tokens(tokens, ids)
        start = _first_pos(pos0, ids.size())
        self.check_free()
        if self.box.has_embd():
            raise InvalidArgument("this batch holds embedding rows: clear() it before adding tokens")
        self.box.extend(ids.data(), ids.size(), start, seq, outputs == 1, outputs == 2)

    def extend_embd(self, rows: BufferLike, pos0: int, seq_id: int, logits: bool | Literal["last"] = False) -> None:
        """Add embedding rows instead of tokens.

        Parameters
        ----------
        rows : array of float32, shape (n, n_embd_inp), C-contiguous
        pos0, seq_id, logits
            As in `extend`.
        """
        cdef const float[:, ::1] values = rows
        cdef int32_t seq = as_int32(seq_id, "seq_id")
        cdef int outputs = _outputs(logits)
        cdef int32_t start = _first_pos(pos0, values.shape[0])
        if values.shape[1] > 0x7fffffff:
            raise InvalidArgument(f"rows have {values.shape[1]} values: no model takes so many")
        self.check_free()
        if self.box.size() and (not self.box.has_embd() or self.box.n_embd() != values.shape[1]):
            raise InvalidArgument("this batch holds other rows: clear() it first")
        if values.shape[0] and values.shape[1]:
            self.box.extend_embd(&values[0, 0], values.shape[0], <int32_t>values.shape[1], start, seq,
                                 outputs == 1, outputs == 2)

    def set_logits(self, index: int, value: bool) -> None:
        """Turn the output of one entry on or off."""
        cdef int64_t at = as_integer(index, "index", INT64_MIN, INT64_MAX)
        cdef bint output = bool(value)
        self.check_free()
        if not 0 <= at < <int64_t>self.box.size():
            raise InvalidArgument(f"index {at}: the batch has {self.box.size()} tokens")
        self.box.set_logits(at, output)

    def clear(self) -> None:
        """Empty it; its memory is kept for the next use."""
        self.check_free()
        self.box.clear()

    def __len__(self):
        return self.box.size()

    def __getitem__(self, index: int) -> tuple[int | None, int, tuple[int, ...], bool]:
        """``(token or None, pos, seq_ids, logits)`` of one entry; a negative index counts from the end."""
        cdef size_t at = as_index(index, self.box.size())
        cdef cdecode.BatchEntry entry = self.box.entry(at)  # IndexError if the index itself has changed the batch
        token = entry.token if entry.has_token else None
        return token, entry.pos, tuple(entry.seqs), entry.logits

    def __repr__(self):
        return f"<Batch of {self.box.size()} tokens>"
