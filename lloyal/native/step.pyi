# Written by tools/stubs.py from step.pyx.
"""Native calls that many branches take together. Not for direct use: see `lloyal.BranchStore`."""

from collections.abc import Sequence
from lloyal.llama.base import ContextBase
from lloyal.native.branch import BranchBase

__all__ = ["Draws", "draw", "read", "step", "steps_alone", "unseated"]

def steps_alone(branches: Sequence[BranchBase], store: object) -> bool:
    """Whether these are branches of that store, and none has anything to do in Python before it picks."""

def step(ctx: ContextBase, branches: Sequence[BranchBase]) -> list[int]:
    """Pick, accept and read one token in each branch: all or none. Releases the GIL."""

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
    def verify(self, guesses: Sequence[Sequence[int]]) -> list[list[int]]:
        """Read the tokens, and of the guesses behind each those that its branch would pick itself: all or none.

        Releases the GIL. Returns what each branch has read, or the token that ends it.
        """

def draw(ctx: ContextBase, branches: Sequence[BranchBase]) -> Draws:
    """Pick a token in each branch, and change none."""

def read(ctx: ContextBase, items: Sequence[tuple[BranchBase, Sequence[int]]], accept: bool) -> None:
    """Read tokens into branches: all or none. Releases the GIL."""

def unseated(ctx: ContextBase, branches: Sequence[BranchBase]) -> list[int]:
    """Indices of the branches that a step would have to find a sequence for."""
