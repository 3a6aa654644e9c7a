"""How far to guess: the number of guesses that gives the most tokens a second, by what steps and guesses have cost."""

from __future__ import annotations

from collections import deque
from statistics import median

__all__ = ["Cost"]

KEPT = 9  # measurements of a number, of which the median counts
PLAIN = 6  # steps without guesses to begin with; the first is not counted, it warms everything up
ENOUGH = 24  # guesses to judge before a choice
SLOWEST = 0.02  # what a guess that was judged counts, beside all before it
PERIOD = 32  # steps between two of another number; twice as many, while guessing does not pay, up to
LAST_PERIOD = 1024
PAUSE = 8  # steps between two looks at what has been measured


class Cost:
    """Seconds of a step by the number of guesses, and how often a guess at each place was right.

    Parameters
    ----------
    most : int
        Guesses of a step.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.right = [0.5] * most
        self._seconds: dict[int, deque[float]] = {}
        self._judged = [2] * most  # as if two had been, one of them right
        self._steps = 0
        self._next = 0  # when another number is tried
        self._period = PERIOD
        self._tried = 0
        self._best = 0
        self._weigh = 0  # when the numbers are held against each other again

    def choose(self) -> int:
        """How many to ask for now."""
        self._steps += 1
        if self._steps <= PLAIN:
            return 0
        first = min(4, self.most)
        if self._judged[0] < ENOUGH and self._steps < PLAIN + 2 * ENOUGH:
            self._next = self._steps + PERIOD
            return first
        if self._steps < self._next:
            if self._steps >= self._weigh:
                self._compare()
            return self._best
        best = self._best
        self._period = PERIOD if best else min(2 * self._period, LAST_PERIOD)
        self._next = self._steps + self._period
        self._weigh = self._steps + 1
        # What is tried: one more, one less, none, in turns.
        self._tried += 1
        others = [first] if best == 0 else [min(self.most, best + 1), 0, best - 1]
        return others[self._tried % len(others)]

    def _compare(self) -> None:
        was, self._best = self._best, max(range(self.most + 1), key=self.tokens_per_second)
        if self._best and not was:
            self._period, self._next = PERIOD, self._steps + PERIOD
        # What is not tried any more is not measured any more either.
        self._weigh = self._steps + (PAUSE if self._best else self._period)

    def note(self, n: int, seconds: float) -> None:
        """What a step with `n` guesses took."""
        if self._steps != 1:
            self._seconds.setdefault(n, deque(maxlen=KEPT)).append(seconds)

    def judge(self, n: int, kept: int) -> None:
        """How many of `n` guesses were right, up to the first that was wrong."""
        for i in range(min(n, kept + 1, self.most)):
            self._judged[i] += 1
            self.right[i] += max(SLOWEST, 1 / self._judged[i]) * ((i < kept) - self.right[i])

    def tokens_per_second(self, n: int) -> float:
        """With `n` guesses, as far as is known."""
        tokens, chance = 1.0, 1.0
        for i in range(n):
            chance *= self.right[i]
            tokens += chance
        return tokens / self.seconds(n)

    def seconds(self, n: int) -> float:
        """Of a step with `n` guesses: measured, or on a line through those that were."""
        known: dict[int, float] = {}
        most = 0.0
        for m in sorted(self._seconds):  # more guesses never take less time, whatever was measured
            most = known[m] = max(most, median(self._seconds[m]))
        if n in known:
            return known[n]
        below = max((m for m in known if m < n), default=None)
        above = min((m for m in known if m > n), default=None)
        if below is None or above is None:
            ends = sorted(known)
            if len(ends) < 2:
                return max(most, 1e-9) * (1 + n)
            below, above = (ends[-2], ends[-1]) if above is None else (ends[0], ends[1])
        slope = (known[above] - known[below]) / (above - below)
        return max(known[below] + slope * (n - below), 1e-9)
