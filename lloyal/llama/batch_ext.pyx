# cython: language_level=3
"""llama.cpp's extended batch: entries with a token, an embedding row or both, filled in any order."""

from libc.stdint cimport int32_t
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core
cimport lloyal._cpp.decode as cdecode
cimport lloyal.libllama.llama as c
from lloyal.llama.args cimport as_int32
from lloyal.llama.base cimport ContextBase
from lloyal.llama.batch cimport Batch
from lloyal.llama.status cimport check

from lloyal.errors import InvalidArgument, InvalidBatch

__all__ = ["BatchExt"]


cdef class BatchExt:
    """Entries for one `Context.process` call (``llama_batch_ext``), for one context.

    What llama.cpp would take silently wrong or leave half done raises: rows set out of order, entries that failed to be
    added, positions never set. A context whose model feeds one graph with tokens and rows of another (multi-token
    prediction) needs this form; `Batch` is the shorter one for text.

    Parameters
    ----------
    ctx : Context
        The context it is for. It is kept alive.
    """

    def __cinit__(self, *args, **keywords):
        self.flat = Batch()

    def __init__(self, ContextBase ctx not None):
        cdef core.ContextHandle handle = ctx.pin()
        cdef const c.llama_model* model = handle.get().model.get().ptr
        self.handle = handle
        self.n_tokens_max = c.llama_n_batch(handle.get().ptr)
        self.n_embd = cdecode.process_n_embd(handle.get()[0], False)
        self.n_embd_enc = cdecode.process_n_embd(handle.get()[0], True)
        self.n_vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))
        self.box.limit(self.n_tokens_max, c.llama_n_seq_max(handle.get().ptr), 4 if handle.get().map.mrope else 1)

    def add(self, seq_id: int) -> int:
        """Add an entry with neither token nor row yet (``llama_batch_ext_add``); `set_embd_token` gives it a row.

        Returns
        -------
        int
            Its index.

        Raises
        ------
        InvalidBatch
            The batch is full, or there is no such sequence; nothing was added.
        """
        return self._add(as_int32(seq_id, "seq_id"), c.LLAMA_TOKEN_NULL, NULL, 0)

    def add_token(self, seq_id: int, id: int) -> int:
        """Add an entry with a token (``llama_batch_ext_add_token``).

        Returns
        -------
        int
            Its index.

        Raises
        ------
        InvalidBatch
            The batch is full, or there is no such sequence or token; nothing was added.
        """
        cdef int32_t token = as_int32(id, "id")
        cdef int32_t seq = as_int32(seq_id, "seq_id")
        if not 0 <= token < self.n_vocab:
            raise InvalidBatch(f"token {token} is outside the vocabulary of {self.n_vocab}")
        return self._add(seq, token, NULL, 0)

    def add_embd(self, seq_id: int, embd: BufferLike) -> int:
        """Add an entry with an embedding row (``llama_batch_ext_add_embd``).

        Parameters
        ----------
        seq_id : int
        embd : array of float32, shape (n_embd,) or (n_rows, n_embd), C-contiguous
            `n_embd` values in all, or `n_embd_enc` for the encoder. It is copied.

        Returns
        -------
        int
            Its index.

        Raises
        ------
        InvalidBatch
            The batch is full, there is no such sequence, or the row has another width; nothing was added.
        """
        cdef const float[::1] row = self._row(embd)
        return self._add(as_int32(seq_id, "seq_id"), c.LLAMA_TOKEN_NULL, &row[0], row.shape[0])

    def add_seq(self, idx: int, seq_id: int) -> None:
        """Let an entry belong to one more sequence (``llama_batch_ext_add_seq``)."""
        cdef int32_t at = as_int32(idx, "idx")
        cdef int32_t seq = as_int32(seq_id, "seq_id")
        cdef core.Status status
        self.flat.check_free()
        status = self.box.add_seq(at, seq)
        check(status)

    def set_embd_token(self, idx: int, embd: BufferLike) -> None:
        """Give an entry an embedding row, beside its token if it has one (``llama_batch_ext_set_embd_token``).

        Parameters
        ----------
        idx : int
        embd
            As for `add_embd`.
        """
        cdef int32_t at = as_int32(idx, "idx")
        cdef const float[::1] row = self._row(embd)
        cdef core.Status status
        self.flat.check_free()
        status = self.box.set_embd(at, &row[0], row.shape[0])
        check(status)

    def set_pos(self, idx: int, pos: int | Iterable[int]) -> None:
        """Set the position of an entry (``llama_batch_ext_set_pos``). Every entry needs one.

        Parameters
        ----------
        idx : int
        pos : int or sequence of 4 int
            Four for an entry without a token in models with M-RoPE: time, height, width and one more; one number
            stands for text at that position.
        """
        cdef int32_t at = as_int32(idx, "idx")
        cdef vector[c.llama_pos] values
        cdef core.Status status
        for number in pos if hasattr(pos, "__len__") else (pos,):
            values.push_back(as_int32(number, "pos"))
        self.flat.check_free()
        status = self.box.set_pos(at, values)
        check(status)

    def set_output_logits(self, idx: int, value: bool) -> None:
        """Compute an output for an entry or not (``llama_batch_ext_set_output_logits``)."""
        cdef int32_t at = as_int32(idx, "idx")
        cdef bint output = bool(value)
        cdef core.Status status
        self.flat.check_free()
        status = self.box.set_output(at, output)
        check(status)

    def set_output_embd(self, idx: int, value: bool) -> None:
        """The same as `set_output_logits`, as in llama.cpp (``llama_batch_ext_set_output_embd``)."""
        self.set_output_logits(idx, value)

    def clear(self) -> None:
        """Empty it; its memory is kept for the next use (``llama_batch_ext_clear``)."""
        self.flat.check_free()
        self.box.clear()

    def __len__(self):
        return self.box.size()

    def __getitem__(self, idx: int) -> tuple[int | None, tuple[int, ...], tuple[int, ...], bool]:
        """``(token or None, positions, seq_ids, output)`` of one entry."""
        cdef int32_t at = as_int32(idx, "idx")
        cdef cdecode.BatchExtEntry entry
        cdef core.Status status = self.box.entry(at, entry)
        check(status)
        token = None if entry.token == c.LLAMA_TOKEN_NULL else entry.token
        return token, tuple([entry.pos[k] for k in range(entry.n_pos)]), tuple(entry.seqs), entry.output

    def __repr__(self):
        return f"<BatchExt of {self.box.size()} entries>"

    cdef Batch build(self, ContextBase ctx):
        cdef core.ContextHandle handle = ctx.pin()
        cdef core.Status status
        if handle.get() != self.handle.get():
            raise InvalidBatch("this batch was made for another context")
        self.flat.check_free()
        status = self.box.build(self.flat.box)
        check(status)
        return self.flat

    cdef int _add(self, int32_t seq, int32_t token, const float* row, size_t n) except -1:
        cdef int32_t index = -1
        cdef core.Status status
        self.flat.check_free()
        status = self.box.add(seq, token, row, n, index)
        check(status)
        return index

    def _row(self, embd) -> memoryview:
        view = memoryview(embd)
        if view.format != "f" or not view.c_contiguous or view.ndim not in (1, 2):
            raise InvalidArgument(f"embd must be float32, C-contiguous and have 1 or 2 dimensions, not {view.format!r} with "
                                  f"shape {view.shape}")
        n = view.nbytes // 4
        if n == 0 or n not in (self.n_embd, self.n_embd_enc):
            wanted = str(self.n_embd) if self.n_embd == self.n_embd_enc else f"{self.n_embd}, or {self.n_embd_enc} for the encoder"
            raise InvalidBatch(f"the row has {n} values, this context takes {wanted}")
        return view.cast("B").cast("f")
