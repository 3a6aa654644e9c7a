"""A checkpoint: the state of a sequence as a value.

Any number per sequence, in device memory, in host memory or in shared cache cells; each is restored anywhere, any
number of times, and released by itself. This module knows nothing about sampling: a checkpoint holds no logits.
"""

from __future__ import annotations

import reprlib
import threading
from collections.abc import Iterable
from operator import index
from typing import TYPE_CHECKING, Any

from lloyal import undecoded
from lloyal.checkpoint.format import decode_signed, encode
from lloyal.errors import Closed, InvalidArgument, StateMismatch
from lloyal.native import checkpoint as native

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Buffer

    from lloyal.context import Context

__all__ = ["Checkpoint"]

adopting = threading.RLock()  # a set must not grow while another thread lists it


class Checkpoint(native.CheckpointBase):
    """The state of one sequence at one moment. Made by `Context.checkpoint` or `Checkpoint.from_bytes`.

    Checkpoints along one attention sequence and its forks share the rows they have in common; releasing one never
    touches another. A checkpoint keeps its context alive until it is released, by `release()`, a ``with`` block or
    garbage collection.

    Attributes
    ----------
    where : {"device", "host", "cells"}
    reason : str
        Why `where` was chosen, if it was "auto".
    partial : bool
        Holds only what a trim cannot bring back.
    seq_id, pos_min, pos_max, n_tokens : int
        The sequence it was taken from and the rows it stands for.
    nbytes : int
        Bytes of cache content it holds, shared rows included; `Checkpoints.nbytes` counts shared ones once.
    buffers : dict of str to int
        The same by buffer type.
    """

    where: str
    reason: str
    _context: Context | None = None
    _tokens: tuple[int, ...] | None = None
    _waiting: int | None = None  # the token that the sequence waits for

    def __init__(self) -> None:
        raise TypeError("Checkpoint cannot be made directly: use Context.checkpoint or Checkpoint.from_bytes")

    @classmethod
    def _take(cls, ctx: Context, seq_id: int, where: str, partial: bool, reason: str) -> Checkpoint:
        checkpoint = cls.__new__(cls)
        checkpoint._take_native(ctx, seq_id, where, partial)
        checkpoint._adopt(ctx, where, reason)
        checkpoint._waiting = undecoded.token_after(ctx, seq_id)
        return checkpoint

    def _adopt(self, ctx: Context, where: str, reason: str) -> None:
        self._context = ctx
        self.where = where
        self.reason = reason
        with adopting:
            ctx._live_checkpoints.add(self)

    def _is_live(self) -> bool:
        try:
            return not self.evicted
        except Closed:
            return False

    @property
    def context(self) -> Context:
        """The context it was taken in, which it keeps alive until it is released."""
        if self._context is None:
            raise Closed("the checkpoint is released")
        return self._context

    def release(self) -> None:
        """Give up the state now; it cannot be restored afterwards. Others that share rows with it are untouched.

        May be called twice and from any thread; collection and leaving a ``with`` block do the same. Releases the GIL.
        """
        super().release()
        self._context = None

    def restore(self, seq_id: int | None = None, *, ctx: Context | None = None) -> None:
        """Make a sequence what it was, whatever it holds now.

        Rows that a sequence of the context still holds from the beginning on are not copied. The context has no
        logits afterwards: decode a token to get some.

        Parameters
        ----------
        seq_id : int, optional
            The sequence to replace; its own by default.
        ctx : Context, optional
            Another context of the same model and cache layout.

        Raises
        ------
        StaleCheckpoint
            partial: the destination no longer holds the rows it was taken on. cells: the memory was cleared.
            Encoder-decoder models: something else is encoded now. Nothing was changed.
        CacheFull
            Not enough free cells, counting those the destination would give up. Nothing was changed.
        StateMismatch
            The other context is laid out differently. Nothing was changed.
        OutOfDeviceMemory, DecodeFailed
            A copy failed. With a spare sequence and room in the cache nothing was changed; otherwise the destination
            is empty, and the message says so.

        Notes
        -----
        Invalidates logits, unless nothing was changed. Releases the GIL.
        """
        if ctx is not None and ctx.model is not self.context.model:
            _compare("fingerprint", self.context.fingerprint, ctx.fingerprint)
        ctx = ctx or self.context
        dest = self.seq_id if seq_id is None else seq_id
        self._restore_native(ctx, dest)
        if self._waiting is not None:
            undecoded.remember(ctx, ctx.memory.version(dest), self._waiting)

    @property
    def tokens(self) -> tuple[int, ...] | None:
        """The tokens of its rows, if they were set: a context does not keep what it was fed. `to_bytes` writes them."""
        return self._tokens

    @tokens.setter
    def tokens(self, value: Iterable[int] | None) -> None:
        if value is None:
            self._tokens = None
            return
        try:
            tokens = tuple(index(token) for token in value)
        except TypeError:
            raise InvalidArgument(f"tokens={reprlib.repr(value)} must be integers") from None
        if len(tokens) != self.n_tokens:
            raise InvalidArgument(f"tokens has {len(tokens)} tokens, the checkpoint stands for {self.n_tokens} rows")
        n_vocab = self.context.vocab.n_tokens
        for token in tokens:
            if not 0 <= token < n_vocab:
                raise InvalidArgument(f"token {token} is not in the vocabulary of {n_vocab}")
        self._tokens = tokens

    @property
    def n_tokens(self) -> int:
        """Rows it stands for."""
        return sum(end - begin for begin, end, _, _ in self._rows_native())

    @property
    def buffers(self) -> dict[str, int]:
        """Bytes of cache content by buffer type."""
        found: dict[str, int] = self._buffers_native()
        return found

    def to_host(self) -> Checkpoint:
        """A copy in host memory, sharing the rows that other host checkpoints of the context hold. Releases the GIL."""
        checkpoint = type(self).__new__(type(self))
        checkpoint._to_host_native(self, self.context)
        checkpoint._adopt(self.context, "host", "copied from " + self.where)
        checkpoint._tokens, checkpoint._waiting = self._tokens, self._waiting
        return checkpoint

    def to_bytes(self) -> bytes:
        """Everything needed to restore it in another process, checksummed.

        Returns
        -------
        bytes
            A header that names the model, layout and rows, the tensors, and a BLAKE2b digest.

        Raises
        ------
        Unsupported
            The memory is of a kind whose state cannot be checked before it is read (sparse, compressed, indexed).

        Notes
        -----
        Copies through host memory; releases the GIL while it does.
        """
        if self.lease is not None:
            with self.to_host() as copy:
                return copy.to_bytes()
        payload = self._export_native()
        header = {
            "fingerprint": self.context.fingerprint,
            "layout": self.context.cache_layout,
            "partial": self.partial,
            "seq_id": self.seq_id,
            "tokens": self.tokens,
            "waiting": self._waiting,
            "rows": self._rows_native(),
            "window_begin": self._window_begin_native(),
        }
        return encode(header, payload, sign=True)

    @classmethod
    def from_bytes(cls, ctx: Context, data: Buffer) -> Checkpoint:
        """Read what `to_bytes` wrote, into host memory. Nothing of the context changes until it is restored.

        Parameters
        ----------
        ctx : Context
            A context of the same model and cache layout.
        data : bytes-like

        Raises
        ------
        StateMismatch
            Not a checkpoint, damaged, or of another model or layout: the message names the field that differs. NaN or
            infinity in the tensors: masked cells would spoil other sequences with it.
        OutOfDeviceMemory
            Host memory, or the budget, has no room.

        Notes
        -----
        No length in `data` is trusted: what is allocated follows from the rows and must match the bytes that are there.
        """
        view = memoryview(data).cast("B")
        header, payload, known = decode_signed(view)
        _compare("fingerprint", header["fingerprint"], ctx.fingerprint)
        _compare("layout", header["layout"], ctx.cache_layout)
        rows = header["rows"]
        pos_max = rows[-1][1] - 1 if rows else -1
        # The row that only the last token attends to may have been gone when it was taken.
        begins = [ctx.memory.window_begin(pos_max), ctx.memory.window_begin(pos_max + 1)]
        window_begin = header["window_begin"]
        if window_begin not in begins:
            raise StateMismatch(f"the checkpoint's window begins at {window_begin}, this context's at {begins[0]}")
        checkpoint = cls.__new__(cls)
        checkpoint._import_native(ctx, payload, header["partial"], header["seq_id"], rows, window_begin, known)
        checkpoint._adopt(ctx, "host", "read from bytes")
        try:
            checkpoint.tokens = header["tokens"]
            waiting = header.get("waiting")
            if waiting is not None and waiting >= ctx.vocab.n_tokens:
                raise InvalidArgument(f"token {waiting} is not in the vocabulary of {ctx.vocab.n_tokens}")
            checkpoint._waiting = waiting
        except InvalidArgument as error:
            checkpoint.release()
            raise StateMismatch(f"the checkpoint's header: {error}") from None
        return checkpoint

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        if self.released:
            return "<Checkpoint, released>"
        part = "partial, " if self.partial else ""
        return (
            f"<Checkpoint of sequence {self.seq_id}: {self.n_tokens} tokens, {part}{self.where}, {self.nbytes} bytes>"
        )


def _compare(name: str, found: dict[str, Any], expected: dict[str, Any]) -> None:
    for field, value in expected.items():
        if found.get(field) != value:
            raise StateMismatch(f"the checkpoint is of another {name}: {field} is {found.get(field)!r}, here {value!r}")
