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
ENOUGH = 6  # asks as fast as can be
SHARE = 0.01  # of the time, that looks may take from then on
CAUGHT_UP = 16  # tokens that a drafter may hear between two guesses, as far as its speed is concerned
FEWEST, MOST_PAUSE = 4, 16384  # steps between two looks
BURST = 3  # steps of a trial: the first of a width is slower
TRIALS = 320  # steps between two trials where guessing does not pay; twice as many after each
HOLD = 8  # steps between two choices
SLOW = 0.1  # of an ask, in what asks have saved lately
OTHERS = 64  # steps with guesses between two with none, one more or one less
HOPE = 0.7  # of what steps without guesses give, for a trial to be worth it
LOOK = 4  # guesses of an ask that expects nothing
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

    def note(self, rows: int, seconds: float, plain: bool) -> bool:
        """What a step has taken; whether it was the first of its kind.

        Steps without guesses say how the scale drifts, others only what they cost beside those.
        """
        seconds = max(seconds, 1e-9)
        n = self._n[rows] = self._n.get(rows, 0) + 1
        self._scale = self._scale or seconds
        here = seconds / self._scale
        if n <= 2:  # the first of a width is slower
            self._shape[rows] = here if n == 1 else min(here, self._shape[rows])
        else:
            ratio = min(max(here / self._shape[rows], 0.5), 2.0)  # now and then something else runs
            if plain:
                self._scale *= ratio**0.2
            else:
                self._shape[rows] *= ratio ** max(0.2, 1 / n)
        self._fresh += 1
        if n <= BURST or self._fresh >= 16:
            self._line = []
        return n == 1

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
        self._gain = 0.0  # seconds that an ask has saved lately
        self._asked = 0
        self._heard = False  # a text, to its end
        self._steps = 0
        self._trial = 0  # steps to go in which all guesses are read
        self._patience = TRIALS
        self._next_trial = TRIALS
        self._turn = 0
        self._best, self._until = 0, 0  # how many to ask for, and until which step

    # to choose

    def ask(self, n_texts: int) -> int:
        """How many guesses to ask for now."""
        self._steps += 1
        if n_texts not in self.widths:
            return 0
        if self._trial:
            return self._best
        if self._steps >= self._until:
            self._best = max(range(1, self.most + 1), key=lambda n: self._value(n, n_texts))
            self._until = self._steps + HOLD
        if self._gain > 0 and self._steps >= self._next_trial:
            self._next_trial = self._steps + OTHERS
            self._turn += 1
            if self._turn % 2:
                return 0
            self._trial = 1
            return min(self.most, self._best + 1) if self._turn % 4 else max(1, self._best - 1)
        if self._gain <= 0 and self._asked >= ENOUGH and self._steps >= self._next_trial:
            self._next_trial = self._steps + self._patience
            self._patience *= 2
            self._turn += 1
            if self._value(self._best, n_texts) > HOPE * self._value(0, n_texts):
                self._best, self._trial = (self._best, self.most)[self._turn % 2], BURST
                self._until = self._steps + HOLD
                return self._best
        return self._best if self._gain > 0 else min(self._best, LOOK)

    def cut(self, rates: Sequence[Rates], lengths: Sequence[int], n_texts: int) -> list[int]:
        """How many of each text's guesses to read.

        Parameters
        ----------
        rates, lengths
            Of the texts that have guesses.
        n_texts : int
            All texts of the step.
        """
        most = max(lengths, default=0)
        if self._trial or most == 0:
            self._trial -= most > 0
            return list(lengths)
        if self.all.n_judged == 0:
            return [0] * len(lengths)
        found = (self._cut_alike if self.uniform else self._cut_each)(rates, lengths, n_texts)
        if any(found) and not self.widths.reaches(n_texts, n_texts + sum(found)):
            self._trial = BURST - 1  # a width that nobody has measured: the first time is slower
        return found

    def _cut_alike(self, rates: Sequence[Rates], lengths: Sequence[int], n_texts: int) -> list[int]:
        tokens, seconds, rows = float(n_texts), self.widths.seconds, n_texts
        best, kept = GAIN * tokens / seconds(n_texts), 0
        chances = [1.0] * len(lengths)
        for n in range(1, max(lengths) + 1):
            for i, length in enumerate(lengths):
                if n <= length:
                    chances[i] *= rates[i][n - 1]
                    tokens += chances[i]
                    rows += 1
            if (value := tokens / seconds(rows)) > best:
                best, kept = value, n
        return [min(kept, length) for length in lengths]

    def _cut_each(self, rates: Sequence[Rates], lengths: Sequence[int], n_texts: int) -> list[int]:
        tokens, seconds = float(n_texts), self.widths.seconds
        best, kept = GAIN * tokens / seconds(n_texts), 0
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

    def note_pause(self, rows: int, seconds: float) -> None:
        """What a step of the pause has taken."""
        self.pause -= 1
        self.widths.note(rows, seconds, True)

    def note(
        self, n_texts: int, n: int, lag: int, seconds_guessing: float, rows: int, tokens: int, seconds_reading: float
    ) -> None:
        """What a step has taken and given that was asked about; it sets the pause before the next.

        Parameters
        ----------
        n_texts : int
        n : int
            Guesses that were asked for.
        lag : int
            Tokens of a text that the drafter had to hear before.
        seconds_guessing : float
            Of all that is not the step itself.
        rows, tokens : int
            That were read, and that were given, in all texts.
        seconds_reading : float
        """
        new = self.widths.note(rows, seconds_reading, rows == n_texts)
        if n == 0:
            return
        if lag <= CAUGHT_UP:
            was = self._drafts.get(n, seconds_guessing)
            self._drafts[n] = was + 0.2 * (min(seconds_guessing, 3 * was) - was)
        elif self._heard:
            self._each = max(0.0, seconds_guessing - self._draft(n)) / lag
            seconds_guessing = min(seconds_guessing, self._draft(n))
        else:  # a text has to be read from its beginning in any case
            seconds_guessing = self._draft(n)
        self._heard = True
        self._asked += 1
        plain = self.widths.seconds(n_texts)
        saved = -seconds_guessing
        if rows > n_texts and not new:
            saved += plain * tokens / n_texts - seconds_reading
        was = self._gain
        self._gain += SLOW * (max(saved, -2 * plain) - self._gain)
        if self._gain > 0 or self._trial:
            self._patience = TRIALS
            return
        if was > 0:
            self._asked = 0  # it has paid until now: look again soon
        nearest = FEWEST
        if self._asked >= ENOUGH:
            left = SHARE * plain - self._each
            nearest = max(1, int(min(MOST_PAUSE, seconds_guessing / left))) if left > 0 else MOST_PAUSE
        if self._next_trial > self._steps:
            nearest = min(nearest, self._next_trial - self._steps)
        self.pause = nearest
        self._steps += nearest

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
