"""Thousands of models and contexts, one after another, leave the process as small as it was."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

import lloyal
from tests.lifetimes.work import batch_of
from tests.models import tiny

PAGE = os.sysconf("SC_PAGE_SIZE")
STATM = Path("/proc/self/statm")


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return int(STATM.read_text().split()[1]) * PAGE


def cycle(path: Path) -> None:
    model = lloyal.Model(path)
    ctx = lloyal.Context(model, n_ctx=256, n_batch=32, n_ubatch=32, n_seq_max=2, n_threads=1)
    sampler = lloyal.Sampler.chain(lloyal.Sampler.top_k(3), lloyal.Sampler.greedy())
    ctx.decode(batch_of([1, 2, 3]))
    sampler.sample(ctx)
    ctx.state_seq_set_data_ext(ctx.state_seq_get_data_ext(0, 2), 1, 2)
    ctx.checkpoint(0, where="device").release()
    ctx.close()
    model.close()


@pytest.mark.skipif(not STATM.exists(), reason="there is no /proc")
@pytest.mark.parametrize(
    ("n", "allowed"),
    [
        pytest.param(150, 6 << 20, id="150"),
        pytest.param(10_000, 6 << 20, id="10000", marks=pytest.mark.full),
    ],
)
def test_memory_stays_flat(n: int, allowed: int) -> None:
    path = tiny("llama")
    before = lloyal.live_handles()
    for _ in range(50):  # caches, arenas and the log fill up once
        cycle(path)
    began = resident()
    most = 0
    for i in range(n):
        cycle(path)
        if i % (n // 10) == 0:
            most = max(most, resident() - began)
    grown = resident() - began
    print(f"{n} cycles: {grown / 1024:.0f} KiB more at the end, {most / 1024:.0f} KiB at most")
    assert lloyal.live_handles() == before
    assert grown < allowed, f"{n} cycles took {grown} bytes"
