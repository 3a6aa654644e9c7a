# cython: language_level=3
"""llama.cpp's extended batch: entries with a token, an embedding row or both, filled in any order."""


cimport lloyal._cpp.batch_ext as b
cimport lloyal._cpp.core as core
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

    def __init__(self, ContextBase ctx not None):
        cdef core.ContextHandle handle = ctx.pin()
        cdef const c.llama_model* model = handle.get().model.get().ptr
        self.handle = handle
        self.flat = Batch()
        self.n_tokens_max = c.llama_n_batch(handle.get().ptr)
        self.n_embd = b.process_n_embd(handle.get()[0], False)
        self.n_embd_enc = b.process_n_embd(handle.get()[0], True)
        self.n_vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))
        self.n_seq_max = c.llama_n_seq_max(handle.get().ptr)
        self.n_sections = 4 if handle.get().map.mrope else 1

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
        return self._add(seq_id, c.LLAMA_TOKEN_NULL)

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
        cdef int token = as_int32(id, "id")
        if not 0 <= token < self.n_vocab:
            raise InvalidBatch(f"token {token} is outside the vocabulary of {self.n_vocab}")
        return self._add(seq_id, token)

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
        cdef int at = self._add(seq_id, c.LLAMA_TOKEN_NULL)
        self.box.set_embd(at, &row[0], row.shape[0])
        return at

    def add_seq(self, idx: int, seq_id: int) -> None:
        """Let an entry belong to one more sequence (``llama_batch_ext_add_seq``)."""
        cdef int at = self.index(idx)
        self.flat.check_free()
        self.box.add_seq(at, self.check_seq(seq_id))

    def set_embd_token(self, idx: int, embd: BufferLike) -> None:
        """Give an entry an embedding row, beside its token if it has one (``llama_batch_ext_set_embd_token``).

        Parameters
        ----------
        idx : int
        embd
            As for `add_embd`.
        """
        self.add_row(self.index(idx), embd)

    def set_pos(self, idx: int, pos: int | Iterable[int]) -> None:
        """Set the position of an entry (``llama_batch_ext_set_pos``). Every entry needs one.

        Parameters
        ----------
        idx : int
        pos : int or sequence of 4 int
            Four for an entry without a token in models with M-RoPE: time, height, width and one more; one number
            stands for text at that position.
        """
        cdef c.llama_pos values[4]
        cdef int at = self.index(idx)
        cdef int n
        numbers = list(pos) if hasattr(pos, "__len__") else [pos]
        n = len(numbers)
        if n != 1 and (n != self.n_sections or self.box.token(at) != c.LLAMA_TOKEN_NULL):
            wanted = "4 positions, or 1" if self.n_sections == 4 and self.box.token(at) == c.LLAMA_TOKEN_NULL else "1 position"
            raise InvalidBatch(f"entry {at} takes {wanted}, not {n}")
        for i, number in enumerate(numbers):
            values[i] = as_int32(number, "pos")
        if values[0] < 0:
            raise InvalidBatch(f"position {values[0]} of entry {at} is negative")
        self.flat.check_free()
        self.box.set_pos(at, values, n)

    def set_output_logits(self, idx: int, value: bool) -> None:
        """Compute an output for an entry or not (``llama_batch_ext_set_output_logits``)."""
        cdef bint output = value
        cdef int at = self.index(idx)
        self.flat.check_free()
        self.box.set_output(at, output)

    def set_output_embd(self, idx: int, value: bool) -> None:
        """The same as `set_output_logits`, as in llama.cpp (``llama_batch_ext_set_output_embd``)."""
        self.set_output_logits(idx, value)

    def clear(self) -> None:
        """Empty it; its memory is kept for the next use (``llama_batch_ext_clear``)."""
        if self.flat is not None:
            self.flat.check_free()
        self.box.clear()

    def __len__(self):
        return self.box.size()

    def __getitem__(self, idx: int) -> tuple[int | None, tuple[int, ...], tuple[int, ...], bool]:
        """``(token or None, positions, seq_ids, output)`` of one entry."""
        cdef int at = self.index(idx)
        token = None if self.box.token(at) == c.LLAMA_TOKEN_NULL else self.box.token(at)
        pos = tuple(self.box.pos(at, k) for k in range(self.box.n_pos(at)))
        seqs = tuple(self.box.seqs(at)[k] for k in range(self.box.seqs(at).size()))
        return token, pos, seqs, self.box.output(at)

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

    cdef int index(self, value) except -1:
        cdef int at = as_int32(value, "idx")
        if not 0 <= at < <int>self.box.size():
            raise InvalidArgument(f"idx={at}: the batch has {self.box.size()} entries")
        return at

    cdef int check_seq(self, value) except? -1:
        cdef int seq = as_int32(value, "seq_id")
        if not 0 <= seq < self.n_seq_max:
            raise InvalidBatch(f"sequence {seq}: this context has 0 to {self.n_seq_max - 1} (raise n_seq_max for more)")
        return seq

    cdef int _add(self, seq_id, int token) except -1:
        cdef int seq = self.check_seq(seq_id)
        if <int>self.box.size() >= self.n_tokens_max:
            raise InvalidBatch(f"the batch is full: this context takes {self.n_tokens_max} tokens at once (n_batch)")
        self.flat.check_free()
        return self.box.add(seq, token)

    cdef int add_row(self, int at, embd) except -1:
        cdef const float[::1] row = self._row(embd)
        self.flat.check_free()
        if not self.box.set_embd(at, &row[0], row.shape[0]):
            raise InvalidBatch(f"entry {at} has a row already")
        return 0

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
