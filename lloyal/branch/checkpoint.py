"""A branch at one moment, as a value."""

from __future__ import annotations

from types import TracebackType

from lloyal.llama import Sampler
from lloyal.native import branch as native
from lloyal.sampling import Sampling

__all__ = ["BranchCheckpoint"]


class BranchCheckpoint(native.BranchBase):
    """A branch as it was, rows, sampler, grammar, logits and numbers; made by `Branch.checkpoint`.

    Attributes
    ----------
    where : {"device", "host", "cells"}
    sampling : Sampling or None
    """

    def __init__(self) -> None:
        raise TypeError("BranchCheckpoint cannot be made directly: use Branch.checkpoint")

    where: str
    sampling: Sampling | None
    _grammar: str | Sampler | None
    _begin: int
    _first_at: int

    def release(self) -> None:
        """Give it up now; otherwise garbage collection does. It cannot be restored afterwards."""
        self._release_native()

    def __enter__(self) -> BranchCheckpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        if self.pruned:
            return "<BranchCheckpoint, released>"
        return f"<BranchCheckpoint: {self.position} tokens, {self.where}>"
