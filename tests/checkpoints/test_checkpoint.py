"""What a checkpoint promises besides the right logits: sharing, cost, refusal, release, serialization."""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import lloyal
from lloyal import errors
from lloyal.checkpoint import format as checkpoint_format
from tests.checkpoints.raw_state import parse
from tests.decode import distance, feed, same, some
from tests.models import KINDS, N_VOCAB, WINDOW, tiny

Make = Callable[..., lloyal.Context]
STATM = Path("/proc/self/statm")
FULL = bool(os.environ.get("LLOYAL_TEST_FULL"))


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


def test_into_another_context(llama: lloyal.Model, gemma3: lloyal.Model, new_context: Make) -> None:
    a = new_context(llama)
    b = new_context(llama, n_ctx=1024, n_seq_max=3)
    feed(a, (0, 0, some(50)))
    with a.checkpoint() as checkpoint:
        expected = feed(a, (0, 50, [9]))[0]
        feed(b, (0, 0, some(20, 4)))
        checkpoint.restore(1, ctx=b)
        assert same(feed(b, (1, 50, [9]))[0], expected)
        for model, options, message in (
            (llama, {"type_k": "q8_0"}, "laid out"),
            (llama, {"flash_attn": not a.flash_attn}, "laid out"),
            (gemma3, {}, "another fingerprint: architecture"),
        ):
            other = new_context(model, **options)
            feed(other, (0, 0, [1]))
            with pytest.raises(errors.StateMismatch, match=message):
                checkpoint.restore(ctx=other)
            assert other.memory.seq_pos_max(0) == 0
        # the same shape, other weights; and the same file loaded again
        with lloyal.Model(tiny("llama", seed=1)) as stranger, lloyal.Model(tiny("llama")) as again:
            with pytest.raises(errors.StateMismatch, match="another fingerprint: tensors"):
                checkpoint.restore(ctx=new_context(stranger))
            same_file = new_context(again)
            checkpoint.restore(ctx=same_file)
            assert same(feed(same_file, (0, 50, [9]))[0], expected)


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


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_rows_with_a_hole_are_shared_up_to_any_row(name: str, new_context: Make) -> None:
    with lloyal.Model(tiny(name)) as model:
        ctx = new_context(model, n_ubatch=32)
        feed(ctx, (0, 0, some(40)))
        ctx.memory.seq_rm(0, 5, 12)
        rows = parse(ctx.state_seq_get_data_ext(0), KINDS[name]).encode()
        with ctx.checkpoint() as taken, lloyal.Checkpoint.from_bytes(ctx, taken.to_bytes()) as copied:
            for checkpoint in (taken, copied):
                for end in (2, 5, 13, 31):
                    checkpoint.restore(1)
                    ctx.memory.seq_rm(0)
                    ctx.memory.seq_cp(1, 0)
                    ctx.memory.seq_rm(1)
                    if ctx.memory.can_rollback(0, 40 - end) == "trim":
                        ctx.memory.seq_rm(0, end)
                        feed(ctx, (0, end, some(3, end)))
                    checkpoint.restore(0)
                    assert parse(ctx.state_seq_get_data_ext(0), KINDS[name]).encode() == rows
        ctx.close()


def test_a_window_that_lost_what_no_token_needs_is_kept_in_parts(gemma3: lloyal.Model, new_context: Make) -> None:
    """The cell that only the last token attends to is free for others: without it the state is as good."""
    ctx = new_context(gemma3, n_ubatch=32)
    feed(ctx, (0, 0, some(40)))
    with ctx.checkpoint() as before, ctx.checkpoint(where="cells"), ctx.checkpoint(where="host") as after:
        state = parse(ctx.state_seq_get_data_ext(0), KINDS["gemma3"]).without_stale(WINDOW).encode()
        assert len(before.to_bytes()) > len(after.to_bytes())
        assert after.n_segments > 0
        with lloyal.Checkpoint.from_bytes(ctx, after.to_bytes()) as copied:
            ctx.memory.seq_rm(0)
            copied.restore(1)
        assert parse(ctx.state_seq_get_data_ext(1), KINDS["gemma3"]).encode() == state


