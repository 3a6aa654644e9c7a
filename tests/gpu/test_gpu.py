"""States that stay in the memory of a GPU. Skipped only where there is none; every test here has the marker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import lloyal
from tests.decode import feed, same

pytestmark = pytest.mark.gpu

TOKENS = [(7 * i) % 500 + 20 for i in range(300)]
FLAG = lloyal.StateSeqFlags.ON_DEVICE


@pytest.fixture(params=["nano", "nano-hybrid"])
def ctx(request: pytest.FixtureRequest) -> Iterator[lloyal.Context]:
    gpu = next(device for device in lloyal.devices() if device.type in ("gpu", "igpu"))
    with lloyal.Model(lloyal.models.path(request.param), devices=[gpu]) as model:
        options: dict[str, Any] = {"n_ctx": 2048, "n_seq_max": 6, "n_threads": 1}
        with lloyal.Context(model, **options) as made:
            yield made


def test_the_cache_is_on_the_gpu(ctx: lloyal.Context) -> None:
    feed(ctx, (0, 0, TOKENS))
    with ctx.checkpoint(0, where="device") as checkpoint:
        assert checkpoint.buffers
        assert not any("CPU" in name or "Host" in name for name in checkpoint.buffers)


def test_the_raw_flag_keeps_the_tensors_there(ctx: lloyal.Context) -> None:
    feed(ctx, (0, 0, TOKENS))
    device, host = ctx.state_seq_get_data_ext(0, FLAG), ctx.state_seq_get_data_ext(0)
    assert len(device) < len(host) / 4
    expected = feed(ctx, (0, 300, [5]))[0]
    ctx.state_seq_set_data_ext(device, 0, FLAG)
    assert same(feed(ctx, (0, 300, [5]))[0], expected)


@pytest.mark.parametrize("where", ["device", "host", "cells"])
def test_checkpoints_restore_what_was_there(ctx: lloyal.Context, where: str) -> None:
    taken, expected = [], []
    for begin in range(0, 300, 100):
        feed(ctx, (0, begin, TOKENS[begin : begin + 100]))
        taken.append((begin + 100, ctx.checkpoint(0, where=where)))
    for end, checkpoint in reversed(taken):
        states = []
        for _ in range(2):
            checkpoint.restore(1)
            states.append(ctx.state_seq_get_data_ext(1))
            expected.append(feed(ctx, (1, end, [5]))[0])
        assert states[0] == states[1]
        assert same(expected[-1], expected[-2])
        checkpoint.release()


def test_bytes_survive_the_trip_to_the_host(ctx: lloyal.Context) -> None:
    feed(ctx, (0, 0, TOKENS))
    before = ctx.state_seq_get_data_ext(0)
    with ctx.checkpoint(0, where="device") as checkpoint:
        data = checkpoint.to_bytes()
    ctx.memory.clear()
    with lloyal.Checkpoint.from_bytes(ctx, data) as again:
        again.restore(0)
    assert ctx.state_seq_get_data_ext(0) == before
