"""Guesses from all texts seen: what most often followed the longest end of the text that has occurred before."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from lloyal.errors import InvalidArgument
from lloyal.prompt import check_count
from lloyal.speculative.automaton import Automaton
from lloyal.speculative.protocol import Alone

if TYPE_CHECKING:
    from lloyal.llama import Vocab

__all__ = ["Suffix"]

MAGIC = b"lloyal-suffix 1\n"


class Suffix:
    """Guesses that texts repeat each other: tool calls, agents' turns, edits. All texts of a drafter are one memory.

    The guesses are what most often followed the longest end of the text that has occurred anywhere, the latest of
    equals. They go as far as the evidence does: the more often the same came, and the longer what agrees, the more of
    them. The method is that of SuffixDecoding (arXiv 2411.04975).

    Parameters
    ----------
    shortest : int
        Last tokens that must agree.
    least : float
        How probable all guesses up to the last must be, together and by what has been seen; lower where wrong guesses
        cost little.
    tokens : int
        How many it remembers, equal beginnings of texts once; then the older half is forgotten. Each takes 35 bytes
        where texts repeat, 300 where they never do.
    """

    class Text:
        """Where a text stands in what is remembered."""

        __slots__ = ("age", "n", "old", "state")

        def __init__(self, age: int) -> None:
            self.age = age
            self.state = -1  # in the younger half; -1: nothing was heard yet
            self.old, self.n = 0, 0  # in the older one: the longest end that occurs there, and its length

    def __init__(self, shortest: int = 1, *, least: float = 0.4, tokens: int = 200_000) -> None:
        self.shortest = check_count("shortest", shortest, 1, 64)
        if not isinstance(least, (int, float)) or not 0 <= least <= 1:
            raise InvalidArgument(f"least={least!r} must be a number from 0 to 1")
        self.least = float(least)
        self.tokens = check_count("tokens", tokens, 2, 2**29)
        self._young, self._old = Automaton(), Automaton()
        self._age = 0
        self._lock = threading.RLock()
        self._alone = Alone()

    def check(self, vocab: Vocab) -> None:
        """It knows tokens by their numbers: any vocabulary will do."""

    def to_bytes(self) -> bytes:
        """What it remembers, to be kept in a file."""
        with self._lock, self._alone:
            young, old = self._young.to_bytes(), self._old.to_bytes()
        return MAGIC + len(young).to_bytes(8, "little") + young + old

    @classmethod
    def from_bytes(cls, data: bytes, *, shortest: int = 1, least: float = 0.4, tokens: int = 200_000) -> Self:
        """A drafter that remembers what another one did; `InvalidArgument` for other bytes."""
        made = cls(shortest, least=least, tokens=tokens)
        head = len(MAGIC) + 8
        if not isinstance(data, bytes) or data[: len(MAGIC)] != MAGIC or len(data) < head:
            raise InvalidArgument("these are no bytes that Suffix.to_bytes has made")
        middle = head + int.from_bytes(data[len(MAGIC) : head], "little")
        try:
            made._young = Automaton.from_bytes(data[head:middle])
            made._old = Automaton.from_bytes(data[middle:])
        except ValueError as error:
            raise InvalidArgument(f"what Suffix.to_bytes has made was damaged: {error}") from None
        return made

    def start(self) -> Suffix.Text:
        """A text without tokens."""
        return self.Text(self._age)

    def feed(self, text: Suffix.Text, tokens: Sequence[int]) -> None:
        """Remember what followed what. A beginning that others have counts once: the text may be a fork."""
        if len(tokens) and not (min(tokens) >= 0 and max(tokens) < 2**31):
            raise InvalidArgument(f"tokens from {min(tokens)} to {max(tokens)}: they are numbers of a vocabulary")
        step = max(1, self.tokens // 8)
        with self._lock, self._alone:
            again = text.state >= 0
            try:
                for begin in range(0, len(tokens), step):
                    self._feed(text, tokens[begin : begin + step], again)
            except BaseException:  # Ctrl-C: what is half changed is worth nothing
                self._young, self._old = Automaton(), Automaton()
                self._age += 2
                raise

    def _feed(self, text: Suffix.Text, tokens: Sequence[int], again: bool) -> None:
        self._catch_up(text)
        if len(self._old) > 1:
            for token in tokens:
                text.old, text.n = self._old.follow(text.old, text.n, token)
        text.state = self._young.read(max(text.state, 0), tokens, again)
        if self._young.n_tokens >= self.tokens // 2:
            self._young, self._old = Automaton(), self._young
            self._age += 1

    def _catch_up(self, text: Suffix.Text) -> None:
        """What it knew to be young may be old by now, or forgotten."""
        if text.age == self._age:
            return
        was_young = text.age == self._age - 1 and text.state >= 0
        text.old = text.state if was_young else 0
        text.n = self._old.length[text.old]
        text.age, text.state = self._age, 0 if text.state >= 0 else -1

    def propose(self, texts: Sequence[Suffix.Text], n: int) -> list[list[int]]:
        """As many as the evidence supports."""
        with self._lock, self._alone:
            return [self._behind(text, n) for text in texts]

    def _behind(self, text: Suffix.Text, n: int) -> list[int]:
        self._catch_up(text)
        seen, state = self._young, max(text.state, 0)
        state, agreed = seen.followed(state, seen.length[state])
        old, agreed_old = self._old.followed(text.old, text.n)
        if agreed_old > agreed:
            seen, state, agreed = self._old, old, agreed_old
        out: list[int] = []
        chance = 1.0
        while len(out) < n and agreed >= self.shortest:
            # One place where one token agrees is little evidence.
            chance *= seen.times[state] / (seen.total[state] + 1 / agreed)
            if chance < self.least:
                break
            out.append(seen.token[state])
            # Where the other text has ended, a shorter part of it may have been followed elsewhere.
            state, agreed = seen.followed(seen.to[state], agreed + 1)
        return out
