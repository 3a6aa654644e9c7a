"""What a row of logits says, in float64; nothing but NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lloyal.errors import InvalidArgument

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["adder", "changed", "entropy", "log_softmax", "perplexity"]


def log_softmax(row: NDArray[np.float32]) -> NDArray[np.float64]:
    """Natural logarithms of the probabilities; of a row that allows nothing the row itself."""
    import numpy

    wide = row.astype(numpy.float64)
    if wide.max() == -numpy.inf:
        return wide
    wide -= wide.max()
    wide -= numpy.log(numpy.exp(wide).sum())
    return wide


def entropy(row: NDArray[np.float32]) -> float:
    """In nats; infinite for a row that allows nothing."""
    import numpy

    log_probs = log_softmax(row)
    finite = log_probs[numpy.isfinite(log_probs)]
    return float(-(numpy.exp(finite) * finite).sum()) if len(finite) else math.inf


def adder(numbers: Mapping[int, float], n_vocab: int) -> Callable[[NDArray[np.float32]], None]:
    """A function that adds numbers to some logits."""
    added = {int(token): float(value) for token, value in numbers.items()}
    for token in added:
        if not 0 <= token < n_vocab:
            raise InvalidArgument(f"token {token} is outside the vocabulary of {n_vocab}")

    def add(logits: NDArray[np.float32]) -> None:
        for token, value in added.items():
            logits[token] += value

    return add


def changed(row: NDArray[np.float32], changes: Sequence[Callable[[Any], Any]]) -> NDArray[np.float32]:
    """A copy that functions have changed in turn, in place or by returning another."""
    import numpy

    row = numpy.array(row)
    shape = row.shape
    for change in changes:
        other = change(row)
        row = row if other is None else numpy.ascontiguousarray(other, dtype=numpy.float32)
        if row.shape != shape:
            raise InvalidArgument(f"steering must leave logits of shape {shape}, not {row.shape}")
    return row


def perplexity(nll: float, n: int) -> float:
    """Of `n` tokens with so many nats together; infinite for none, and for what no float64 holds."""
    try:
        return math.exp(nll / n) if n else math.inf
    except OverflowError:
        return math.inf
