# Written by tools/stubs.py from batch_ext.pyx.
"""llama.cpp's extended batch: entries with a token, an embedding row or both, filled in any order."""

from collections.abc import Iterable
from lloyal.llama.base import ContextBase
from numpy.typing import NDArray
from typing import Any
from typing_extensions import Buffer

BufferLike = Buffer | NDArray[Any]

__all__ = ["BatchExt"]

class BatchExt:
    """Entries for one `Context.process` call (``llama_batch_ext``), for one context.

    What llama.cpp would take silently wrong or leave half done raises: rows set out of order, entries that failed to be
    added, positions never set. A context whose model feeds one graph with tokens and rows of another (multi-token
    prediction) needs this form; `Batch` is the shorter one for text.

    Parameters
    ----------
    ctx : Context
        The context it is for. It is kept alive.
    """

    @property
    def n_tokens_max(self) -> int: ...
    @property
    def n_embd(self) -> int: ...
    @property
    def n_embd_enc(self) -> int: ...
    def __init__(self, ctx: ContextBase) -> None: ...
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
    def add_seq(self, idx: int, seq_id: int) -> None:
        """Let an entry belong to one more sequence (``llama_batch_ext_add_seq``)."""
    def set_embd_token(self, idx: int, embd: BufferLike) -> None:
        """Give an entry an embedding row, beside its token if it has one (``llama_batch_ext_set_embd_token``).

        Parameters
        ----------
        idx : int
        embd
            As for `add_embd`.
        """
    def set_pos(self, idx: int, pos: int | Iterable[int]) -> None:
        """Set the position of an entry (``llama_batch_ext_set_pos``). Every entry needs one.

        Parameters
        ----------
        idx : int
        pos : int or sequence of 4 int
            Four for an entry without a token in models with M-RoPE: time, height, width and one more; one number
            stands for text at that position.
        """
    def set_output_logits(self, idx: int, value: bool) -> None:
        """Compute an output for an entry or not (``llama_batch_ext_set_output_logits``)."""
    def set_output_embd(self, idx: int, value: bool) -> None:
        """The same as `set_output_logits`, as in llama.cpp (``llama_batch_ext_set_output_embd``)."""
    def clear(self) -> None:
        """Empty it; its memory is kept for the next use (``llama_batch_ext_clear``)."""
    def __len__(self) -> int: ...
    def __getitem__(self, idx: int) -> tuple[int | None, tuple[int, ...], tuple[int, ...], bool]:
        """``(token or None, positions, seq_ids, output)`` of one entry."""
    def __repr__(self) -> str: ...
