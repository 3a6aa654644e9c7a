"""Guesses from the text itself: what followed the last few tokens before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lloyal.prompt import check_count

if TYPE_CHECKING:
    from lloyal.llama import Vocab

__all__ = ["NGram"]


class NGram:
    """Guesses that what has followed the last few tokens before follows them again: copies, quotes, code, edits.

    Parameters
    ----------
    longest, shortest : int
        How many last tokens must agree; the longest agreement is taken, and of those the latest.
    """

    class Text:
        """Where the tokens behind each n-gram begin."""

        __slots__ = ("places", "tokens")

        def __init__(self) -> None:
            self.tokens: list[int] = []
            self.places: dict[tuple[int, ...], int] = {}

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        self.longest = check_count("longest", longest, 1, 64)
        self.shortest = check_count("shortest", shortest, 1, self.longest)

    def check(self, vocab: Vocab) -> None:
        """It knows tokens by their numbers: any vocabulary will do."""

    def start(self) -> NGram.Text:
        """A text without tokens."""
        return self.Text()

    def feed(self, text: NGram.Text, tokens: Sequence[int]) -> None:
        """Remember what followed which n-gram."""
        own, places = text.tokens, text.places
        for token in tokens:
            end = len(own)
            for size in range(self.shortest, min(self.longest, end) + 1):
                places[tuple(own[end - size :])] = end
            own.append(token)

    def propose(self, texts: Sequence[NGram.Text], n: int) -> list[list[int]]:
        """What came behind the longest n-gram that was here before."""
        return [self._behind(text, n) for text in texts]

    def _behind(self, text: NGram.Text, n: int) -> list[int]:
        own = text.tokens
        for size in range(min(self.longest, len(own)), self.shortest - 1, -1):
            begin = text.places.get(tuple(own[-size:]))
            if begin is not None:
                return own[begin : begin + n]
        return []
