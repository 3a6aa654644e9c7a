"""What a checkpoint promises besides the right logits: sharing, cost, refusal, release, serialization."""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import lloyal
from lloyal import errors
from lloyal.llama import checkpoint as native
from tests.decode import distance, feed
from tests.models import N_VOCAB, tiny

Make = Callable[..., lloyal.Context]
FULL = bool(os.environ.get("LLOYAL_TEST_FULL"))


@pytest.fixture(scope="module")
def llama() -> Iterator[lloyal.Model]:
    with lloyal.Model(tiny("llama")) as model:
        yield model


@pytest.fixture(scope="module")
def gemma3() -> Iterator[lloyal.Model]:
    with lloyal.Model(tiny("gemma3")) as model:
        yield model


@pytest.fixture(scope="module")
def lfm2() -> Iterator[lloyal.Model]:
    with lloyal.Model(tiny("lfm2")) as model:
        yield model


@pytest.fixture(autouse=True)
def disarm() -> Iterator[None]:
    yield
    native.fault_arm(-1)


# Part of the largest logit that another order of cells may change; test_parity shows that a wrong row exceeds it.
ORDER_NOISE = 2e-2


def same(got: np.ndarray, expected: np.ndarray) -> bool:
    return distance(got, expected) <= ORDER_NOISE * float(np.abs(expected).max())


def some(n: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(N_VOCAB) for _ in range(n)]


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


def test_content_not_cells_decides_what_is_shared(llama: lloyal.Model, new_context: Make) -> None:
    """Trim 32 tokens and decode 32 others: the cell table is identical, the content is not."""
    ctx = new_context(llama)
    feed(ctx, (0, 0, some(64, 1)))
    first = ctx.checkpoint()
    expected = feed(ctx, (0, 64, [5]))[0]
    ctx.memory.seq_rm(0, 32)
    feed(ctx, (0, 32, some(32, 2)))
    second = ctx.checkpoint()
    other = feed(ctx, (0, 64, [5]))[0]
    assert distance(expected, other) > 0.1
    first.restore()
    assert same(feed(ctx, (0, 64, [5]))[0], expected)
    second.restore()
    assert same(feed(ctx, (0, 64, [5]))[0], other)
    first.release()
    second.release()


