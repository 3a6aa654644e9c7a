"""What a sampler works on: tokens that may come next, with their logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from numpy import float32, int32
    from numpy.typing import NDArray

__all__ = ["Candidates"]


class Candidates(NamedTuple):
    """Candidates for the next token (``llama_token_data_array``), as a sampler left them.

    Attributes
    ----------
    ids : ndarray of int32, shape (n,)
    logits : ndarray of float32, shape (n,)
        ``-inf`` for those that are ruled out.
    probs : ndarray of float32, shape (n,)
        Probabilities as far as a sampler computed them; 0 otherwise.
    selected : int or None
        Index of the one that was picked.
    sorted : bool
        True if the logits are known to descend.
    """

    ids: NDArray[int32]
    logits: NDArray[float32]
    probs: NDArray[float32]
    selected: int | None
    sorted: bool

    @property
    def token(self) -> int | None:
        """The token that was picked."""
        return None if self.selected is None else int(self.ids[self.selected])
