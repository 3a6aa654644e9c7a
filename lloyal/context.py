"""`lloyal.Context`: llama.cpp's, with checkpoints."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from weakref import WeakSet

from lloyal import llama
from lloyal.checkpoint.budget import Checkpoints
from lloyal.checkpoint.place import PLACES, Place, choose_place
from lloyal.checkpoint.value import Checkpoint
from lloyal.errors import Busy, InvalidArgument, Unsupported
from lloyal.lock import Lock
from lloyal.model import Model
from lloyal.native import memory as native

__all__ = ["Context"]


class Context(llama.Context):
    """A model at work, with checkpoints. See `lloyal.llama.Context` for the parameters."""

    @cached_property
    def _live_checkpoints(self) -> WeakSet[Checkpoint]:
        return WeakSet()

    @property
    def checkpoints(self) -> Checkpoints:
        """The live checkpoints, their bytes and their budget."""
        return Checkpoints(self)  # not kept: it holds this object, and a cycle would delay freeing the context

    def checkpoint(self, seq_id: int = 0, *, where: Place = "device", partial: bool = False) -> Checkpoint:
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
        place, reason = str(where), "asked for"
        if where == "auto":
            place, reason = choose_place(self, seq_id, partial)
        return Checkpoint._take(self, seq_id, place, partial, reason)

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
        rope, tensors = (hashlib.blake2b(part, digest_size=16).hexdigest() for part in native.layout_signature(self))
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

    @contextmanager
    def lock(self, timeout: float | None = None) -> Iterator[None]:
        """The context to oneself for a ``with`` block: who asks for it while another thread has it waits in a queue.

        It is for threads that all ask. A call without it takes no notice, and raises `Busy` while another thread is
        inside, with the lock or not. A thread may take it again inside of its block, so it does not keep the tasks of
        one event loop apart, and must not be held over an ``await`` of `lloyal.aio`. Ctrl-C works while waiting.

        Parameters
        ----------
        timeout : float, optional
            Longest wait in seconds; None waits for ever.

        Raises
        ------
        Busy
            It was not to be had in that time.
        """
        lock = self.__dict__.setdefault("_lock", Lock())
        if not lock.acquire(timeout):
            raise Busy(f"another thread has had this context's lock for {timeout} s")
        try:
            yield
        finally:
            lock.release()

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
        native.compact(self)
