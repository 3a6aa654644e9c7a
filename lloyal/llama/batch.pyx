# cython: language_level=3
"""Batches: the tokens of one decode call, with their positions and sequences."""

from libc.stdint cimport int32_t, int64_t
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core

from lloyal.errors import InvalidArgument

__all__ = ["Batch"]

cdef int _INT32_MAX = 2**31 - 1


cdef int _tokens(object values, vector[int32_t]& out) except -1:
    # Token ids from a list, an array or a NumPy array of 32 or 64 bit integers, without a Python loop over arrays.
    cdef const int32_t[::1] narrow
    cdef const int64_t[::1] wide
    cdef Py_ssize_t i
    if isinstance(values, (list, tuple)) or not hasattr(values, "__len__"):
        for value in values:
            out.push_back(value)
        return 0
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
        for value in values:
            out.push_back(value)
        return 0
    out.resize(wide.shape[0])
    for i in range(wide.shape[0]):
        if wide[i] < -1 or wide[i] > _INT32_MAX:
            raise InvalidArgument(f"token {wide[i]} at index {i} is no token id")
        out[i] = <int32_t>wide[i]
    return 0


cdef class Batch:
    """Tokens for one `Context.decode` call (``llama_batch``). It grows as needed and owns its memory.

    A batch is reused by `clear()`; it belongs to no context. What it may hold (token range, sequence ids, size) is
    checked by decode, which knows the context.
    """

    def add(self, token, pos, seq_ids, logits=False) -> None:
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
        if isinstance(seq_ids, int):
            seqs.push_back(seq_ids)
        else:
            for seq in seq_ids:
                seqs.push_back(seq)
        if self.box.has_embd():
            raise InvalidArgument("this batch holds embedding rows: clear() it before adding tokens")
        self.box.add(token, pos, seqs.data(), <int32_t>seqs.size(), logits)

    def extend(self, tokens, pos0, seq_id, logits=False) -> None:
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
        cdef bint last = isinstance(logits, str)
        if last and logits != "last":
            raise InvalidArgument(f"logits={logits!r} must be True, False or 'last'")
        if self.box.has_embd():
            raise InvalidArgument("this batch holds embedding rows: clear() it before adding tokens")
        _tokens(tokens, ids)
        self.box.extend(ids.data(), ids.size(), pos0, seq_id, not last and bool(logits), last)

    def extend_embd(self, rows, pos0, seq_id, logits=False) -> None:
        """Add embedding rows instead of tokens.

        Parameters
        ----------
        rows : array of float32, shape (n, n_embd_inp), C-contiguous
        pos0, seq_id, logits
            As in `extend`.
        """
        cdef const float[:, ::1] values = rows
        cdef bint last = isinstance(logits, str)
        if last and logits != "last":
            raise InvalidArgument(f"logits={logits!r} must be True, False or 'last'")
        if self.box.size() and (not self.box.has_embd() or self.box.n_embd() != values.shape[1]):
            raise InvalidArgument("this batch holds other rows: clear() it first")
        if values.shape[0] and values.shape[1]:
            self.box.extend_embd(&values[0, 0], values.shape[0], <int32_t>values.shape[1], pos0, seq_id,
                                 not last and bool(logits), last)

    def set_logits(self, index, value) -> None:
        """Turn the output of one entry on or off."""
        if not 0 <= index < <Py_ssize_t>self.box.size():
            raise InvalidArgument(f"index {index}: the batch has {self.box.size()} tokens")
        self.box.set_logits(index, value)

    def clear(self) -> None:
        """Empty it; its memory is kept for the next use."""
        self.box.clear()

    def __len__(self):
        return self.box.size()

    def __getitem__(self, Py_ssize_t index):
        """``(token or None, pos, seq_ids, logits)`` of one entry."""
        if not 0 <= index < <Py_ssize_t>self.box.size():
            raise IndexError(index)
        seqs = tuple(self.box.seq(index, k) for k in range(self.box.n_seq(index)))
        return None if self.box.has_embd() else self.box.token(index), self.box.pos(index), seqs, self.box.logits(index)

    def __repr__(self):
        return f"<Batch of {self.box.size()} tokens>"