def test_a_fork_shares_with_its_parent(llama: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(llama)
    feed(ctx, (0, 0, some(128)))
    ctx.memory.seq_cp(0, 1)
    feed(ctx, (1, 128, some(8, 1)))
    with ctx.checkpoint(0) as parent, ctx.checkpoint(1) as child:
        assert ctx.checkpoints.nbytes <= 1.02 * child.nbytes
        assert parent.nbytes + child.nbytes > 1.8 * ctx.checkpoints.nbytes


def test_restore_copies_only_missing_rows(llama: lloyal.Model, new_context: Make) -> None:
    """The cache grows by nothing when the rows are still there in another sequence."""
    ctx = new_context(llama, n_ctx=256, n_seq_max=4)
    feed(ctx, (0, 0, some(200)))
    with ctx.checkpoint() as checkpoint:
        # 200 more rows would not fit into 256 cells
        checkpoint.restore(1)
        checkpoint.restore(2)
        assert ctx.memory.provenance(1) == ctx.memory.provenance(0) == ctx.memory.provenance(2)


@pytest.mark.parametrize("where", ["device", "host"])
def test_restore_without_room_is_refused_first(llama: lloyal.Model, new_context: Make, where: str) -> None:
    ctx = new_context(llama, n_ctx=256, n_seq_max=4)
    feed(ctx, (0, 0, some(150, 1)))
    checkpoint = ctx.checkpoint(where=where)
    ctx.memory.seq_rm(0)
    feed(ctx, (0, 0, some(150, 2)), (1, 0, some(50, 3)))
    before = ctx.memory.provenance(1), ctx.memory.provenance(0)
    with pytest.raises(errors.CacheFull, match="free cells"):
        checkpoint.restore(1)
    assert (ctx.memory.provenance(1), ctx.memory.provenance(0)) == before
    feed(ctx, (1, 50, [1]))
    checkpoint.restore(0)
    assert ctx.memory.seq_pos_max(0) == 149
    checkpoint.release()


def test_an_empty_checkpoint_clears(llama: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(llama)
    with ctx.checkpoint(2) as empty:
        assert (empty.n_tokens, empty.nbytes, empty.pos_max) == (0, 0, -1)
        feed(ctx, (0, 0, some(9)))
        empty.restore(0)
        assert ctx.memory.seq_pos_max(0) == -1


@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2", "falcon-h1", "lfm2-swa", "qwen35"])
def test_partial_checkpoints_roll_back_or_refuse(name: str, new_context: Make) -> None:
    with lloyal.Model(tiny(name)) as model:
        ctx = new_context(model, n_ctx=512, n_ubatch=32)
        feed(ctx, (0, 0, some(40)))
        full = ctx.checkpoint()
        partial = ctx.checkpoint(partial=True)
        assert partial.nbytes <= full.nbytes
        expected = feed(ctx, (0, 40, [7, 8]))[0]
        feed(ctx, (0, 42, some(30, 1)))
        partial.restore()
        assert ctx.memory.seq_pos_max(0) == 39
        assert same(feed(ctx, (0, 40, [7, 8]))[0], expected)
        # the prefix travels with forks and restores
        full.restore(1)
        feed(ctx, (1, 40, some(5, 2)))
        partial.restore(1)
        assert same(feed(ctx, (1, 40, [7, 8]))[0], expected)
        # and is gone once other rows are in its place
        ctx.memory.seq_rm(0)
        feed(ctx, (0, 0, some(40, 3)))
        before = ctx.memory.provenance(0)
        with pytest.raises(errors.StaleCheckpoint, match="no longer holds"):
            partial.restore(0)
        assert ctx.memory.provenance(0) == before
        feed(ctx, (0, 40, [1]))
        full.release()
        partial.release()
        ctx.close()


@pytest.mark.parametrize("name", ["llama", "gemma3", "mamba2", "lfm2", "lfm2-swa"])
def test_cells_keep_the_state_without_bytes(name: str, new_context: Make) -> None:
    with lloyal.Model(tiny(name)) as model:
        ctx = new_context(model, n_ctx=512, n_ubatch=32, n_seq_max=4)
        feed(ctx, (0, 0, some(40)))
        with ctx.checkpoint(where="cells") as kept:
            assert kept.nbytes == 0
            assert kept.lease == 3
            expected = feed(ctx, (0, 40, [3]))[0]
            feed(ctx, (0, 41, some(60, 1)))
            kept.restore()
            assert same(feed(ctx, (0, 40, [3]))[0], expected)
            kept.restore(2)
            assert same(feed(ctx, (2, 40, [3]))[0], expected)
            batch = lloyal.Batch()
            batch.add(1, 40, kept.lease)
            with pytest.raises(errors.NoLease, match="checkpoint"):
                ctx.decode(batch)
            with pytest.raises(errors.NoLease, match="checkpoint"):
                ctx.memory.seq_rm(3)
            ctx.memory.clear()
            with pytest.raises(errors.StaleCheckpoint, match="cleared"):
                kept.restore()
        assert ctx.memory.seq_pos_max(3) == -1
        ctx.close()


def test_cells_are_refused_where_they_cannot_be(llama: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(llama, n_seq_max=2)
    feed(ctx, (0, 0, [1]), (1, 0, [2]))
    with pytest.raises(errors.NoLease, match="n_seq_max"):
        ctx.checkpoint(where="cells")
    split = new_context(llama, n_seq_max=2, kv_unified=False)
    feed(split, (0, 0, [1]))
    with pytest.raises(errors.Unsupported, match="kv_unified"):
        split.checkpoint(where="cells")


def test_auto_says_what_it_picked(llama: lloyal.Model, lfm2: lloyal.Model, new_context: Make) -> None:
    for model, where in ((llama, "cells"), (lfm2, "device")):
        ctx = new_context(model)
        feed(ctx, (0, 0, [1, 2]))
        with ctx.checkpoint(where="auto") as checkpoint:
            assert checkpoint.where == where
            assert len(checkpoint.reason) > 20


def test_into_another_context(llama: lloyal.Model, gemma3: lloyal.Model, new_context: Make) -> None:
    a = new_context(llama)
    b = new_context(llama, n_ctx=1024, n_seq_max=3)
    feed(a, (0, 0, some(50)))
    with a.checkpoint() as checkpoint:
        expected = feed(a, (0, 50, [9]))[0]
        feed(b, (0, 0, some(20, 4)))
        checkpoint.restore(1, ctx=b)
        assert same(feed(b, (1, 50, [9]))[0], expected)
        for other in (new_context(llama, type_k="q8_0"), new_context(gemma3), new_context(llama, flash_attn=False)):
            feed(other, (0, 0, [1]))
            with pytest.raises(errors.StateMismatch, match="laid out"):
                checkpoint.restore(ctx=other)
            assert other.memory.seq_pos_max(0) == 0


@pytest.mark.parametrize("name", ["llama", "gemma3", "mamba2", "lfm2", "qwen35"])
@pytest.mark.parametrize("partial", [False, True])
def test_bytes_round_trip(name: str, partial: bool, new_context: Make) -> None:
    with lloyal.Model(tiny(name)) as model:
        ctx = new_context(model, n_ubatch=32)
        feed(ctx, (0, 0, some(40)))
        with ctx.checkpoint(partial=partial) as checkpoint:
            data = checkpoint.to_bytes()
        expected = feed(ctx, (0, 40, [4]))[0]
        with lloyal.Checkpoint.from_bytes(ctx, data) as copy:
            assert (copy.where, copy.partial, copy.n_tokens) == ("host", partial, 40)
            copy.restore()
            assert same(feed(ctx, (0, 40, [4]))[0], expected)
            assert copy.to_bytes() == data
        if not partial:
            other = new_context(model, n_ubatch=32)
            with lloyal.Checkpoint.from_bytes(other, data) as copy:
                copy.restore(2)
                assert same(feed(other, (2, 40, [4]))[0], expected)
            other.close()
        ctx.close()


def test_bytes_of_another_model_are_refused(llama: lloyal.Model, gemma3: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(llama)
    feed(ctx, (0, 0, some(10)))
    with ctx.checkpoint() as checkpoint:
        data = checkpoint.to_bytes()
    with pytest.raises(errors.StateMismatch, match="architecture"):
        lloyal.Checkpoint.from_bytes(new_context(gemma3), data)
    with pytest.raises(errors.StateMismatch, match="type_k"):
        lloyal.Checkpoint.from_bytes(new_context(llama, type_k="q8_0"), data)
    with pytest.raises(errors.StateMismatch, match="flash_attn"):
        lloyal.Checkpoint.from_bytes(new_context(llama, flash_attn=False), data)


def test_damaged_bytes_are_never_accepted(lfm2: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(lfm2)
    feed(ctx, (0, 0, some(12)))
    with ctx.checkpoint() as checkpoint:
        data = checkpoint.to_bytes()
    rng = random.Random(1)
    for _ in range(200_000 if FULL else 2_000):
        wrong = bytearray(data)
        what = rng.randrange(3)
        if what == 0:
            wrong[rng.randrange(len(wrong))] ^= 1 << rng.randrange(8)
        elif what == 1:
            del wrong[rng.randrange(len(wrong)):]
        else:
            a, b = sorted(rng.randrange(len(wrong)) for _ in range(2))
            wrong[a:b] = wrong[a:b][::-1] or b"x"
            if wrong == data:
                continue
        with pytest.raises(errors.StateMismatch):
            lloyal.Checkpoint.from_bytes(ctx, wrong)
    assert len(ctx.checkpoints) == 0
    feed(ctx, (0, 12, [1]))


@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2"])
def test_every_failing_allocation_or_copy_leaves_all_as_promised(name: str, new_context: Make) -> None:
    with lloyal.Model(tiny(name)) as model:
        ctx = new_context(model, n_ubatch=32)
        feed(ctx, (0, 0, some(30, 1)))
        earlier = ctx.checkpoint()
        feed(ctx, (0, 30, some(10, 2)))
        n = 0
        while True:
            ctx.checkpoints.trim()
            native.fault_arm(n)
            try:
                later = ctx.checkpoint()
            except (errors.OutOfDeviceMemory, errors.DecodeFailed):
                n += 1
                continue
            finally:
                native.fault_arm(-1)
            break
        assert n > 2
        end = feed(ctx, (0, 40, [6]))[0]
        feed(ctx, (1, 0, some(20, 3)))
        untouched = ctx.memory.provenance(1)
        for checkpoint in (later, earlier):
            n = 0
            while True:
                native.fault_arm(n)
                try:
                    checkpoint.restore(1)
                except (errors.OutOfDeviceMemory, errors.DecodeFailed) as error:
                    assert "injected" in str(error)
                    assert ctx.memory.provenance(1) == untouched
                    n += 1
                    continue
                finally:
                    native.fault_arm(-1)
                break
            # rows that sequence 0 still holds are shared, not copied
            assert n > 0 or name == "llama"
            untouched = ctx.memory.provenance(1)
        later.restore(2)
        assert same(feed(ctx, (2, 40, [6]))[0], end)
        earlier.release()
        later.release()
        ctx.close()


def test_without_a_spare_sequence_a_failed_copy_empties_and_says_so(lfm2: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(lfm2, n_seq_max=1)
    feed(ctx, (0, 0, some(10)))
    with ctx.checkpoint() as checkpoint:
        ctx.memory.clear()
        feed(ctx, (0, 0, some(4)))
        native.fault_arm(0)
        with pytest.raises(errors.DecodeFailed, match="is now empty"):
            checkpoint.restore()
        native.fault_arm(-1)
        assert ctx.memory.seq_pos_max(0) == -1
        checkpoint.restore()
        assert ctx.memory.seq_pos_max(0) == 9


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
        assert [one.evicted for one in taken] == [True, True]
        assert ctx.checkpoints.nbytes == checkpoint.nbytes
        ctx.memory.seq_rm(0)
        checkpoint.restore()
        assert same(feed(ctx, (0, 160, [1, 2]))[0], expected)
    for one in taken:
        one.release()


def test_taking_while_another_thread_releases_what_is_shared(llama: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(llama, n_ctx=2048)
    feed(ctx, (0, 0, some(500)))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for i in range(1000 if FULL else 25):
            earlier = ctx.checkpoint()
            feed(ctx, (0, 500, some(300, i)))
            thread = threading.Thread(target=earlier.release)
            thread.start()
            with ctx.checkpoint() as later:
                thread.join()
                assert later.n_tokens == 800
            ctx.memory.seq_rm(0, 500)
    finally:
        sys.setswitchinterval(interval)
    assert ctx.checkpoints.nbytes == 0


def test_release_and_lifetimes(llama: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(llama)
    feed(ctx, (0, 0, some(10)))
    checkpoint = ctx.checkpoint()
    checkpoint.release()
    checkpoint.release()
    assert checkpoint.released
    for use in (checkpoint.restore, checkpoint.to_bytes, lambda: checkpoint.nbytes):
        with pytest.raises(errors.Closed):
            use()
    kept = ctx.checkpoint()
    ctx.close()
    with pytest.raises(errors.Closed):
        kept.restore()
    kept.release()
    with pytest.raises(TypeError, match=r"Context\.checkpoint"):
        lloyal.Checkpoint()


def test_released_from_other_threads_and_by_collection(llama: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(llama, n_seq_max=4)
    feed(ctx, (0, 0, some(10)))
    kept = [ctx.checkpoint(where="cells"), ctx.checkpoint()]
    threads = [threading.Thread(target=ck.release) for ck in kept]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lloyal.kv.Tenancy(ctx).available == 3
    lost = ctx.checkpoint()
    assert ctx.checkpoints.nbytes > 0
    del lost
    gc.collect()
    assert ctx.checkpoints.nbytes == 0


def test_logits_are_gone_after_a_restore(llama: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(llama)
    feed(ctx, (0, 0, some(10)))
    view = ctx.logits()
    with ctx.checkpoint() as checkpoint:
        assert view[0] == ctx.logits()[0]
        checkpoint.restore()
    with pytest.raises(errors.NoLogits):
        view.argmax()
    with pytest.raises(errors.NoLogits):
        ctx.logits()


def test_compaction_keeps_everything(llama: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(llama, n_ctx=512)
    rng = random.Random(3)
    ends = {0: 0, 1: 0, 2: 0}
    for _ in range(60):
        seq = rng.choice(list(ends))
        feed(ctx, (seq, ends[seq], some(rng.randint(1, 6), rng.random())))
        ends[seq] = ctx.memory.seq_pos_max(seq) + 1
        if rng.random() < 0.3:
            ctx.memory.seq_rm(seq, max(1, ends[seq] - 4))
            ends[seq] = ctx.memory.seq_pos_max(seq) + 1
    rows = [ctx.memory.provenance(seq) for seq in ends]
    ctx.memory.seq_cp(0, 5)
    expected = feed(ctx, (5, ends[0], [2]))[0]
    ctx.memory.seq_rm(5)
    ctx.compact()
    assert [ctx.memory.provenance(seq) for seq in ends] == rows
    assert same(feed(ctx, (0, ends[0], [2]))[0], expected)
    assert ctx.checkpoints.nbytes == 0


@pytest.mark.parametrize("bad", ["gpu", "", "DEVICE"])
def test_unknown_places_are_named(llama: lloyal.Model, new_context: Make, bad: str) -> None:
    ctx = new_context(llama)
    with pytest.raises(errors.InvalidArgument, match=repr(bad)):
        ctx.checkpoint(where=bad)
    with pytest.raises(errors.InvalidArgument, match="seq_id=99"):
        ctx.checkpoint(99)


def test_saving_in_a_loop_does_not_grow(lfm2: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(lfm2)
    feed(ctx, (0, 0, some(60)))
    for _ in range(100_000 if FULL else 300):
        with ctx.checkpoint() as checkpoint:
            checkpoint.restore()
    assert ctx.checkpoints.nbytes == 0
    assert ctx.checkpoints.idle_nbytes < 1 << 20
    ctx.checkpoints.trim()
    assert ctx.checkpoints.idle_nbytes == 0
    assert np.isfinite(feed(ctx, (0, 60, [1]))[0]).all()
