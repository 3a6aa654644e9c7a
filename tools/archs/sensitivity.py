"""How much a model's logits depend on its context."""

from __future__ import annotations

from pathlib import Path

import numpy as np

N_TOKENS = 64
N_SEEDS = 5


def measure(path: Path) -> float:
    """The largest logit change of the last row when the first half of the context is replaced, median of 5 seeds.

    Parameters
    ----------
    path : Path
        A model with a vocabulary of 128 tokens or more.

    Returns
    -------
    float
        In units of logits, whose standard deviation is about 2 in these models.
    """
    import lloyal

    changes = []
    with lloyal.Model(path) as model, lloyal.Context(model, n_ctx=256, n_ubatch=N_TOKENS, n_threads=1) as ctx:
        for seed in range(N_SEEDS):
            random = np.random.default_rng(seed)
            second = random.integers(0, 128, N_TOKENS // 2)
            rows = []
            for _ in range(2):
                batch = lloyal.Batch()
                batch.extend(np.concatenate([random.integers(0, 128, N_TOKENS // 2), second]), 0, 0, "last")
                if ctx.memory.kind != "none":
                    ctx.memory.clear()
                ctx.decode(batch)
                rows.append(ctx.logits(copy=True))
            changes.append(np.max(np.abs(rows[0] - rows[1])))
    return float(np.median(changes))
