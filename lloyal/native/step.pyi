# Written by tools/stubs.py from step.pyx.
"""Native calls that many branches take together. Not for direct use: see `lloyal.BranchStore`."""

from collections.abc import Mapping, Sequence
from lloyal.llama.base import ContextBase
from lloyal.native.branch import BranchBase

__all__ = ["DraftSampler", "Draws", "draw", "ratio", "read", "step", "steps_alone", "unseated"]

def steps_alone(branches: Sequence[BranchBase], store: object) -> bool:
    """Whether these are branches of that store, and none has anything to do in Python before it picks."""

def step(ctx: ContextBase, branches: Sequence[BranchBase]) -> list[int]:
    """Pick, accept and read one token in each branch: all or none. Releases the GIL."""

class DraftSampler:
    """Draws guesses as a branch would: with a copy of its sampler, behind the token that it has just picked.

    Penalties, grammar, biases and temperature are the branch's, and so is its noise.
    """

    def sample(self, ctx: ContextBase, index: int = -1) -> int:
        """Draw the next guess from an output of the last decode, and accept it.

        Raises
        ------
        InvalidArgument
            Nothing is left to draw.
        NoLogits
            That entry has no output.
        """

class Draws:
    """What branches have picked and not read yet. No branch has changed, nor will it if this is dropped."""

    @property
    def tokens(self) -> list[int]:
        """The token of each branch."""
    @property
    def ends(self) -> list[bool]:
        """Whether it ends the text."""
    def forced(self, index: int, after: str = "", most: int = 256) -> tuple[str, list[str]]:
        """What the grammar of the branch at `index` leaves no choice about, behind its token and `after`.

        Returns the text, `most` characters at most, and those that may stand behind it if they are few: none where anything
        may, or the text may end there, or nothing is known: without a grammar, or with one that waits or does not allow
        `after`.
        """
    def sampler(self, i: int, ratio: bool = False) -> DraftSampler:
        """Of the `i`-th branch, to draw guesses with; with `ratio` for rejection sampling."""
    def drop(self) -> None:
        """Forget them: they would keep their branches alive."""
    def verify(self, guesses: Sequence[Sequence[int]], ratio: bool = False, samplers: Mapping[int, DraftSampler] = {}) -> list[list[int]]:
        """Read the tokens, and of the guesses behind each those that its branch would pick itself: all or none.

        With `ratio` those that rejection sampling keeps: `samplers`, by the number of the branch, know what guesses were
        drawn from. Releases the GIL. Returns what each branch has read, or the token that ends it.
        """

def draw(ctx: ContextBase, branches: Sequence[BranchBase]) -> Draws:
    """Pick a token in each branch, and change none."""

def ratio(p: Sequence[tuple[int, float]], q: Sequence[tuple[int, float]], guesses: Sequence[int], uniforms: Sequence[tuple[float, float]]) -> list[int]:
    """Rejection sampling by itself: draws from `p`, made of guesses that were drawn from `q`.

    Parameters
    ----------
    p, q : sequence of (int, float)
        Token and probability, each token once. Without `q` guesses are certain.
    guesses : sequence of int
    uniforms : sequence of (float, float)
        For each guess a number in [0, 1) by which it is kept or not, and one to draw another by.

    Raises
    ------
    InvalidArgument
        A probability is negative or no number, or they are all 0.
    """

def read(ctx: ContextBase, items: Sequence[tuple[BranchBase, Sequence[int]]], accept: bool) -> None:
    """Read tokens into branches: all or none. Releases the GIL."""

def unseated(ctx: ContextBase, branches: Sequence[BranchBase]) -> list[int]:
    """Indices of the branches that a step would have to find a sequence for."""
