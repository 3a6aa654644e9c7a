"""Several drafters as one: each is asked where those before it have no idea."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lloyal.errors import CacheFull, InvalidArgument, NoLease
from lloyal.speculative.protocol import Drafter, Pick, attach, check_drafter, propose

if TYPE_CHECKING:
    from lloyal.context import Context
    from lloyal.llama import Vocab

__all__ = ["Chain"]

SLOWEST = 0.03  # what a judgement counts, beside all before it
TRIAL = 64  # proposals between two that ask in another order


class Chain:
    """Asks the best of some drafters, and where it has no idea the next one.

    The order follows what they turn out to be worth: how much of what was asked for was right when they had an idea.

    Parameters
    ----------
    *drafters : Drafter
        In the order to begin with.
    """

    class Text:
        """What each drafter keeps of a text, and a guess that was not judged yet."""

        __slots__ = ("asked", "by", "guess", "parts")

        def __init__(self, parts: list[Any]) -> None:
            self.parts = parts
            self.guess: list[int] = []
            self.by = self.asked = 0

    def __init__(self, *drafters: Drafter) -> None:
        if not drafters:
            raise InvalidArgument("a chain needs a drafter at least")
        for drafter in drafters:
            check_drafter(drafter)
        self.drafters = drafters
        self._worth = [1.0] * len(drafters)
        self._judged = [2] * len(drafters)  # as if two guesses had been, all of them right
        self._proposals = 0
        self._lock = threading.RLock()  # of the numbers; drafters have their own

    @property
    def order(self) -> list[Drafter]:
        """The drafters, in the order they are asked in now."""
        return [self.drafters[i] for i in self._order()]

    def _order(self) -> list[int]:
        return sorted(range(len(self.drafters)), key=lambda i: -self._worth[i])

    def check(self, vocab: Vocab) -> None:
        """All of them must take the vocabulary."""
        for drafter in self.drafters:
            drafter.check(vocab)

    def attach(self, ctx: Context) -> None:
        """For those that read more than tokens."""
        for drafter in self.drafters:
            attach(drafter, ctx)

    def start(self) -> Chain.Text:
        """A text of each."""
        return self.Text([drafter.start() for drafter in self.drafters])

    def feed(self, text: Chain.Text, tokens: Sequence[int]) -> None:
        """All of them hear it; and it says what the guess before was worth."""
        if text.guess and tokens:
            self._judge(text, tokens)
        for drafter, part in zip(self.drafters, text.parts, strict=True):
            drafter.feed(part, tokens)

    def _judge(self, text: Chain.Text, tokens: Sequence[int]) -> None:
        kept = 0
        for guessed, token in zip(text.guess, tokens, strict=False):
            if guessed != token:
                break
            kept += 1
        text.guess = []
        with self._lock:
            self._judged[text.by] += 1
            rate = max(SLOWEST, 1 / self._judged[text.by])
            self._worth[text.by] += rate * (kept / text.asked - self._worth[text.by])

    def propose(self, texts: Sequence[Chain.Text], n: int) -> list[list[int]]:
        """Guesses of the first that has some, for each text."""
        return self._propose(texts, n, None)

    def guess(self, texts: Sequence[Chain.Text], n: int, picks: Sequence[Pick]) -> list[list[int]]:
        """The same, with more than tokens for those that ask for it."""
        return self._propose(texts, n, picks)

    def _propose(self, texts: Sequence[Chain.Text], n: int, picks: Sequence[Pick] | None) -> list[list[int]]:
        with self._lock:
            order = self._order()
            self._proposals += 1
            if self._proposals % TRIAL == 0:  # who is never asked is never judged: each in turn is asked first
                order.insert(0, order.pop(self._proposals // TRIAL % len(order)))
        guesses: list[list[int]] = [[] for _ in texts]
        for text in texts:
            text.guess = []
        open_ = list(range(len(texts))) if n > 0 else []
        for i in order:
            if not open_:
                break
            parts = [texts[k].parts[i] for k in open_]
            asked = None if picks is None else [picks[k] for k in open_]
            try:
                found = propose(self.drafters[i], parts, n, asked)
            except (CacheFull, NoLease):  # it has no room, others may
                continue
            for k, guess in zip(open_, found, strict=True):
                guesses[k] = guess
                if guess:
                    texts[k].guess, texts[k].by, texts[k].asked = guesses[k], i, n
            open_ = [k for k in open_ if not guesses[k]]
        return guesses
