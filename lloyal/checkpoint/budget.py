"""The checkpoints of a context together: which live, what they cost, and how much they may."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lloyal.checkpoint.value import Checkpoint, adopting
from lloyal.errors import InvalidArgument
from lloyal.native import checkpoint as native

if TYPE_CHECKING:
    from lloyal.context import Context

__all__ = ["Checkpoints"]


class Checkpoints:
    """The live checkpoints of a context, what they cost, and their budget. Get it from `Context.checkpoints`."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def __iter__(self) -> Iterator[Checkpoint]:
        with adopting:
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
