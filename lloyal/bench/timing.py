"""How lloyal measures: two sides in turns, in one run.

Speed is reported as a ratio. Both sides of it run in the same process on the same machine state, one after the other,
again and again; each round gives one ratio, and the median of them is the result. A slow second hits both sides.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping

__all__ = ["Side", "Timing", "alternate", "ratio", "timed"]

# One measurement: prepares what it needs, does the work once, returns the seconds of the work alone.
Side = Callable[[], float]


@dataclasses.dataclass(frozen=True)
class Timing:
    """What one side took, or the ratio of two, round by round."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles."""
        if len(self.values) < 2:
            return self.values[0], self.values[0]
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high

    def as_json(self) -> dict[str, object]:
        return {"median": self.median, "quartiles": list(self.spread), "rounds": len(self.values)}


def timed(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call, by the wall or by another clock."""
    began = clock()
    work()
    return clock() - began


def alternate(
    sides: Mapping[str, Side], rounds: int, *, warm_up: int = 1, progress: Callable[[int, int], object] | None = None
) -> dict[str, Timing]:
    """Measure the sides in turns; every other round goes through them backwards.

    Parameters
    ----------
    sides : mapping of str to callable
        Each returns the seconds of one measurement.
    rounds : int
    warm_up : int
        Rounds before that are not counted.
    progress : callable, optional
        Called with the rounds done and their number.

    Returns
    -------
    dict of str to Timing
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(-warm_up, rounds):
        for name in list(sides) if i % 2 else reversed(list(sides)):
            taken = sides[name]()
            if i >= 0:
                seconds[name].append(taken)
        if progress is not None:
            progress(i + warm_up + 1, rounds + warm_up)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def ratio(of: Timing, to: Timing) -> Timing:
    """``of / to`` round by round."""
    return Timing(tuple(a / b for a, b in zip(of.values, to.values, strict=True)))
