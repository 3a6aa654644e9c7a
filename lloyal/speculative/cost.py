"""How far to guess: what gives the most tokens a second, by what steps and guesses cost and how often they are right.

Nothing is known in advance. Guesses can be judged without being read, for the text itself says later whether they were
right (a look), and the seconds of a step by its rows come from steps themselves. What promises to pay is tried for a
few steps; where it does not, looks are so rare that they cost a hundredth of the time, and so are the next trials.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

__all__ = ["Cost", "Rates", "Widths"]

FORGET = 0.98  # what a guess that was judged counts after another
EXPECTED = 4.0  # guesses of a text that count as much as what all texts make expect
ENOUGH = 6  # guesses to judge as fast as can be
SHARE = 0.01  # of the time, that looks may take from then on
CAUGHT_UP = 16  # tokens that a drafter may hear between two guesses, as far as its speed is concerned
FEWEST, MOST_PAUSE = 4, 16384  # steps between two looks
BURST = 3  # steps of a trial: the first of a width is slower
TRIALS = 256  # steps between two trials where guessing does not pay; twice as many after each
HOLD = 8  # steps between two choices where it does
OTHERS = 64  # steps with guesses between two with none, one more or one less
UNKNOWN = 0.1  # what a row more costs beside those that are read anyway, until one has been tried
GAIN = 1.06  # what guesses must be better by than none


class Rates:
    """How often a guess at each place was right, if those before it were.

    Parameters
    ----------
    most : int
        Places.
    above : Rates, optional
        Of all texts: what is expected of this one, and what hears of it too.
    """

    def __init__(self, most: int, above: Rates | None = None) -> None:
        self.above = above
        self.n_judged = 0  #: guesses at the first place
        self._right = [0.0] * most
        self._judged = [0.0] * most

    def __getitem__(self, i: int) -> float:
        if self.above is not None:
            expected, weight = self.above[i], EXPECTED
        else:  # as the place before it, until it has been seen
            expected, weight = (self[i - 1] if i else 0.5), 1.0
        return (self._right[i] + weight * expected) / (self._judged[i] + weight)

    def judge(self, n: int, kept: int) -> None:
        """How many of `n` guesses were right, up to the first that was wrong."""
        self.n_judged += n > 0
        for i in range(min(n, kept + 1, len(self._right))):
            self._right[i] = FORGET * self._right[i] + (i < kept)
            self._judged[i] = FORGET * self._judged[i] + 1.0
        if self.above is not None:
            self.above.judge(n, kept)


class Widths:
    """Seconds of a step by the rows it reads. The scale drifts (a context fills up), the shape hardly."""

    def __init__(self) -> None:
        self._scale = 0.0
        self._shape: dict[int, float] = {}
        self._n: dict[int, int] = {}
        self._line: list[float] = []
        self._fresh = 0  # measurements that the line does not show yet

    def __contains__(self, rows: int) -> bool:
        return rows in self._shape

    def reaches(self, base: int, rows: int) -> bool:
        """Whether at least half of the way from `base` to `rows` has been measured."""
        return any(2 * (m - base) >= rows - base for m in self._shape)

    def note(self, rows: int, seconds: float) -> None:
        """What a step has taken."""
        seconds = max(seconds, 1e-9)
        n = self._n[rows] = self._n.get(rows, 0) + 1
        if n == 1:
            self._scale = self._scale or seconds
            self._shape[rows] = seconds / self._scale
        else:
            ratio = seconds / (self._scale * self._shape[rows])
            if n <= BURST:
                self._shape[rows] *= min(ratio, 1.0)  # nothing is ever too fast
            else:
                ratio = min(max(ratio, 0.5), 2.0)  # but now and then something else runs
                self._shape[rows] *= ratio**0.05
                self._scale *= ratio**0.15
        self._fresh += 1
        if n <= BURST or self._fresh >= 16:
            self._line = []

    def seconds(self, rows: int) -> float:
        """Of a step that reads so many: on a line through those that were measured."""
        if rows >= len(self._line):
            self._draw(rows)
        return self._scale * self._line[rows]

    def _draw(self, rows: int) -> None:
        places = sorted(self._shape)
        shape = list(accumulate((self._shape[m] for m in places), max))  # more rows never take less time
        last, most = places[-1], shape[-1]
        slope = (most - shape[-2]) / (last - places[-2]) if len(places) > 1 else UNKNOWN * most / last
        end = max(2 * rows, last) + 1
        places.append(end)
        shape.append(most + max(slope, 0.02 * most / last) * (end - last))
        line = [shape[0]] * places[0]
        for (m, low), (n, high) in pairwise(zip(places, shape, strict=True)):
            line += [low + (high - low) * i / (n - m) for i in range(n - m)]
        self._line, self._fresh = line, 0


class Cost:
    """When to ask for guesses, for how many, and which of them to read.

    Parameters
    ----------
    most : int
        Guesses of a step.
    widths : Widths
        Of the context.
    uniform : bool
        Texts that read different numbers of tokens cost a batch more (recurrent memory), so all read as many.

    Attributes
    ----------
    pause : int
        Steps to go on without guesses before it is asked again.
    all : Rates
        Of all texts.
    """

    def __init__(self, most: int, widths: Widths, uniform: bool = False) -> None:
        self.most, self.widths, self.uniform = most, widths, uniform
        self.pause = 0
        self.all = Rates(most)
        self._drafts: dict[int, float] = {}  # seconds of guessing, by how many
        self._each = 0.0  # seconds of hearing a token
        self._held = (0, 0, 0)  # steps to go with the same choice, how many texts it was made for, and how many guesses
        self._trying = False
        self._steps = 0
        self._next_look = 0
        self._next_trial = 0
        self._patience = TRIALS
        self._turn = 0

    # to choose

    def ask(self, n_texts: int) -> tuple[int, bool]:
        """How many guesses to ask for now, and whether to read them, or only to see if they will be right."""
        self._steps += 1
        steps, held_for, n = self._held
        if steps and held_for == n_texts:
            self._held = steps - 1, n_texts, n
            return n, True
        self._trying = False
        if n_texts not in self.widths:
            return 0, False
        plain = self._value(0, n_texts)
        best = max(range(1, self.most + 1), key=lambda n: self._value(n, n_texts))
        value = self._value(best, n_texts)
        if value >= GAIN * plain and self.all.n_judged:
            known = self._drafts and self.widths.reaches(n_texts, n_texts * (1 + best))
            if not known:
                return self._try(max(best, self.most // 2), n_texts, BURST)
            self._patience = TRIALS
            if self._steps < self._next_trial:
                return self._hold(best, n_texts, HOLD)
            self._next_trial = self._steps + OTHERS
            self._turn += 1
            return self._try((0, min(self.most, best + 1), 0, best - 1)[self._turn % 4], n_texts, 1)
        if value > 0.5 * plain and self.all.n_judged >= ENOUGH and self._steps >= self._next_trial:
            self._patience *= 2
            self._next_trial = self._steps + self._patience
            self._turn += 1
            return self._try((best, self.most)[self._turn % 2], n_texts, BURST)
        return (min(4, self.most) if self._steps >= self._next_look else 0), False

    def _hold(self, n: int, n_texts: int, steps: int) -> tuple[int, bool]:
        self._held = steps - 1, n_texts, n
        return n, True

    def _try(self, n: int, n_texts: int, steps: int) -> tuple[int, bool]:
        self._trying = True
        return self._hold(n, n_texts, steps)

    def cut(self, rates: Sequence[Rates], lengths: Sequence[int], n_texts: int) -> list[int]:
        """How many of each text's guesses to read.

        Parameters
        ----------
        rates, lengths
            Of the texts that have guesses.
        n_texts : int
            All texts of the step.
        """
        if self._trying:
            return list(lengths)
        tokens, seconds = float(n_texts), self.widths.seconds
        best, kept = tokens / seconds(n_texts), 0
        if self.uniform:
            chances = [1.0] * len(lengths)
            rows = n_texts
            for n in range(1, max(lengths, default=0) + 1):
                for i, length in enumerate(lengths):
                    if n <= length:
                        chances[i] *= rates[i][n - 1]
                        tokens += chances[i]
                        rows += 1
                if (value := tokens / seconds(rows)) > best:
                    best, kept = value, n
            return [min(kept, length) for length in lengths]
        following: list[tuple[float, int]] = []
        for i, length in enumerate(lengths):
            chance = 1.0
            for place in range(length):
                chance *= rates[i][place]
                following.append((chance, i))
        following.sort(reverse=True)
        for n, (chance, _) in enumerate(following, 1):
            tokens += chance
            if (value := tokens / seconds(n_texts + n)) > best:
                best, kept = value, n
        found = [0] * len(lengths)
        for _, i in following[:kept]:
            found[i] += 1
        return found

    # to learn

    def note_draft(self, n: int, seconds: float, lag: int) -> None:
        """What asking for `n` guesses has taken."""
        if lag <= CAUGHT_UP:
            was = self._drafts.get(n, seconds)
            self._drafts[n] = was + 0.2 * (min(seconds, 3 * was) - was)

    def note_step(self, rows: int, seconds: float) -> None:
        """What a step has taken that has read `rows` rows."""
        self.widths.note(rows, seconds)

    def note_pause(self, rows: int, seconds: float) -> None:
        """What a step of the pause has taken."""
        self.pause -= 1
        if self.pause % 8 == 0:  # now and then is enough
            self.widths.note(rows, seconds)

    def note_look(self, n_texts: int, n: int, seconds: float, lag: int) -> None:
        """What it has taken to ask, and to make `n` guesses that are not read: it sets the pause before the next time.

        Parameters
        ----------
        n_texts, n, seconds
        lag : int
            Tokens of a text that the drafter had to hear before.
        """
        if lag > CAUGHT_UP:
            once = self._draft(n)
            self._each = max(0.0, seconds - once) / lag
            seconds = min(seconds, once)
        if self.all.n_judged < ENOUGH:
            self._next_look = self._steps + FEWEST
        elif n:
            left = SHARE * self.widths.seconds(n_texts) - self._each
            pause = int(min(MOST_PAUSE, seconds / left)) if left > 0 else MOST_PAUSE
            self._next_look = self._steps + max(FEWEST, pause)
        nearest = self._next_look
        if self._next_trial > self._steps:
            nearest = min(nearest, self._next_trial)
        self.pause = max(FEWEST, nearest - self._steps)
        self._steps += self.pause

    def _draft(self, n: int) -> float:
        """Seconds of asking for `n` guesses, as far as is known."""
        if n == 0 or not self._drafts:
            return 0.0
        if n in self._drafts:
            return self._drafts[n]
        nearest = min(self._drafts, key=lambda m: abs(m - n))
        return self._drafts[nearest] * n / nearest

    def _value(self, n: int, n_texts: int) -> float:
        """Tokens a second with `n` guesses for each text."""
        tokens, chance = 1.0, 1.0
        for i in range(n):
            chance *= self.all[i]
            tokens += chance
        return n_texts * tokens / (self.widths.seconds(n_texts * (1 + n)) + self._draft(n))
