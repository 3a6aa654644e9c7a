# Written by tools/stubs.py from checkpoint.pyx.
"""Native calls behind `lloyal.Checkpoint` and `lloyal.Checkpoints`. Not for direct use."""

from collections.abc import Iterable
from lloyal.llama.base import ContextBase
from numpy.typing import NDArray
from typing import Any
from typing_extensions import Buffer

BufferLike = Buffer | NDArray[Any]

__all__ = ["CheckpointBase", "abort_arm", "abort_remaining", "budget", "estimate", "fault_arm", "fault_remaining", "live_bytes", "meta_bytes", "pool_idle_bytes", "reserve", "set_budget", "set_reserve", "trim"]

class CheckpointBase:
    """The handle of a checkpoint. See `lloyal.Checkpoint`."""

    def _take_native(self, ctx: ContextBase, seq_id: int, where: str, partial: bool) -> None: ...
    def _restore_native(self, ctx: ContextBase, seq_id: int) -> None: ...
    def _to_host_native(self, source: CheckpointBase, ctx: ContextBase) -> None: ...
    def _export_native(self) -> bytes: ...
    def _import_native(self, ctx: ContextBase, data: BufferLike, partial: bool, seq_id: int, rows: Iterable[tuple[int, int, int, int]], window_begin: int, known: bool) -> None: ...
    def _rows_native(self) -> list[tuple[int, int, int, int]]: ...
    def _window_begin_native(self) -> int: ...
    def _buffers_native(self) -> dict[str, int]: ...
    def release(self) -> None:
        """Give up the state now; it cannot be restored afterwards. Others that share rows with it are untouched.

        May be called twice and from any thread; collection and leaving a ``with`` block do the same. Releases the GIL.
        """
    @property
    def released(self) -> bool: ...
    @property
    def evicted(self) -> bool:
        """True if the budget took it away."""
    @property
    def pinned(self) -> bool:
        """True keeps the budget from evicting it. May be set."""
    @pinned.setter
    def pinned(self, value: bool) -> None: ...
    @property
    def partial(self) -> bool: ...
    @property
    def seq_id(self) -> int:
        """The sequence it was taken from."""
    @property
    def pos_min(self) -> int:
        """Position of its first token, -1 if it is empty."""
    @property
    def pos_max(self) -> int:
        """Position of its last token, -1 if it is empty."""
    @property
    def nbytes(self) -> int:
        """Bytes of cache content it holds, those it shares with other checkpoints included; 0 with where="cells"."""
    @property
    def n_segments(self) -> int:
        """Pieces of shared chunks its rows lie in."""
    @property
    def lease(self) -> int | None:
        """The sequence that holds its cells (where="cells"), otherwise None."""

def live_bytes(ctx: ContextBase) -> dict[str, int]:
    """Bytes that the checkpoints of a context really take, by buffer type; shared rows count once."""

def meta_bytes(ctx: ContextBase) -> int:
    """Host bytes of bookkeeping of a context's checkpoints; what they share counts once."""

def estimate(ctx: ContextBase, seq_id: int, partial: bool) -> dict[str, Any]:
    """What a checkpoint of a sequence would cost: bytes, rows, cells, and seconds by what earlier ones took."""

def pool_idle_bytes(ctx: ContextBase) -> int:
    """Bytes of freed buffers kept for the next checkpoint."""

def trim(ctx: ContextBase) -> None:
    """Give back what no checkpoint needs. Releases the GIL."""

def set_budget(ctx: ContextBase, budget: int | None, evict: bool) -> None:
    """Limit the bytes of a context's checkpoints (None: no limit), refusing or evicting beyond it."""

def budget(ctx: ContextBase) -> tuple[int | None, bool]:
    """``(bytes or None, evict)``."""

def set_reserve(ctx: ContextBase, reserve: int | None) -> None:
    """Bytes of every device that checkpoints leave to the computation; None: the default."""

def reserve(ctx: ContextBase) -> int | None:
    """What `set_reserve` set."""

def fault_arm(n: int) -> None:
    """For tests: the n-th allocation or device copy from now fails (0: the next; negative: none)."""

def fault_remaining() -> int:
    """For tests: what is left of `fault_arm`'s count; negative after it fired or when unarmed."""

def abort_arm(n: int) -> None:
    """For tests: the n-th question of llama.cpp whether to stop, from now, gets a yes (0: the next; negative: none)."""

def abort_remaining() -> int:
    """For tests: what is left of `abort_arm`'s count; negative after it fired or when unarmed."""
