"""Short forms for decoding in tests."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

import lloyal
from tests.models import N_VOCAB


def feed(ctx: lloyal.Context, *parts: tuple[int, int, Sequence[int]]) -> list[np.ndarray]:
    """Decode ``(seq_id, first position, tokens)`` parts in one batch; the logits after the last token of each part.

    Returns
    -------
    list of numpy.ndarray
        float32 copies, shape (n_vocab,).
    """
    batch = lloyal.Batch()
    for seq_id, pos0, tokens in parts:
        batch.extend(tokens, pos0, seq_id, "last")
    ctx.decode(batch)
    ends = np.cumsum([len(tokens) for _, _, tokens in parts]) - 1
    return [ctx.logits(int(end), copy=True) for end in ends]


def feed_in_batches(ctx: lloyal.Context, seq_id: int, tokens: Sequence[int], size: int, pos0: int = 0) -> np.ndarray:
    """Decode tokens of one sequence, `size` at a time; the logits after the last, float32, shape (n_vocab,)."""
    rows = []
    for start in range(0, len(tokens), size):
        rows = feed(ctx, (seq_id, pos0 + start, tokens[start : start + size]))
    return rows[0]


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of two rows of logits."""
    return float(np.max(np.abs(a - b)))


# Part of the largest logit that another order of cells may change; test_parity shows that a wrong row exceeds it.
ORDER_NOISE = 2e-2


def same(got: np.ndarray, expected: np.ndarray) -> bool:
    """Equal but for what another order of cells may change."""
    return distance(got, expected) <= ORDER_NOISE * float(np.abs(expected).max())


def some(n: int, seed: int = 0) -> list[int]:
    """Tokens of the tiny models."""
    rng = random.Random(seed)
    return [rng.randrange(N_VOCAB) for _ in range(n)]
