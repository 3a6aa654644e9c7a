"""What guesses the tokens that come: the methods that every drafter has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from lloyal.llama import Vocab
    from lloyal.native.step import DraftSampler, Draws

__all__ = ["Drafter", "Pick", "check_drafter", "propose"]


class Pick:
    """The token that a text's branch has picked and not read yet, and what can be known of those behind it."""

    __slots__ = ("_draws", "_index", "_ratio", "_sampler")

    def __init__(self, draws: Draws, index: int, ratio: bool) -> None:
        self._draws, self._index, self._ratio = draws, index, ratio
        self._sampler: DraftSampler | None = None

    def sampler(self) -> DraftSampler:
        """A copy of the branch's sampler, whose ``sample(ctx, index)`` draws the next guess from an output of `ctx`.

        What it has drawn has to be proposed, up to the first token that ends the text.
        """
        if self._sampler is None:
            self._sampler = self._draws.sampler(self._index, self._ratio)
        return self._sampler

    def forced(self, after: str = "", most: int = 256) -> tuple[str, list[str]]:
        """The text that the grammar leaves no choice about, behind the token and the string `after`.

        Returns
        -------
        text : str
            At most `most` characters.
        choices : list of str
            The characters that may stand behind it, if they are few; none where the text may end.
        """
        return self._draws.forced(self._index, after, most)

    @property
    def made(self) -> DraftSampler | None:
        """The sampler, if somebody has asked for it."""
        return self._sampler


class Drafter(Protocol):
    """Guesses the next tokens of texts. A wrong guess costs time and changes nothing.

    One that wants to know more than tokens has a method ``guess(texts, n, picks)`` beside these, with a `Pick` for each
    text, which is called in place of `propose`.
    """

    def check(self, vocab: Vocab) -> None:
        """`InvalidArgument` if it cannot guess tokens of this vocabulary."""

    def start(self) -> Any:
        """What it keeps of one text, of which it has heard nothing yet."""

    def feed(self, text: Any, tokens: Sequence[int]) -> None:
        """Tokens that the text goes on with."""

    def propose(self, texts: Sequence[Any], n: int) -> Sequence[Sequence[int]]:
        """At most `n` tokens for each text; none where it has no idea."""


def check_drafter(drafter: object) -> None:
    """`TypeError` unless it has the methods."""
    for method in ("check", "start", "feed", "propose"):
        if not callable(getattr(drafter, method, None)):
            raise TypeError(f"{drafter!r} is no Drafter: it has no method {method}()")


def propose(
    drafter: Drafter, texts: Sequence[Any], n: int, picks: Sequence[Pick] | None = None
) -> Sequence[Sequence[int]]:
    """Ask a drafter in the way it wants to be asked."""
    guess = None if picks is None else getattr(drafter, "guess", None)
    found: Sequence[Sequence[int]] = drafter.propose(texts, n) if guess is None else guess(texts, n, picks)
    return found
