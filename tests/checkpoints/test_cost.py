"""What checkpoints cost: shared rows, bookkeeping, budgets, and the place that "auto" picks for them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable

import pytest

import lloyal
from lloyal import errors
from lloyal.bench import timed
from lloyal.native import checkpoint as native
from tests.decode import feed, feed_in_batches, same, some
from tests.models import tiny

Make = Callable[..., lloyal.Context]


def test_checkpoints_along_a_sequence_share_rows(llama: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(llama, n_ctx=1024)
    taken = []
    for i in range(8):
        feed(ctx, (0, 32 * i, some(32, i)))
        taken.append(ctx.checkpoint())
    last = taken[-1]
    assert [ck.n_tokens for ck in taken] == [32 * (i + 1) for i in range(8)]
    assert ctx.checkpoints.nbytes <= 1.02 * last.nbytes
    # freeing any of them frees only what nobody else holds
    for ck in taken[:-1]:
        ck.release()
    assert ctx.checkpoints.nbytes <= 1.02 * last.nbytes
    expected = feed(ctx, (0, 256, [1, 2]))[0]
    last.restore(3)
    assert same(feed(ctx, (3, 256, [1, 2]))[0], expected)
    last.release()
    assert ctx.checkpoints.nbytes == 0


@pytest.mark.parametrize("by_budget", [False, True])
def test_who_needs_the_beginning_keeps_just_that(llama: lloyal.Model, new_context: Make, by_budget: bool) -> None:
    """A conversation that shares its system prompt with a long one does not keep the long one's memory."""
    ctx = new_context(llama, n_ctx=8192, n_batch=2048)
    feed_in_batches(ctx, 0, some(6000), 2000)
    with ctx.checkpoint(0) as long:
        row = long.nbytes // 6000
        ctx.memory.seq_cp(0, 1, 0, 700)
        feed(ctx, (1, 700, some(10, 1)))
        expected = feed(ctx, (1, 710, [1]))[0]
        ctx.memory.seq_rm(1, 710)
        short = ctx.checkpoint(1)
        assert ctx.checkpoints.nbytes <= 6010 * row * 1.01
        child = ctx.checkpoint(1)  # another list over the same chunks
    assert short.n_tokens == 710
    assert ctx.checkpoints.nbytes > 6000 * row
    if by_budget:
        ctx.checkpoints.budget = 1500 * row
        feed(ctx, (2, 0, some(500, 2)))
        with ctx.checkpoint(2) as other:
            assert ctx.checkpoints.nbytes <= (710 + 500) * row * 1.1
            assert other.n_tokens == 500
    else:
        ctx.checkpoints.trim()
    assert ctx.checkpoints.nbytes <= 710 * row * 1.01
    ctx.memory.seq_rm(-1)
    child.restore(2)
    assert same(feed(ctx, (2, 710, [1]))[0], expected)
    child.release()
    ctx.memory.seq_rm(-1)
    short.restore(0)
    assert same(feed(ctx, (0, 710, [1]))[0], expected)
    short.release()


