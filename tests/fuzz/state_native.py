"""What the native caches hold, read from raw host states: positions, and a hash of the bytes of every row."""

from __future__ import annotations

import dataclasses
import hashlib
from functools import cache

import numpy as np

from tests.checkpoints.raw_state import Cache, parse
from tests.fuzz.state_config import Config


@dataclasses.dataclass
class Held:
    """One cache of one sequence: for each position the hashes of the rows there."""

    at: dict[int, tuple[int, ...]]


@dataclasses.dataclass
class View:
    caches: list[Held]
    state: bytes | None  # a digest of the recurrent state


@cache
def _factors(n: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 2**63, n, np.uint64) * np.uint64(2) + np.uint64(1)


def _hashes(found: Cache) -> np.ndarray:
    """A word for each row, of all its tensors and its M-RoPE coordinates."""
    n = len(found.positions)
    parts = [tensor.data.transpose(1, 0, 2).reshape(n, -1) for tensor in found.tensors] + [found.ext.reshape(n, -1)]
    width = sum(part.shape[1] for part in parts)
    rows = np.zeros((n, (width + 7) // 8 * 8), np.uint8)
    np.concatenate(parts, axis=1, out=rows[:, :width])
    words = rows.view(np.uint64)
    mixed = (words ^ (words >> np.uint64(29))) * _factors(words.shape[1])
    mixed ^= mixed >> np.uint64(32)
    return mixed.sum(axis=1, dtype=np.uint64)


def view(blob: bytes, config: Config) -> View:
    raw = parse(blob, config.kind, config.mrope)
    caches = []
    for found in raw.caches:
        at: dict[int, tuple[int, ...]] = {}
        if len(found.positions):
            for pos, word in zip(found.positions.tolist(), _hashes(found).tolist(), strict=True):
                at[pos] = (*at[pos], word) if pos in at else (word,)
        caches.append(Held({pos: tuple(sorted(words)) for pos, words in at.items()}))
    state = hashlib.blake2b(raw.recurrent, digest_size=16).digest() if raw.recurrent else None
    return View(caches, state)
