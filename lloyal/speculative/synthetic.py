"""Guesses that are right as often as one likes: for tests and measurements."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from lloyal.errors import InvalidArgument

if TYPE_CHECKING:
    from lloyal.llama import Vocab

__all__ = ["Synthetic"]


class Synthetic:
    """Knows how texts go on, and is wrong on purpose.

    Parameters
    ----------
    tokens : sequence of int, or callable
        The text with its prompt; or a function that returns what follows the tokens that it is given.
    acceptance : float, or sequence of float
        How probable it is that a guess is right if those before it are: of each, or of the first, the second and so on;
        the last number counts for all behind it.
    seed : int
        Of what is wrong. The same calls give the same guesses.
    """

    class Text:
        """What was heard."""

        __slots__ = ("tokens",)

        def __init__(self) -> None:
            self.tokens: list[int] = []

    def __init__(
        self,
        tokens: Sequence[int] | Callable[[list[int]], Iterable[int]],
        acceptance: float | Sequence[float] = 1.0,
        *,
        seed: int = 0,
    ) -> None:
        self.acceptance = [acceptance] if isinstance(acceptance, (int, float)) else list(acceptance)
        if not self.acceptance or not all(isinstance(p, (int, float)) and 0 <= p <= 1 for p in self.acceptance):
            raise InvalidArgument(f"acceptance={acceptance!r} must be a number from 0 to 1, or some of them")
        self.tokens = tokens if callable(tokens) else list(tokens)
        self._random = random.Random(seed)
        self._vocab: Vocab | None = None

    def check(self, vocab: Vocab) -> None:
        """Its wrong guesses are of this vocabulary."""
        self._vocab = vocab

    def start(self) -> Synthetic.Text:
        """A text without tokens."""
        return self.Text()

    def feed(self, text: Synthetic.Text, tokens: Sequence[int]) -> None:
        """Count them, and keep them for the function."""
        text.tokens += tokens

    def propose(self, texts: Sequence[Synthetic.Text], n: int) -> list[list[int]]:
        """What follows, with mistakes; `n` tokens where so many are known."""
        return [self._behind(text.tokens, n) for text in texts]

    def _behind(self, heard: list[int], n: int) -> list[int]:
        if callable(self.tokens):
            known = [token for _, token in zip(range(n), self.tokens(list(heard)), strict=False)]
        else:
            known = self.tokens[len(heard) : len(heard) + n]
        draw, last = self._random.random, len(self.acceptance) - 1
        return [
            token if draw() < self.acceptance[min(i, last)] else self._other(token) for i, token in enumerate(known)
        ]

    def _other(self, token: int) -> int:
        """Any token but this one, and none that ends a text."""
        if self._vocab is None:
            return token + 1
        n = self._vocab.n_tokens
        for _ in range(64):
            other = (token + self._random.randrange(1, n)) % n if n > 1 else token
            if not self._vocab.is_eog(other):
                break
        return other