def test_bookkeeping_of_a_checkpoint_per_token_does_not_grow(llama: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(llama, n_ctx=1024)
    taken = []
    sizes = []
    for i in range(600):
        feed(ctx, (0, i, [i % 50]))
        taken.append(ctx.checkpoint())
        sizes.append(ctx.checkpoints.meta_nbytes)
    assert sizes[-1] <= 1.05 * (600 * sizes[99] / 100)
    assert taken[-1].n_segments == 600
    expected = feed(ctx, (0, 600, [1]))[0]
    for checkpoint in taken[:-1]:
        checkpoint.release()
    assert ctx.checkpoints.meta_nbytes <= sizes[-1]
    ctx.memory.seq_rm(-1)
    taken[-1].restore()
    assert same(feed(ctx, (0, 600, [1]))[0], expected)
    taken[-1].release()
    assert ctx.checkpoints.meta_nbytes == 0


def test_bookkeeping_survives_trims(llama: lloyal.Model, new_context: Make) -> None:
    """Decode eight, keep, take three back: the lists of segments are shared all the same; runs of ids are not."""
    ctx = new_context(llama, n_ctx=4096)
    taken = []
    end = 0
    for i in range(400):
        feed(ctx, (0, end, some(8, i)))
        end += 8
        taken.append(ctx.checkpoint())
        end -= 3
        ctx.memory.seq_rm(0, end)
    runs = sum(len(checkpoint._rows_native()) for checkpoint in taken)
    assert ctx.checkpoints.meta_nbytes <= 400 * 2500 + 2 * 24 * runs
    ctx.checkpoints.release_all()


def test_a_full_budget_does_not_refuse_what_needs_nothing(llama: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(llama, n_ctx=4096, n_batch=2048)
    feed(ctx, (0, 0, some(2000)))
    ctx.checkpoint(0).release()  # the pool keeps a buffer a little larger than what comes next
    ctx.memory.seq_rm(0, 1900)
    row = 1024
    ctx.checkpoints.budget = 1900 * row + 2000
    with ctx.checkpoint(0), ctx.checkpoint(0):
        assert ctx.checkpoints.nbytes <= 1900 * row + 2000


def test_eviction_goes_on_where_packing_has_no_room(llama: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(llama, n_ctx=4096, n_batch=2048)
    feed(ctx, (0, 0, some(2000)))
    with ctx.checkpoint(0):
        ctx.memory.seq_cp(0, 1, 0, 200)
        short = ctx.checkpoint(1)  # all that keeps the long one's rows when that is released
    feed(ctx, (2, 0, some(100, 2)))
    ctx.checkpoints.budget, ctx.checkpoints.evict = ctx.checkpoints.nbytes, True
    native.fault_arm(0)
    with ctx.checkpoint(2):
        assert short.evicted
    assert native.fault_remaining() < 0
    ctx.checkpoints.release_all()


def test_saves_at_a_full_budget_take_linear_time(llama: lloyal.Model, new_context: Make) -> None:
    def seconds(n: int) -> float:
        ctx = new_context(llama, n_ctx=4096)
        for i in range(n):
            feed(ctx, (0, i, [i % 50]))
            ctx.checkpoint().pinned = True
            kept.extend(ctx.checkpoints)
        feed(ctx, (1, 0, some(64)), (2, 0, some(64, 1)))
        kept.append(ctx.checkpoint(1))
        ctx.checkpoints.budget, ctx.checkpoints.evict = ctx.checkpoints.nbytes, True
        best = min(timed(lambda i=i: ctx.checkpoint(1 + i % 2).release()) for i in range(10))
        ctx.checkpoints.release_all()
        return best

    kept: list[lloyal.Checkpoint] = []
    assert seconds(600) < 10 * seconds(150) + 1e-2  # a quadratic one takes 16 times as long


def test_counting_while_another_thread_takes(llama: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(llama)
    feed(ctx, (0, 0, some(20)))
    done = threading.Event()

    def take() -> None:
        while not done.is_set():
            ctx.checkpoint().release()

    thread = threading.Thread(target=take)
    thread.start()
    try:
        for _ in range(2000):
            assert 0 <= len(ctx.checkpoints) <= 1
    finally:
        done.set()
        thread.join()


def test_thousands_of_shared_lists_are_freed_on_a_small_stack() -> None:
    code = f"""
        import threading, lloyal
        with lloyal.Model({str(tiny("llama"))!r}) as model, lloyal.Context(model, n_ctx=4096) as ctx:
            batch = lloyal.Batch()
            taken = []
            for i in range(3000):
                batch.clear()
                batch.add(1, i, 0)
                ctx.decode(batch)
                taken.append(ctx.checkpoint())
            last = taken.pop()
            for one in taken:
                one.release()
            threading.stack_size(256 << 10)
            thread = threading.Thread(target=last.release)
            thread.start()
            thread.join()
            assert ctx.checkpoints.nbytes == 0
    """
    done = subprocess.run([sys.executable, "-P", "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_budget_refuses_or_evicts(llama: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(llama, n_ctx=1024)
    feed(ctx, (0, 0, some(100, 1)), (1, 0, some(100, 2)))
    first = ctx.checkpoint(0)
    ctx.checkpoints.budget = int(first.nbytes * 1.5)
    with pytest.raises(errors.OutOfDeviceMemory, match="budget"):
        ctx.checkpoint(1)
    ctx.checkpoints.evict = True
    first.pinned = True
    with pytest.raises(errors.OutOfDeviceMemory, match="evict"):
        ctx.checkpoint(1)
    first.pinned = False
    second = ctx.checkpoint(1)
    assert first.evicted
    assert list(ctx.checkpoints) == [second]
    with pytest.raises(errors.StaleCheckpoint, match="evicted"):
        first.restore()
    first.release()
    second.release()


def test_evicting_what_the_new_one_shares_keeps_the_rows(llama: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(llama, n_ctx=1024)
    feed(ctx, (0, 0, some(100, 1)), (1, 0, some(100, 2)))
    taken = [ctx.checkpoint(0), ctx.checkpoint(1)]
    feed(ctx, (0, 100, some(60, 3)))
    expected = feed(ctx, (0, 160, [1, 2]))[0]
    ctx.memory.seq_rm(0, 160)
    ctx.checkpoints.budget, ctx.checkpoints.evict = ctx.checkpoints.nbytes + 1000, True
    with ctx.checkpoint(0) as checkpoint:
        assert [one.evicted for one in taken] == [False, True]  # the first's rows are needed anyway
        assert ctx.checkpoints.nbytes == checkpoint.nbytes
        ctx.memory.seq_rm(0)
        checkpoint.restore()
        assert same(feed(ctx, (0, 160, [1, 2]))[0], expected)
    for one in taken:
        one.release()


def test_what_cannot_be_made_room_for_evicts_nothing(llama: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(llama, n_ctx=1024)
    feed(ctx, (0, 0, some(50, 1)), (1, 0, some(100, 2)), (2, 0, some(200, 3)))
    pinned, free = ctx.checkpoint(0), ctx.checkpoint(1)
    pinned.pinned = True
    ctx.checkpoints.budget, ctx.checkpoints.evict = ctx.checkpoints.nbytes, True
    with pytest.raises(errors.OutOfDeviceMemory, match="may be evicted"):
        ctx.checkpoint(2)
    assert not free.evicted
    free.restore(3)
    ctx.checkpoints.release_all()


def test_only_what_frees_bytes_is_evicted(llama: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(llama, n_ctx=1024)
    feed(ctx, (0, 0, some(200, 1)), (1, 0, some(200, 2)))
    shared = [ctx.checkpoint(0), ctx.checkpoint(0)]
    shared[1].pinned = True
    other = ctx.checkpoint(1)
    feed(ctx, (2, 0, some(150, 3)))
    ctx.checkpoints.budget, ctx.checkpoints.evict = ctx.checkpoints.nbytes, True
    with ctx.checkpoint(2):
        assert [one.evicted for one in (*shared, other)] == [False, False, True]
    ctx.checkpoints.release_all()


def test_those_that_share_go_together(llama: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(llama, n_ctx=1024)
    feed(ctx, (0, 0, some(200, 1)), (1, 0, some(200, 2)))
    shared = [ctx.checkpoint(0) for _ in range(3)]
    other = ctx.checkpoint(1)
    feed(ctx, (2, 0, some(150, 3)))
    ctx.checkpoints.budget, ctx.checkpoints.evict = ctx.checkpoints.nbytes, True
    with ctx.checkpoint(2):
        assert [one.evicted for one in (*shared, other)] == [True, True, True, False]
    ctx.checkpoints.release_all()


@pytest.mark.parametrize("name", ["llama", "lfm2"])
def test_a_save_in_a_loop_reuses_its_buffers(name: str, new_context: Make) -> None:
    with lloyal.Model(tiny(name)) as model:
        ctx = new_context(model, n_ctx=4096, n_batch=2048)
        feed_in_batches(ctx, 0, some(2000), 1000)
        with ctx.checkpoint() as checkpoint:
            size = ctx.checkpoints.nbytes
            assert size >= checkpoint.nbytes
        for _ in range(3):
            assert 0.9 * size <= ctx.checkpoints.idle_nbytes <= 1.1 * size
            ctx.checkpoint().release()
        ctx.checkpoints.trim()
        assert ctx.checkpoints.idle_nbytes == 0


def test_auto_says_what_it_picked(llama: lloyal.Model, lfm2: lloyal.Model, new_context: Make) -> None:
    def picked(ctx: lloyal.Context, **options: bool) -> tuple[str, str]:
        with ctx.checkpoint(where="auto", **options) as checkpoint:
            return checkpoint.where, checkpoint.reason

    ctx = new_context(lfm2)
    feed(ctx, (0, 0, [1, 2]))
    assert picked(ctx)[0] == "device"
    with lloyal.Model(tiny("lfm2-swa")) as model:  # every attention layer has a window
        ctx = new_context(model)
        feed(ctx, (0, 0, [1, 2]))
        assert picked(ctx)[0] == "device"

    ctx = new_context(llama, n_ctx=1024, n_seq_max=4)
    feed(ctx, (0, 0, some(500)))
    assert picked(ctx) == ("cells", "sharing 500 cells moves no bytes, a copy would move 512000")
    assert picked(ctx, partial=True)[0] == "device"
    feed(ctx, (0, 500, some(300)))
    where, reason = picked(ctx)
    assert (where, reason[:27]) == ("device", "224 of 1024 cells are free,")
    ctx.memory.seq_rm(0, 500)
    with ctx.checkpoint(where="cells"):
        assert picked(ctx) == ("device", "2 sequence ids are free, and restores prepare in one of them")
    with ctx.checkpoint(), ctx.checkpoint(where="cells"):
        for _ in range(100):
            ctx.checkpoint().release()  # that copy nothing and say nothing about speed
    assert 0 < native.estimate(ctx, 0, False)["device_seconds"] < 1
    with ctx.checkpoint():
        where, reason = picked(ctx)  # nothing new to copy
        assert where == "device"
        assert "copying 0 new bytes" in reason
