# Written by tools/stubs.py from state.pyx.
"""llama.cpp's own state calls as methods of a context, same names and argument order, guarded.

A state holds the memory of a sequence or of the whole context: no logits, no sampler, no tokens, no model identity.
`Context.checkpoint` is the safe value on top of the same mechanism.
"""

from collections.abc import Iterable
from lloyal.llama.base import ContextBase
from numpy.typing import NDArray
from os import PathLike
from typing import Any, overload
from typing_extensions import Buffer

StrPath = str | PathLike[str]
BufferLike = Buffer | NDArray[Any]

__all__ = ["ContextState"]

class ContextState(ContextBase):
    """The state calls of a context. Not for direct use: see `Context`."""

    def state_seq_get_size_ext(self, seq_id: int, flags: int = 0) -> int:
        """Bytes that `state_seq_get_data_ext` will write (``llama_state_seq_get_size_ext``).

        Parameters
        ----------
        seq_id : int
        flags : StateSeqFlags
            With ON_DEVICE the count includes our trailer of 16 bytes.

        Raises
        ------
        Unsupported
            ON_DEVICE on a quantized cache, which llama.cpp corrupts, or on tensor-split models.

        Notes
        -----
        Releases the GIL.
        """
    @overload
    def state_seq_get_data_ext(self, seq_id: int, flags: int = 0, out: None = None) -> bytes: ...
    @overload
    def state_seq_get_data_ext(self, seq_id: int, flags: int, out: BufferLike) -> int: ...
    @overload
    def state_seq_get_data_ext(self, seq_id: int, flags: int = 0, *, out: BufferLike) -> int:
        """Write the state of a sequence (``llama_state_seq_get_data_ext``).

        With ON_DEVICE the tensors stay in device buffers inside the context, one slot per sequence: the next ON_DEVICE
        save of `seq_id` replaces them, and restoring the older blob raises `StaleCheckpoint`.

        Parameters
        ----------
        seq_id : int
        flags : StateSeqFlags
        out : writable bytes-like, optional
            Where to write; it may be larger than needed.

        Returns
        -------
        bytes, or int with `out`
            The state, or the number of bytes written.

        Notes
        -----
        Releases the GIL.
        """
    def state_seq_set_data_ext(self, data: BufferLike, dest_seq_id: int, flags: int = 0) -> int:
        """Restore a state into a sequence (``llama_state_seq_set_data_ext``).

        Parameters
        ----------
        data : bytes-like
            What `state_seq_get_data_ext` gave, with the same flags.
        dest_seq_id : int
            The sequence to replace; it need not be the one that was saved.
        flags : StateSeqFlags

        Returns
        -------
        int
            Bytes read.

        Raises
        ------
        StaleCheckpoint
            ON_DEVICE: the sequence was saved again since, or `encode` has run since. Nothing was changed.
        NoLease
            The destination holds the cells of a checkpoint. Nothing was changed.
        StateMismatch
            Another layout, other flags, or damaged bytes. For host states the destination is empty afterwards,
            as llama.cpp leaves it.

        Notes
        -----
        Invalidates logits. Releases the GIL. A PARTIAL_ONLY state of hybrid or sliding-window memory takes the sequence
        back to its position: later rows of the full-size layers go too (llama.cpp leaves them, and they would be
        attended to). With ON_DEVICE the rows before it are known to be the ones it continues; with a host state that is
        for the caller to know.
        """
    def state_seq_get_size(self, seq_id: int) -> int:
        """`state_seq_get_size_ext` without flags."""
    @overload
    def state_seq_get_data(self, seq_id: int, out: None = None) -> bytes: ...
    @overload
    def state_seq_get_data(self, seq_id: int, out: BufferLike) -> int:
        """`state_seq_get_data_ext` without flags."""
    def state_seq_set_data(self, data: BufferLike, dest_seq_id: int) -> int:
        """`state_seq_set_data_ext` without flags."""
    def state_get_size(self) -> int:
        """Bytes of the whole context's state (``llama_state_get_size``). Releases the GIL."""
    @overload
    def state_get_data(self, out: None = None) -> bytes: ...
    @overload
    def state_get_data(self, out: BufferLike) -> int:
        """The whole context's state, all sequences (``llama_state_get_data``); see `state_seq_get_data_ext`."""
    def state_set_data(self, data: BufferLike) -> int:
        """Restore the whole context (``llama_state_set_data``). A refused state leaves it empty. Releases the GIL."""
    def state_seq_save_file(self, path: StrPath, seq_id: int, tokens: Iterable[int] = ()) -> int:
        """Write a sequence's state and its tokens in llama.cpp's file format ("ggsq").

        The file appears whole or not at all. Returns its size in bytes.
        """
    def state_seq_load_file(self, path: StrPath, dest_seq_id: int) -> list[int]:
        """Restore a sequence from llama.cpp's file format and return the tokens stored with it.

        Raises
        ------
        StateMismatch
            Not such a file, truncated, or of another model or layout. The header is checked before anything is
            touched; after that the destination is empty, and the message says so.
        """
    def state_save_file(self, path: StrPath, tokens: Iterable[int] = ()) -> int:
        """Write the whole context and tokens in llama.cpp's session format ("ggsn"); see `state_seq_save_file`."""
    def state_load_file(self, path: StrPath) -> list[int]:
        """Restore the whole context from llama.cpp's session format and return the tokens stored with it."""
