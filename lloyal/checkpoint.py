"""Checkpoints: the state of a sequence as a value, and the contexts and models that hand them out.

Any number per sequence, in device memory, in host memory or in shared cache cells; each is restored anywhere, any
number of times, and released by itself. This module knows nothing about sampling: a checkpoint holds no logits.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
import threading
from collections.abc import Iterable, Iterator
from functools import cached_property
from operator import index
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from lloyal import llama
from lloyal.checkpoint_format import decode_signed, encode
from lloyal.errors import Closed, InvalidArgument, StateMismatch, Unsupported
from lloyal.native import checkpoint as native
from lloyal.native import lease
from lloyal.native import memory as native_memory

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Buffer

__all__ = ["Checkpoint", "Checkpoints", "Context", "Model"]

_adopting = threading.RLock()  # a set must not grow while another thread lists it

PLACES = ("device", "host", "cells", "auto")


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

    def __init__(self) -> None:
        raise TypeError("Checkpoint cannot be made directly: use Context.checkpoint or Checkpoint.from_bytes")

    @classmethod
    def _take(cls, ctx: Context, seq_id: int, where: str, partial: bool, reason: str) -> Checkpoint:
        checkpoint = cls.__new__(cls)
        checkpoint._take_native(ctx, seq_id, where, partial)
        checkpoint._adopt(ctx, where, reason)
        return checkpoint

    def _adopt(self, ctx: Context, where: str, reason: str) -> None:
        self._context = ctx
        self.where = where
        self.reason = reason
        with _adopting:
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
        self._restore_native(ctx or self.context, self.seq_id if seq_id is None else seq_id)

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
        checkpoint._tokens = self._tokens
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


class Checkpoints:
    """The live checkpoints of a context, what they cost, and their budget. Get it from `Context.checkpoints`."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def __iter__(self) -> Iterator[Checkpoint]:
        with _adopting:
            known = list(self._ctx._live_checkpoints)
        return iter([checkpoint for checkpoint in known if checkpoint._is_live()])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def nbytes(self) -> int:
        """Bytes they take on all devices; rows that several share count once."""
        return sum(self.buffers.values())

    @property
    def buffers(self) -> dict[str, int]:
        """The same by buffer type."""
        found: dict[str, int] = native.live_bytes(self._ctx)
        return found

    @property
    def idle_nbytes(self) -> int:
        """Bytes of freed buffers kept for the next checkpoint, at most about what the largest so far had to copy."""
        return int(native.pool_idle_bytes(self._ctx))

    @property
    def meta_nbytes(self) -> int:
        """Host bytes of their bookkeeping: what several share counts once, Python's objects do not."""
        return int(native.meta_bytes(self._ctx))

    def trim(self) -> None:
        """Give back all memory that no checkpoint needs.

        That is the buffers kept for the next one, and those of which released checkpoints needed the larger part: what
        little of them others still need is copied out. A budget that runs short does that by itself.
        """
        native.trim(self._ctx)

    @property
    def budget(self) -> int | None:
        """Most bytes all checkpoints may take, or None. Over it a new one raises `OutOfDeviceMemory`, or evicts."""
        budget: int | None = native.budget(self._ctx)[0]
        return budget

    @budget.setter
    def budget(self, value: int | None) -> None:
        if value is not None and (not isinstance(value, int) or not 0 <= value < 2**63):
            raise InvalidArgument(f"budget={value!r} must be a number of bytes or None")
        native.set_budget(self._ctx, value, self.evict)

    @property
    def evict(self) -> bool:
        """True: make room by dropping the least recently used that are not pinned, instead of raising."""
        return bool(native.budget(self._ctx)[1])

    @evict.setter
    def evict(self, value: bool) -> None:
        native.set_budget(self._ctx, self.budget, bool(value))

    @property
    def reserve(self) -> int | None:
        """Bytes of every device that new checkpoints leave free, or None: a fiftieth of it, 256 MiB at least.

        llama.cpp takes memory while it computes, and a back end ends the process where it gets none. What would leave
        less raises `OutOfDeviceMemory`, or evicts. Host memory is not counted: a checkpoint there needs no reserve.
        """
        reserve: int | None = native.reserve(self._ctx)
        return reserve

    @reserve.setter
    def reserve(self, value: int | None) -> None:
        if value is not None and (not isinstance(value, int) or not 0 <= value < 2**63):
            raise InvalidArgument(f"reserve={value!r} must be a number of bytes or None")
        native.set_reserve(self._ctx, value)

    def release_all(self) -> None:
        """Release every live checkpoint."""
        for checkpoint in list(self):
            checkpoint.release()

    def __repr__(self) -> str:
        return f"<{len(self)} checkpoints, {self.nbytes} bytes>"


class Model(llama.Model):
    """A loaded GGUF model. See `lloyal.llama.Model` for the parameters."""

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """What makes two files the same model for a saved state, without reading all of it.

        The architecture, the scalar metadata, and the names, types, shapes and sampled bytes of the tensors.
        """
        metadata = json.dumps(sorted(self.metadata.items())).encode()
        return {
            "architecture": self.arch,
            "n_params": str(self.n_params),
            "hyperparameters": hashlib.blake2b(metadata, digest_size=16).hexdigest(),
            "tensors": hashlib.blake2b(self.tensor_sample(), digest_size=16).hexdigest(),
        }


