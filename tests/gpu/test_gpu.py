"""States that stay in the memory of a device: a GPU where there is one, and always what takes its place without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import lloyal
from lloyal import errors
from lloyal.native import checkpoint as native
from tests.checkpoints.raw_state import parse
from tests.decode import feed, same

TOKENS = [(7 * i) % 500 + 20 for i in range(300)]
FLAG = lloyal.StateSeqFlags.ON_DEVICE
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "nano": ("nano", {}),
    "hybrid": ("nano-hybrid", {}),
    "quantized": ("nano", {"type_k": "q8_0", "type_v": "q4_0", "flash_attn": True}),
    "no_fa": ("nano", {"flash_attn": False}),
}


@pytest.fixture(params=KINDS)
def ctx(request: pytest.FixtureRequest, devices: Any) -> Iterator[lloyal.Context]:
    name, options = KINDS[request.param]
    with lloyal.Model(lloyal.models.path(name), devices=devices) as model:
        with lloyal.Context(model, n_ctx=2048, n_seq_max=8, n_threads=1, **options) as made:
            yield made


def is_device(place: str) -> bool:
    return place != "cpu"


def test_the_cache_is_on_the_device(ctx: lloyal.Context, place: str) -> None:
    feed(ctx, (0, 0, TOKENS))
    with ctx.checkpoint(0, where="device") as checkpoint:
        assert checkpoint.buffers
        names = list(checkpoint.buffers)
    assert any("CPU" in name or "Host" in name for name in names) != is_device(place)


def test_the_raw_flag_keeps_the_tensors_there(ctx: lloyal.Context, request: pytest.FixtureRequest) -> None:
    feed(ctx, (0, 0, TOKENS))
    host = ctx.state_seq_get_data_ext(0)
    if "quantized" in request.node.callspec.id:
        with pytest.raises(errors.Unsupported, match="quantized"):
            ctx.state_seq_get_data_ext(0, FLAG)
        return
    device = ctx.state_seq_get_data_ext(0, FLAG)
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


@pytest.mark.parametrize("where", ["device", "host"])
def test_one_of_several_in_lockstep(ctx: lloyal.Context, where: str) -> None:
    batch = lloyal.Batch()
    for step in range(10):
        batch.clear()
        for seq_id in range(5):
            batch.add(TOKENS[(step * 5 + seq_id * 31) % 300], step, seq_id, False)
        ctx.decode(batch)

    def state(seq_id: int) -> bytes:
        return parse(ctx.state_seq_get_data_ext(seq_id), ctx.memory.kind).encode()

    before = {seq_id: state(seq_id) for seq_id in (1, 3)}
    other = feed(ctx, (2, 10, [5]))[0]
    ctx.memory.seq_rm(2)
    with ctx.checkpoint(3, where=where) as checkpoint:
        ctx.memory.seq_rm(3)
        checkpoint.restore(2)
        assert [state(seq_id) for seq_id in (1, 2)] == [before[1], before[3]]
        assert not same(feed(ctx, (2, 10, [5]))[0], other)
        checkpoint.restore(3)
        assert state(3) == before[3]


def test_a_budget_refuses_or_evicts(ctx: lloyal.Context) -> None:
    feed(ctx, (0, 0, TOKENS[:100]), (1, 0, TOKENS[100:200]))
    first = ctx.checkpoint(0)
    ctx.checkpoints.budget = ctx.checkpoints.nbytes + 1000
    with pytest.raises(errors.OutOfDeviceMemory, match="budget"):
        ctx.checkpoint(1)
    ctx.checkpoints.evict = True
    with ctx.checkpoint(1):
        assert first.evicted


@pytest.mark.parametrize("ctx", ["nano", "no_fa"], indirect=True)
def test_a_full_device_refuses_or_evicts(ctx: lloyal.Context) -> None:
    feed(ctx, (0, 0, TOKENS[:100]), (1, 0, TOKENS[100:200]))
    first = ctx.checkpoint(0)
    held = ctx.checkpoints.nbytes
    for evict in (False, True):
        ctx.checkpoints.trim()
        ctx.checkpoints.evict = evict
        native.fault_arm(0)
        try:
            if not evict:
                with pytest.raises(errors.OutOfDeviceMemory, match="could not allocate"):
                    ctx.checkpoint(1)
                assert not first.evicted
                assert ctx.checkpoints.nbytes == held
                continue
            with ctx.checkpoint(1):
                assert native.fault_remaining() < 0
                assert first.evicted
        finally:
            native.fault_arm(-1)


def test_a_reserve_is_never_taken(ctx: lloyal.Context, place: str) -> None:
    feed(ctx, (0, 0, TOKENS))
    expected = ctx.state_seq_get_data_ext(0)
    assert ctx.checkpoints.reserve is None
    ctx.checkpoints.reserve = 1 << 60
    assert ctx.checkpoints.reserve == 1 << 60
    if is_device(place):
        with pytest.raises(errors.OutOfDeviceMemory, match="reserve"):
            ctx.checkpoint(0)
        assert ctx.checkpoints.nbytes == 0
    else:
        ctx.checkpoint(0).release()  # host memory is not the device's
    host = ctx.checkpoint(0, where="host")
    for reserve in (0, None):
        ctx.checkpoints.reserve = reserve
        with ctx.checkpoint(0):
            pass
    ctx.memory.seq_rm(0)
    host.restore(0)
    assert ctx.state_seq_get_data_ext(0) == expected
    for wrong in (-1, 1 << 63, "1"):
        with pytest.raises(errors.InvalidArgument, match="reserve"):
            ctx.checkpoints.reserve = wrong  # type: ignore[assignment]
    host.release()


def test_host_checkpoints_are_pinned_where_that_is_possible(ctx: lloyal.Context, place: str) -> None:
    feed(ctx, (0, 0, TOKENS))
    with ctx.checkpoint(0, where="host") as checkpoint:
        (name,) = checkpoint.buffers
    assert name == "CPU" if place != "gpu" else "Host" in name


def test_many_small_ones_are_counted_and_freed_one_by_one(ctx: lloyal.Context) -> None:
    taken, sizes = [], []
    for i in range(40):
        feed(ctx, (0, i, [TOKENS[i]]))
        before = ctx.checkpoints.nbytes
        taken.append(ctx.checkpoint(0))
        sizes.append(ctx.checkpoints.nbytes - before)
    assert min(sizes) > 0
    expected = ctx.state_seq_get_data_ext(0)
    last = taken.pop()
    for checkpoint in taken[::2] + taken[1::2]:
        checkpoint.release()
    assert ctx.checkpoints.nbytes >= last.nbytes
    ctx.memory.clear()
    last.restore(0)
    assert ctx.state_seq_get_data_ext(0) == expected
    last.release()
    assert ctx.checkpoints.nbytes == 0
    ctx.checkpoints.trim()
    assert ctx.checkpoints.idle_nbytes == 0
