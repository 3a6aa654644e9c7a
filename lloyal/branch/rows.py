"""What a row of logits says, in float64; nothing but NumPy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["entropy", "log_softmax", "top"]


def log_softmax(row: NDArray[np.float32]) -> NDArray[np.float64]:
    """Natural logarithms of the probabilities; of a row that allows nothing the row itself."""
    import numpy

    wide = row.astype(numpy.float64)
    if wide.max() == -numpy.inf:
        return wide
    wide -= wide.max()
    wide -= numpy.log(numpy.exp(wide).sum())
    return wide


def top(row: NDArray[np.float32], n: int) -> list[tuple[float, int]]:
    """The most probable, ``(log-probability, token)``, the best first, the first of equals before the others."""
    import numpy

    log_probs = log_softmax(row)
    order = numpy.argsort(-log_probs, kind="stable")[: max(0, n)]
    return [(float(log_probs[token]), int(token)) for token in order]


def entropy(row: NDArray[np.float32]) -> float:
    """In nats; infinite for a row that allows nothing."""
    import numpy

    log_probs = log_softmax(row)
    finite = log_probs[numpy.isfinite(log_probs)]
    return float(-(numpy.exp(finite) * finite).sum()) if len(finite) else math.inf