class Context(llama.Context):
    """A model at work, with checkpoints. See `lloyal.llama.Context` for the parameters."""

    @cached_property
    def _live_checkpoints(self) -> WeakSet[Checkpoint]:
        return WeakSet()

    @property
    def checkpoints(self) -> Checkpoints:
        """The live checkpoints, their bytes and their budget."""
        return Checkpoints(self)  # not kept: it holds this object, and a cycle would delay freeing the context

    def checkpoint(self, seq_id: int = 0, *, where: str = "device", partial: bool = False) -> Checkpoint:
        """Keep the state of a sequence as a value.

        Parameters
        ----------
        seq_id : int
        where : {"device", "host", "cells", "auto"}
            "device" copies beside the cache, device to device. "host" copies to host memory. "cells" keeps the cache
            cells by sharing them with a leased spare sequence: no bytes move on attention caches, but the cells stay
            taken and one of the `n_seq_max` ids with them; rows of a sliding window that no later token attends to are
            given up first, and no rollback is possible behind them. "auto" picks, and says why in `Checkpoint.reason`.
        partial : bool
            Only what a trim cannot bring back: nothing but positions for attention, the window of sliding-window
            layers, the recurrent state of recurrent and hybrid models. It restores only onto a sequence that still
            holds the rows it was taken on.

        Raises
        ------
        OutOfDeviceMemory
            The device, or the budget, has no room. Nothing was changed.
        NoLease
            "cells": no sequence id is free.
        Unsupported
            "cells" with kv_unified=False; a model without memory.

        Notes
        -----
        Rows that a live checkpoint in the same place already holds are not copied again. Releases the GIL.
        """
        if where not in PLACES:
            raise InvalidArgument(f"where={where!r} must be one of {', '.join(map(repr, PLACES))}")
        reason = "asked for"
        if where == "auto":
            where, reason = self._choose_place(seq_id, partial)
        return Checkpoint._take(self, seq_id, where, partial, reason)

    def _choose_place(self, seq_id: int, partial: bool) -> tuple[str, str]:
        cost = native.estimate(self, seq_id, partial)
        n_bytes, free = cost["copied_bytes"], cost["device_free"]
        why = self._why_not_cells(cost, partial)
        if why is None:
            return "cells", f"sharing {cost['rows']} cells moves no bytes, a copy would move {n_bytes}"
        if n_bytes > free and not cost["is_host"]:
            return "host", f"{n_bytes} bytes do not fit into the {free} free ones of the device; {why}"
        return "device", why

    def _why_not_cells(self, cost: dict[str, Any], partial: bool) -> str | None:
        """Why a checkpoint should not share cells, or None if it should."""
        kind = self.memory.kind
        if partial:
            return "partial: a few rows, copied in microseconds"
        if kind != "attention":
            return f"{kind} memory: a lease would cost a whole recurrent state or window"
        if not self.memory.unified:
            return "kv_unified=False: cells cannot be shared"
        free = int(lease.lease_available(self))
        if free < 3:
            return f"{free} sequence ids are free, and restores prepare in one of them"
        if 4 * cost["free_cells"] < cost["n_cells"]:
            return f"{cost['free_cells']} of {cost['n_cells']} cells are free, and shared cells stay taken"
        n_bytes, copying, sharing = cost["copied_bytes"], cost["device_seconds"], cost["cells_seconds"]
        budget = self.checkpoints.budget
        fits = n_bytes <= cost["device_free"] and (budget is None or self.checkpoints.nbytes + n_bytes <= budget)
        if fits and 0 <= copying <= sharing:
            return f"copying {n_bytes} new bytes takes {copying:.1g} s, sharing cells {sharing:.1g} s, measured so far"
        return None

    @property
    def fingerprint(self) -> dict[str, str]:
        """`Model.fingerprint` of its model."""
        if not isinstance(self.model, Model):
            raise Unsupported(
                "the context's model is a lloyal.llama.Model: load it as lloyal.Model to serialize states"
            )
        return self.model.fingerprint

    @property
    def cache_layout(self) -> dict[str, Any]:
        """What must be equal for a state of one context to fit another: by field, so that a refusal can name it."""
        rope, tensors = (hashlib.blake2b(part, digest_size=16).hexdigest() for part in native_memory.layout_signature(self))
        return {
            "memory": self.memory.kind,
            "type_k": self.params.type_k,
            "type_v": self.params.type_v,
            "flash_attn": self.flash_attn,
            "kv_unified": self.memory.unified,
            "n_seq_max": None if self.memory.unified else self.n_seq_max,
            "rope": rope,
            "tensors": tensors,
        }

    def compact(self) -> None:
        """Put the cells of every sequence in order and next to each other.

        After much trimming and forking a sequence lies in many runs of cells, and every copy of it is as many copies.
        What sequences and `cells` checkpoints share stays shared; nothing else changes, outputs included.

        Raises
        ------
        OutOfDeviceMemory
            All rows are held twice for a moment, and the device, or the budget, has no room. Nothing was changed.
        Unsupported
            Sparse, compressed and indexed memory. Nothing was changed.

        Notes
        -----
        Releases the GIL.
        """
        native_memory.compact(self)


def _compare(name: str, found: dict[str, Any], expected: dict[str, Any]) -> None:
    for field, value in expected.items():
        if found.get(field) != value:
            raise StateMismatch(f"the checkpoint is of another {name}: {field} is {found.get(field)!r}, here {value!r}")