def test_tokens_travel_with_a_checkpoint(llama: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(llama)
    tokens = some(20)
    feed(ctx, (0, 0, tokens))
    with ctx.checkpoint() as checkpoint:
        assert checkpoint.tokens is None
        checkpoint.tokens = np.array(tokens)
        assert lloyal.Checkpoint.from_bytes(ctx, checkpoint.to_bytes()).tokens == tuple(tokens)
        assert checkpoint.to_host().tokens == tuple(tokens)
        for bad in (tokens[1:], [*tokens[1:], N_VOCAB], [*tokens[1:], -1], ["a"] * 20, 5):
            with pytest.raises(errors.InvalidArgument, match=r"token"):
                checkpoint.tokens = bad
        assert checkpoint.tokens == tuple(tokens)


@pytest.mark.parametrize("where", ["device", "cells", "host"])
@pytest.mark.parametrize("name", KINDS)
def test_to_host_is_the_same_state(name: str, where: str, new_context: Make) -> None:
    with lloyal.Model(tiny(name)) as model:
        ctx = new_context(model, n_seq_max=4)
        feed(ctx, (0, 0, some(80)))
        with ctx.checkpoint(where=where) as checkpoint:
            expected = feed(ctx, (0, 80, some(5)))[0]
            with checkpoint.to_host() as first:
                held = ctx.checkpoints.nbytes
                with first.to_host(), checkpoint.to_host() as second:
                    state = second.nbytes - (second.nbytes if name == "mamba2" else 0)
                    assert ctx.checkpoints.nbytes - held <= held  # rows are shared, recurrent states are not
                    assert state == 0 or second.nbytes == first.nbytes
                checkpoint.release()
                assert (first.where, first.seq_id, first.n_tokens) == ("host", 0, 80)
                first.restore(0)
                assert same(feed(ctx, (0, 80, some(5)))[0], expected)


def test_cells_that_are_gone_cannot_be_copied(llama: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(llama)
    feed(ctx, (0, 0, some(20)))
    with ctx.checkpoint(where="cells") as checkpoint:
        ctx.memory.clear()
        for call in (checkpoint.to_host, checkpoint.to_bytes, checkpoint.restore):
            with pytest.raises(errors.StaleCheckpoint, match="cleared"):
                call()


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
        lloyal.Checkpoint.from_bytes(new_context(llama, flash_attn=not ctx.flash_attn), data)


def unsigned(data: bytes) -> bytes:
    """As another process would have written it."""
    header, payload = checkpoint_format.decode(memoryview(data))
    return checkpoint_format.encode(header, bytes(payload))


@pytest.mark.parametrize("n_seq_max", [1, 4])
def test_rows_that_share_a_position_are_kept_apart(n_seq_max: int, new_context: Make) -> None:
    """As the tokens of an image have with M-RoPE."""

    def rows(seq_id: int) -> bytes:
        return parse(ctx.state_seq_get_data_ext(seq_id), "hybrid", mrope=True).encode()

    with lloyal.Model(tiny("qwen35")) as model:
        ctx = new_context(model, n_seq_max=n_seq_max)
        batch = lloyal.Batch()
        for token, pos in enumerate((0, 1, 2, 2, 2, 2, 4)):
            batch.add(token, pos, 0)
        ctx.decode(batch)
        expected = rows(0)
        for partial in (False, True):
            with ctx.checkpoint(partial=partial) as checkpoint:
                feed(ctx, (0, 5, [9]))
                for dest in range(n_seq_max):
                    checkpoint.restore(dest)
                    assert rows(dest) == expected
                data = checkpoint.to_bytes()
                for known in (False, True):
                    with lloyal.Checkpoint.from_bytes(ctx, data if known else unsigned(data)) as loaded:
                        if not partial:
                            loaded.restore(0)
                            assert rows(0) == expected
        with ctx.checkpoint() as first:  # and share what they have in common
            feed(ctx, (0, 5, [9]))
            with ctx.checkpoint() as second:
                assert ctx.checkpoints.nbytes < sum(first.buffers.values()) + sum(second.buffers.values())
        ctx.close()


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


def test_reading_while_another_thread_evicts(llama: lloyal.Model, new_context: Make) -> None:
    ctx, other = new_context(llama), new_context(llama)
    ctx.checkpoints.budget, ctx.checkpoints.evict = 700 << 10, True
    made: list[lloyal.Checkpoint] = []
    unexpected: list[Exception] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            for checkpoint in made[-4:]:
                try:
                    assert checkpoint.nbytes in (0, 300 << 10)
                    assert sum(checkpoint.buffers.values()) in (0, 300 << 10)
                    checkpoint.to_bytes()
                    checkpoint.restore(1, ctx=other)
                except (errors.StaleCheckpoint, errors.Busy):
                    continue
                except Exception as error:
                    unexpected.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(1000 if FULL else 40):
        ctx.memory.seq_rm(0)
        feed(ctx, (0, 0, some(300, i)))
        try:
            made.append(ctx.checkpoint(0))
        except errors.OutOfDeviceMemory:  # the rest is being read
            continue
    done.set()
    reader.join()
    assert not unexpected
    assert any(checkpoint.evicted for checkpoint in made)
    ctx.checkpoints.release_all()


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
    cells = ctx.checkpoint(where="cells")
    feed(ctx, (0, 10, [3]))
    view = ctx.logits()
    thread = threading.Thread(target=cells.release)
    thread.start()
    thread.join()
    assert view.argmax() == int(np.argmax(ctx.logits(copy=True)))  # giving cells back leaves the outputs alone
    lost = ctx.checkpoint()
    assert ctx.checkpoints.nbytes > 0
    del lost
    gc.collect()
    assert ctx.checkpoints.nbytes == 0


def test_a_release_elsewhere_never_makes_its_user_wait_for_busy(llama: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(llama, n_ctx=1024, n_seq_max=64)
    feed(ctx, (0, 0, some(400)))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(200 if FULL else 10):
            taken = [ctx.checkpoint(where="cells") for _ in range(60)]

            def release(taken: list[lloyal.Checkpoint] = taken) -> None:
                for one in taken:
                    one.release()

            thread = threading.Thread(target=release)
            thread.start()
            while thread.is_alive():
                assert ctx.memory.seq_pos_max(0) == 399
                feed(ctx, (0, 400, [1]))
                ctx.logits().argmax()
                ctx.memory.seq_rm(0, 400)
            thread.join()
            assert lloyal.kv.Tenancy(ctx).available == 63
    finally:
        sys.setswitchinterval(interval)


def test_logits_are_gone_after_a_restore(llama: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(llama)
    feed(ctx, (0, 0, some(10)))
    view = ctx.logits()
    with ctx.checkpoint() as checkpoint:
        assert view[0] == ctx.logits()[0]
        with pytest.raises(errors.InvalidArgument):
            checkpoint.restore(99)
        assert view[0] == ctx.logits()[0]  # what is refused changes nothing
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


@pytest.mark.skipif(not STATM.exists(), reason="there is no /proc")
@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2"])
def test_cycles_leave_nothing_behind(name: str, new_context: Make) -> None:
    """Saves, restores and releases of every kind: memory stays flat, and every count goes back to zero."""
    n, allowed = (100_000, 2 << 20) if FULL else (1000, 2 << 20)
    rng = random.Random(name)
    with lloyal.Model(tiny(name)) as model:
        ctx = new_context(model, n_ubatch=32, n_seq_max=6)
        live = lloyal.live_handles()
        feed(ctx, (0, 0, some(40, 1)), (1, 0, some(30, 2)))
        base = [ctx.checkpoint(0), ctx.checkpoint(1)]

        def cycle(i: int) -> None:
            seq = rng.randrange(2)
            if i % 20 == 0:
                feed(ctx, (seq, ctx.memory.seq_pos_max(seq) + 1, some(5, i)))
            where = rng.choice(("device", "device", "host", "cells"))
            checkpoint = ctx.checkpoint(seq, where=where, partial=i % 5 == 0)
            if i % 100 == 0:
                data = checkpoint.to_bytes()
                lloyal.Checkpoint.from_bytes(ctx, data).restore(seq)
            checkpoint.restore(seq if checkpoint.partial else rng.randrange(3))
            checkpoint.release()
            if i % 20 == 19:
                for one in base:
                    one.restore()

        def resident() -> int:
            gc.collect()
            return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        for i in range(500):  # pools, arenas and the log fill up once
            cycle(i)
        before = resident()
        for i in range(n):
            cycle(i)
        grown = resident() - before
        print(f"{name}: {n} cycles, {grown / 1024:.0f} KiB more")
        assert grown < allowed
        assert len(ctx.checkpoints) == 2
        assert ctx.checkpoints.idle_nbytes < 1 << 20
        for one in base:
            one.release()
        assert ctx.checkpoints.nbytes == 0
        assert lloyal.kv.Tenancy(ctx).available == 3
        assert lloyal.live_handles() == live
        ctx.checkpoints.trim()
        assert ctx.checkpoints.idle_nbytes == 0
        ctx.close()
