# Written by tools/stubs.py from hidden.pyx.
"""Hidden rows of what branches read, for drafters that start from them. Not for direct use: see `lloyal.speculative`."""

from collections.abc import Sequence
from lloyal.llama.base import ContextBase
from lloyal.native.branch import BranchBase
from numpy import float32
from numpy.typing import NDArray
from typing import Any

__all__ = ["head_info", "hidden_rows", "is_on", "keep_hidden"]

def keep_hidden(ctx: ContextBase, layers: Sequence[int], most: int) -> None:
    """Keep the inputs of these layers of what branches read from now on; without layers nothing any more.

    Parameters
    ----------
    layers : sequence of int
        The number of layers stands for what a prediction head gets.
    most : int
        Tokens of a branch whose rows are kept until they are asked for.
    """

def hidden_rows(branch: BranchBase, layers: Sequence[int], begin: int) -> tuple[int, NDArray[float32]]:
    """The rows of a branch's tokens from `begin` on, and the token of the first: later where those before are gone.

    Returns
    -------
    int
        The branch's position if there are no rows to its end, or not of these layers.
    array of float32, shape (n, values)

    Notes
    -----
    The branch keeps none of those before `begin` any longer.
    """

def is_on(ctx: ContextBase, parent: ContextBase) -> bool:
    """Whether a context was made with ``parent=parent``."""

def head_info(ctx: ContextBase) -> dict[str, Any]:
    """What a context on top of another takes: see `lloyal.speculative.heads`."""
