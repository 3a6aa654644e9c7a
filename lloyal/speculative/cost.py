"""How far to guess: the number of guesses that gives the most tokens a second, by what steps and guesses have cost."""

from __future__ import annotations

__all__ = ["Cost"]

NEW = 0.1  # what a new measurement counts, beside all before it
FIRST_TRY = 16  # steps until another number is tried; twice as many after each that did not help
LAST_TRY = 2048


class Cost:
    """Seconds of a step by the number of guesses, and how often a guess at each place was right.

    Parameters
    ----------
    most : int
        Guesses of a step.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.seconds: dict[int, float] = {}
        self.right = [0.5] * most
        self._best = 0
        self._wait = FIRST_TRY
        self._left = 0

    def choose(self) -> int:
        """How many to ask for now."""
        for n in (0, min(4, self.most)):
            if n not in self.seconds:
                return n
        best = max(range(self.most + 1), key=self._tokens_per_second)
        if best != self._best:
            self._best, self._wait, self._left = best, FIRST_TRY, FIRST_TRY
        self._left -= 1
        if self._left > 0:
            return best
        self._wait = min(2 * self._wait, LAST_TRY)
        self._left = self._wait
        return min(self.most, best + 1) if self._wait % (4 * FIRST_TRY) else max(0, best - 1)

    def note(self, n: int, seconds: float) -> None:
        """What a step with `n` guesses took."""
        known = self.seconds.get(n)
        # A slow step says little: the machine had something else to do.
        self.seconds[n] = seconds if known is None else known + NEW * (min(seconds, 2 * known) - known)

    def judge(self, n: int, kept: int) -> None:
        """How many of `n` guesses were right, up to the first that was wrong."""
        for i in range(min(n, kept + 1, self.most)):
            self.right[i] += NEW * ((i < kept) - self.right[i])

    def _tokens_per_second(self, n: int) -> float:
        tokens, chance = 1.0, 1.0
        for i in range(n):
            chance *= self.right[i]
            tokens += chance
        return tokens / self._seconds(n)

    def _seconds(self, n: int) -> float:
        """Measured, or on the line between those that were."""
        if n in self.seconds:
            return self.seconds[n]
        below = max((m for m in self.seconds if m < n), default=0)
        above = min((m for m in self.seconds if m > n), default=None)
        if above is None:
            first = self.seconds[0]
            return first + (self.seconds[below] - first) * n / max(1, below)
        share = (n - below) / (above - below)
        return self.seconds[below] + share * (self.seconds[above] - self.seconds[below])
