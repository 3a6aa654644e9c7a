"""What a checkpoint or a compaction refuses, and that nothing has changed then."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lloyal
from lloyal import errors
from lloyal.native import checkpoint as native
from tests import models
from tests.checkpoints.raw_state import parse
from tests.decode import feed, same, some
from tests.models import tiny

Make = Callable[..., lloyal.Context]


@pytest.mark.parametrize("evict", [False, True])
def test_compaction_under_a_budget_loses_nothing(llama: lloyal.Model, new_context: Make, evict: bool) -> None:
    ctx = new_context(llama, n_ctx=1024)
    feed(ctx, (0, 0, some(100, 1)), (1, 0, some(100, 2)), (2, 0, some(100, 3)))
    before = [ctx.state_seq_get_data_ext(seq) for seq in range(3)]
    with ctx.checkpoint(0) as one:
        ctx.checkpoints.budget = int(one.nbytes * 1.5)
    ctx.checkpoints.evict = evict
    with pytest.raises(errors.OutOfDeviceMemory, match="budget"):
        ctx.compact()
    assert [ctx.state_seq_get_data_ext(seq) for seq in range(3)] == before
    ctx.checkpoints.budget = None
    ctx.compact()
    assert [ctx.memory.seq_pos_max(seq) for seq in range(3)] == [99, 99, 99]


def test_a_partial_one_needs_exactly_its_rows(llama: lloyal.Model, gemma3: lloyal.Model, new_context: Make) -> None:
    """A destination that has rows where the checkpoint has a hole would go on attending to them."""
    for model in (llama, gemma3):
        ctx = new_context(model)
        feed(ctx, (0, 0, some(40)))
        ctx.memory.seq_cp(0, 1)
        ctx.memory.seq_rm(1, 25, 32)
        before = ctx.state_seq_get_data_ext(0)
        with ctx.checkpoint(1, partial=True) as checkpoint:
            with pytest.raises(errors.StaleCheckpoint, match="same rows"):
                checkpoint.restore(0)
            assert ctx.state_seq_get_data_ext(0) == before
            checkpoint.restore(1)


@pytest.mark.parametrize(
    "options",
    [{"rope_freq_base": 500_000.0}, {"rope_freq_scale": 0.25}, {"rope_scaling": "yarn", "rope_freq_scale": 0.5}],
)
def test_keys_rotated_otherwise_do_not_fit(llama: lloyal.Model, new_context: Make, options: dict[str, Any]) -> None:
    ctx, other = new_context(llama), new_context(llama, **options)
    feed(ctx, (0, 0, some(40)))
    with ctx.checkpoint(0) as checkpoint:
        with pytest.raises(errors.StateMismatch, match="rope"):
            checkpoint.restore(0, ctx=other)
        with pytest.raises(errors.StateMismatch, match="rope is"):
            lloyal.Checkpoint.from_bytes(other, checkpoint.to_bytes())


def test_factors_for_longer_contexts_do_not_fit(new_context: Make, tmp_path: Path) -> None:
    """Models with two sets of rope factors rotate their keys by the one that suits n_ctx."""
    recipe = models.llama(0)
    recipe.keys |= {"rope.scaling.type": "longrope", "rope.scaling.original_context_length": 512}
    for name, factor in (("long", 4.0), ("short", 1.0)):
        recipe.tensors[f"rope_factors_{name}.weight"] = np.full(models.HEAD // 2, factor)
    recipe.write(tmp_path / "long.gguf")
    with lloyal.Model(tmp_path / "long.gguf") as model:
        ctx, same_side, longer = (new_context(model, n_ctx=n) for n in (512, 256, 1024))
        feed(ctx, (0, 0, some(40)))
        with ctx.checkpoint(0) as checkpoint:
            checkpoint.restore(0, ctx=same_side)
            with pytest.raises(errors.StateMismatch, match="n_ctx"):
                checkpoint.restore(0, ctx=longer)
            with pytest.raises(errors.StateMismatch, match="rope is"):
                lloyal.Checkpoint.from_bytes(longer, checkpoint.to_bytes())


def test_rows_fit_whatever_the_number_of_streams(llama: lloyal.Model, new_context: Make) -> None:
    ctx, other = (new_context(llama, n_seq_max=n, kv_unified=False) for n in (2, 4))
    feed(ctx, (0, 0, some(20)))
    feed(other, (0, 0, some(30)))
    ctx.memory.seq_div(0, 0, 20, 2)  # now positions repeat
    with ctx.checkpoint(0) as checkpoint:
        checkpoint.restore(0, ctx=other)
        assert [run[:2] for run in other.memory.provenance(0)] == [run[:2] for run in ctx.memory.provenance(0)]
        assert same(feed(ctx, (0, 10, [5]))[0], feed(other, (0, 10, [5]))[0])


@pytest.mark.parametrize("fault", [None, 0, 1])
def test_a_fork_rolls_back_in_a_full_cache(llama: lloyal.Model, new_context: Make, fault: int | None) -> None:
    """The rows it shares with another branch stay; its own go, and make the room."""
    ctx = new_context(llama, n_ctx=256, n_seq_max=4)
    feed(ctx, (0, 0, some(200)))
    ctx.memory.seq_cp(0, 1)
    feed(ctx, (0, 200, some(50, 1)))
    with ctx.checkpoint(0) as checkpoint:
        expected = feed(ctx, (0, 250, [1]))[0]
        ctx.memory.seq_rm(0, 200)
        feed(ctx, (0, 200, some(50, 2)))
        if fault is not None:
            native.fault_arm(fault)
            with pytest.raises(errors.DecodeFailed, match="sequence 0 is now empty"):
                checkpoint.restore(0)
            native.fault_arm(-1)
            assert (ctx.memory.seq_pos_max(0), ctx.memory.seq_pos_max(1)) == (-1, 199)
        checkpoint.restore(0)
        assert same(feed(ctx, (0, 250, [1]))[0], expected)


def test_compaction_counts_what_restores_share(llama: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(llama, n_ctx=1024, n_batch=1024)
    feed(ctx, (0, 0, some(600)))
    with ctx.checkpoint(where="cells"):
        ctx.compact()
    assert ctx.memory.seq_pos_max(0) == 599
    with lloyal.Model(tiny("mamba2")) as model:
        ctx = new_context(model, n_ctx=256)
        feed(ctx, (0, 0, some(200)))
        feed(ctx, (1, 0, some(200)))
        ctx.compact()
        assert [ctx.memory.seq_pos_max(seq) for seq in (0, 1)] == [199, 199]


def test_compaction_shares_what_is_no_prefix_too(llama: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(llama, n_ctx=256)
    feed(ctx, (0, 0, some(200)))
    ctx.memory.seq_cp(0, 1, 100, -1)
    before = [ctx.state_seq_get_data_ext(seq) for seq in range(2)]
    ctx.compact()
    assert [ctx.state_seq_get_data_ext(seq) for seq in range(2)] == before
    feed(ctx, (2, 0, some(56)))  # what the cache has room for


@pytest.mark.parametrize("fault", range(40))
def test_a_compaction_that_fails_changes_nothing(llama: lloyal.Model, new_context: Make, fault: int) -> None:
    ctx = new_context(llama, n_ctx=256, flash_attn=fault % 2 == 0)
    feed(ctx, (0, 0, some(20)), (1, 0, some(20, 1)))
    ctx.memory.seq_rm(0, 5, 9)
    ctx.memory.seq_cp(0, 2)
    feed(ctx, (2, 20, some(3, 2)))
    rows = [ctx.memory.provenance(seq) for seq in range(3)]
    expected = [parse(ctx.state_seq_get_data_ext(seq), "attention").encode() for seq in range(3)]
    native.fault_arm(fault)
    try:
        ctx.compact()
    except errors.LloyalError:
        assert native.fault_remaining() < 0
    finally:
        native.fault_arm(-1)
    assert [parse(ctx.state_seq_get_data_ext(seq), "attention").encode() for seq in range(3)] == expected
    assert [ctx.memory.provenance(seq) for seq in range(3)] == rows
    assert ctx.checkpoints.nbytes == 0


def test_a_trim_in_a_stream_copies_nothing(llama: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(llama, kv_unified=False)
    feed(ctx, (0, 0, some(100)))
    with ctx.checkpoint(0) as checkpoint:
        before = ctx.state_seq_get_data_ext(0)
        feed(ctx, (0, 100, [3, 4]))
        native.fault_arm(0)
        try:
            checkpoint.restore()
        finally:
            native.fault_arm(-1)
        assert ctx.state_seq_get_data_ext(0) == before


def test_a_released_one_lets_go_of_its_context(llama: lloyal.Model) -> None:
    ctx = lloyal.Context(llama, n_ctx=256, n_threads=1)
    feed(ctx, (0, 0, some(10)))
    checkpoint = ctx.checkpoint(0)
    seen = weakref.ref(ctx)
    checkpoint.release()
    del ctx
    gc.collect()
    assert seen() is None
    with pytest.raises(errors.Closed, match="released"):
        checkpoint.restore()
