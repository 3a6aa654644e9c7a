# Written by tools/stubs.py from batch.pyx.
"""Batches: the tokens of one decode call, with their positions and sequences."""

from collections.abc import Iterable
from numpy.typing import NDArray
from typing import Any, Literal
from typing_extensions import Buffer

BufferLike = Buffer | NDArray[Any]

__all__ = ["Batch"]

class Batch:
    """Tokens for one `Context.decode` call (``llama_batch``). It grows as needed and owns its memory.

    A batch is reused by `clear()`; it belongs to no context. What it may hold (token range, sequence ids, size) is
    checked by decode, which knows the context. While a decode in another thread reads it, changing it raises `Busy`.
    """

    def __init__(self, *tokens: int) -> None: ...
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
    def extend_embd(self, rows: BufferLike, pos0: int, seq_id: int, logits: bool | Literal["last"] = False) -> None:
        """Add embedding rows instead of tokens.

        Parameters
        ----------
        rows : array of float32, shape (n, n_embd_inp), C-contiguous
        pos0, seq_id, logits
            As in `extend`.
        """
    def set_logits(self, index: int, value: bool) -> None:
        """Turn the output of one entry on or off."""
    def clear(self) -> None:
        """Empty it; its memory is kept for the next use."""
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[int | None, int, tuple[int, ...], bool]:
        """``(token or None, pos, seq_ids, logits)`` of one entry; a negative index counts from the end."""
    def __repr__(self) -> str: ...
