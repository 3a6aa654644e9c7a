"""How OpenMP's threads wait for each other, which it reads once, when it is loaded.

After every operation of a graph they do. By itself OpenMP spins for milliseconds first: as long as nothing else runs
that is best by a few percent, but where another process holds a CPU, two threads give 1 token a second instead of 25
(SmolLM2 on two CPUs; 85 with one thread), and burn the time that the other thread needs. GOMP_SPINCOUNT or
OMP_WAIT_POLICY in the environment is kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["passive_waiting"]

SPIN_COUNT = "1000"


@contextmanager
def passive_waiting() -> Iterator[None]:
    """While libraries are loaded: if OpenMP is among them, its threads will sleep soon. It restores the environment."""
    chosen = "GOMP_SPINCOUNT" in os.environ or "OMP_WAIT_POLICY" in os.environ
    if not chosen:
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
    try:
        yield
    finally:
        if not chosen:
            os.environ.pop("GOMP_SPINCOUNT", None)
