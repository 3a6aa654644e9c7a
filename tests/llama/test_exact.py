"""State operations are exact or refused: what comes after them is what a context computes that was never touched.

Each test is a way in which one of them once gave wrong logits, or lost rows, without a word.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lloyal
from lloyal import errors
from lloyal.checkpoint import format as checkpoint_format
from lloyal.native.checkpoint import abort_arm, fault_arm
from tests.abuse.models import write
from tests.checkpoints.raw_state import parse
from tests.decode import distance, feed, some
from tests.models import N_EMBD, tiny

Make = Callable[..., lloyal.Context]
EXACT = {"type_k": "f32", "type_v": "f32", "flash_attn": "off"}  # another order of cells changes next to nothing
TOLERANCE = 1e-3


@pytest.fixture
def new_context() -> Iterator[Make]:
    made: list[lloyal.Context] = []

    def make(model: lloyal.Model, **parameters: Any) -> lloyal.Context:
        made.append(
            lloyal.Context(
                model, **({"n_ctx": 512, "n_batch": 256, "n_seq_max": 4, "n_threads": 1} | EXACT | parameters)
            )
        )
        return made[-1]

    yield make
    for ctx in made:
        ctx.close()


@pytest.fixture
def load() -> Iterator[Callable[[str], lloyal.Model]]:
    loaded: list[lloyal.Model] = []

    def one(name: str) -> lloyal.Model:
        loaded.append(lloyal.Model(tiny(name)))
        return loaded[-1]

    yield one
    for model in loaded:
        model.close()


Load = Callable[[str], lloyal.Model]


def everything(ctx: lloyal.Context) -> list[Any]:
    return [
        (ctx.memory.provenance(seq), ctx.memory.seq_pos_max(seq), ctx.state_seq_get_data_ext(seq))
        for seq in range(ctx.n_seq_max)
    ]


def rows_of(ctx: lloyal.Context, seq: int) -> bytes:
    """What an attention cache holds of a sequence, whatever its id."""
    return parse(ctx.state_seq_get_data_ext(seq), "attention").encode()


def next_logits(model: lloyal.Model, make: Make, text: list[int]) -> np.ndarray:
    """Of a context that has read just this text."""
    return feed(make(model), (0, 0, text))[0]


PUT = {
    "seq_cp": lambda ctx: ctx.memory.seq_cp(0, 1),
    "restore": lambda ctx: ctx.checkpoint(0).restore(1),
    "raw on device": lambda ctx: ctx.state_seq_set_data_ext(ctx.state_seq_get_data_ext(0, 2), 1, 2),
}


@pytest.mark.parametrize("put", PUT)
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_copy_onto_the_same_rows_in_other_cells_does_not_double_them(
    name: str, put: str, load: Load, new_context: Make
) -> None:
    model, text = load(name), some(20)
    ctx = new_context(model)
    feed(ctx, (0, 0, text[:12]))
    PUT[put](ctx)
    feed(ctx, (1, 12, text[12:14]))
    ctx.memory.seq_cp(0, 1)
    assert distance(feed(ctx, (1, 14, text[14:15]))[0], next_logits(model, new_context, text[:15])) < TOLERANCE


def test_a_copy_over_a_hole_keeps_what_the_destination_holds_there(load: Load, new_context: Make) -> None:
    model, text = load("llama"), some(61)
    ctx = new_context(model)
    feed(ctx, (0, 0, text[:60]))
    ctx.memory.seq_cp(0, 2)
    ctx.memory.seq_rm(0, 20, 40)
    with ctx.checkpoint(0) as saved:
        ctx.memory.seq_cp(0, 2)
        assert [run[:2] for run in ctx.memory.provenance(2)] == [(0, 60)]
        saved.restore(2)
        saved.restore(1)
        assert distance(*feed(ctx, (2, 60, text[60:]), (1, 60, text[60:]))) < TOLERANCE


def test_a_copy_brings_only_the_first_rows(load: Load, new_context: Make) -> None:
    model, text = load("gemma3"), some(72)
    ctx = new_context(model)
    feed(ctx, (0, 0, text[:71]))
    ctx.memory.seq_cp(0, 1, 2, -1)
    ctx.memory.seq_cp(0, 1)
    assert ctx.memory.provenance(1) == ctx.memory.provenance(0)
    assert distance(feed(ctx, (1, 71, text[71:]))[0], next_logits(model, new_context, text)) < TOLERANCE


@pytest.mark.parametrize("name", ["mamba2", "lfm2", "falcon-h1"])
def test_a_state_is_not_copied_onto_rows_it_does_not_follow(name: str, load: Load, new_context: Make) -> None:
    ctx = new_context(load(name))
    feed(ctx, (0, 0, some(20)))
    ctx.memory.seq_cp(0, 1)
    feed(ctx, (1, 20, some(10, 1)), (2, 30, some(5, 2)))  # 1 is further on, 2 is elsewhere
    for dest in (1, 2):
        before = everything(ctx)
        with pytest.raises(errors.InvalidArgument, match="seq_rm them first"):
            ctx.memory.seq_cp(0, dest)
        assert everything(ctx) == before


@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2"])
def test_a_copy_without_room_of_its_own_keeps_other_rows(name: str, load: Load, new_context: Make) -> None:
    """With kv_unified=False the copy is of the whole buffer."""
    ctx = new_context(load(name), kv_unified=False)
    feed(ctx, (0, 0, some(20)), (1, 40, some(5)))
    before = everything(ctx)
    with pytest.raises(errors.InvalidArgument, match="seq_rm them first"):
        ctx.memory.seq_cp(0, 1)
    assert everything(ctx) == before


def test_removing_from_every_sequence_is_all_or_nothing(load: Load, new_context: Make) -> None:
    ctx = new_context(load("lfm2"))
    feed(ctx, (0, 10, some(10)), (1, 0, some(20)))
    before = everything(ctx)
    with pytest.raises(errors.Unsupported, match="restore a checkpoint"):
        ctx.memory.seq_rm(-1, 10, -1)
    assert everything(ctx) == before


def test_removing_every_sequence_leaves_what_checkpoints_hold(load: Load, new_context: Make) -> None:
    ctx = new_context(load("llama"))
    feed(ctx, (0, 0, some(20)), (1, 0, some(20, 1)))
    with ctx.checkpoint(0, where="cells") as saved:
        data, rows = ctx.state_seq_get_data_ext(0), rows_of(ctx, 0)
        for forget in (lambda: ctx.memory.seq_rm(-1), lambda: ctx.memory.seq_keep(1)):
            forget()
            with pytest.raises(errors.NoLease, match="holds the cells"):
                ctx.state_seq_set_data_ext(data, saved.lease)
            saved.restore(0)
            assert rows_of(ctx, 0) == rows


def wrapped(model: lloyal.Model, make: Make, n: int, **parameters: Any) -> lloyal.Context:
    """A sequence whose window cache has reused its cells."""
    ctx = make(model, n_ctx=1024, n_batch=32, n_ubatch=32, **parameters)
    text = some(n)
    for start in range(0, n, 32):
        feed(ctx, (0, start, text[start : start + 32]))
    return ctx


def test_a_part_of_a_window_that_is_gone_is_not_copied(load: Load, new_context: Make) -> None:
    ctx = wrapped(load("gemma3"), new_context, 480)
    before = everything(ctx)
    assert ctx.memory.can_rollback(0, 380) is None
    with pytest.raises(errors.Unsupported, match="passed and lost"):
        ctx.memory.seq_cp(0, 1, 0, 100)
    assert everything(ctx) == before


def test_a_tail_above_a_hole_is_not_removed_where_the_window_is_gone(load: Load, new_context: Make) -> None:
    ctx = wrapped(load("gemma3"), new_context, 480)
    ctx.memory.seq_rm(0, 50, 470)
    before = everything(ctx)
    assert ctx.memory.can_rollback(0, 10) is None
    with pytest.raises(errors.Unsupported):
        ctx.memory.seq_rm(0, 470)
    assert everything(ctx) == before


def test_a_shift_does_not_bring_back_what_a_window_has_lost(load: Load, new_context: Make) -> None:
    model, text = load("gemma3"), some(51)
    first, second = new_context(model, n_ctx=256), new_context(model, n_ctx=256)
    feed(first, (0, 0, text[:40]))
    with first.checkpoint(0) as saved:
        saved.restore(1, ctx=second)
    for seq, ctx in enumerate((first, second)):
        ctx.memory.seq_rm(seq, 16, 31)
    first.memory.seq_add(0, 31, 40, -15)  # it still has them
    before = everything(second)
    with pytest.raises(errors.Unsupported, match="passed and lost"):
        second.memory.seq_add(1, 31, 40, -15)
    assert everything(second) == before


@pytest.mark.parametrize("n_ubatch", [8, 16])
@pytest.mark.parametrize("outputs", [True, "last"])
def test_a_batch_of_several_parts_loses_no_rows_of_its_window(
    n_ubatch: int, outputs: Any, load: Load, new_context: Make
) -> None:
    """llama.cpp plans all parts first, and the plan of a later one drops rows that lie out of order."""
    model, text = load("gemma3"), some(60)
    ctx = new_context(model, n_ubatch=n_ubatch)
    feed(ctx, (1, 0, some(8, 1)))
    feed(ctx, (2, 0, some(10, 2)))
    feed(ctx, (0, 0, text[:15]))
    ctx.memory.seq_rm(2)
    feed(ctx, (0, 15, text[15:25]))  # these lie before the first ones
    ctx.memory.seq_rm(1)
    before = everything(ctx)
    batch = lloyal.Batch()
    batch.extend(text[25:41], 25, 0, outputs)
    try:
        ctx.decode(batch)
    except errors.InvalidBatch:
        assert outputs is True
        assert n_ubatch == 8
        assert everything(ctx) == before
    else:
        assert distance(ctx.logits(15, copy=True), next_logits(model, new_context, text[:41])) < TOLERANCE
        assert distance(feed(ctx, (0, 41, [5]))[0], next_logits(model, new_context, [*text[:41], 5])) < TOLERANCE


def test_coupled_tokens_are_of_sequences_that_are_the_same(load: Load, new_context: Make) -> None:
    batch = lloyal.Batch()
    batch.add(5, 0, [0, 1])
    with pytest.raises(errors.InvalidBatch, match="one sequence only"):
        new_context(load("mamba2")).decode(batch)
    for name in ("llama", "lfm2"):
        model = load(name)
        ctx = new_context(model)
        batch.clear()
        batch.add(5, 0, [0, 1])
        ctx.decode(batch)
        feed(ctx, (0, 1, [6]), (1, 1, [7]))
        before = everything(ctx)
        batch.clear()
        batch.add(8, 2, [0, 1])
        with pytest.raises(errors.InvalidBatch, match="hold different rows"):
            ctx.decode(batch)
        batch.clear()
        batch.add(8, 0, 2)
        batch.add(8, 0, 3)
        batch.add(9, 1, [2, 3])
        with pytest.raises(errors.InvalidBatch, match="not of all of them"):
            ctx.decode(batch)
        batch.clear()
        for pos in (0, 2):  # apart in between
            batch.add(8, pos, [2, 3])
        batch.add(8, 1, 2)
        batch.add(9, 1, 3)
        with pytest.raises(errors.InvalidBatch, match="not of all of them"):
            ctx.decode(batch)
        assert everything(ctx) == before
        assert distance(feed(ctx, (1, 2, [9]))[0], next_logits(model, new_context, [5, 7, 9])) < TOLERANCE


@pytest.mark.parametrize("name", ["llama", "lfm2"])
def test_coupled_tokens_in_buffers_of_their_own_are_refused_by_name(name: str, load: Load, new_context: Make) -> None:
    ctx = new_context(load(name), kv_unified=False)
    batch = lloyal.Batch()
    batch.add(1, 0, [0, 1])
    with pytest.raises(errors.InvalidBatch, match="kv_unified=True"):
        ctx.decode(batch)


def test_a_row_at_a_known_position_changes_what_is_known(load: Load, new_context: Make) -> None:
    """M-RoPE: an image that is larger than a batch goes on at the position where it stands."""
    model = load("qwen35")
    ctx = new_context(model)
    feed(ctx, (0, 0, [3, 4, 5, 6, 7]))
    with ctx.checkpoint(0) as saved:
        rows = ctx.memory.provenance(0)
        batch = lloyal.Batch()
        batch.extend_embd(np.random.default_rng(0).standard_normal((3, N_EMBD), dtype=np.float32) * 5, 4, 0)
        ctx.decode(batch)
        assert ctx.memory.provenance(0) != rows
        assert sum(end - begin for begin, end, *_ in ctx.memory.provenance(0)) == 8
        for dest in (2, 0):
            saved.restore(dest)
            assert (
                distance(feed(ctx, (dest, 5, [9]))[0], next_logits(model, new_context, [3, 4, 5, 6, 7, 9])) < TOLERANCE
            )


@pytest.mark.parametrize("flags", [0, 1])
def test_a_host_state_with_a_hole_has_no_more_rows(flags: int, load: Load, new_context: Make, tmp_path: Path) -> None:
    ctx = new_context(load("llama"))
    feed(ctx, (0, 0, some(20)))
    ctx.memory.seq_rm(0, 5, 10)
    ctx.state_seq_set_data_ext(ctx.state_seq_get_data_ext(0, flags), 1, flags)
    ctx.state_seq_save_file(tmp_path / "state", 0)
    ctx.state_seq_load_file(tmp_path / "state", 2)
    ctx.state_set_data(ctx.state_get_data())
    for seq in range(3):
        assert [run[:2] for run in ctx.memory.provenance(seq)] == [(0, 5), (10, 20)]
    with ctx.checkpoint(1) as saved:
        assert saved.n_tokens == 15
        assert saved.to_bytes()
    ctx.memory.seq_add(1, 10, 20, -5)
    assert ctx.memory.seq_pos_max(1) == 14


@pytest.mark.parametrize("name", ["gemma3", "lfm2", "lfm2-swa", "mamba2"])
@pytest.mark.parametrize("flags", [1, 3])
def test_a_partial_state_of_nothing_leaves_nothing(name: str, flags: int, load: Load, new_context: Make) -> None:
    ctx = new_context(load(name))
    nothing = ctx.state_seq_get_data_ext(1, flags)
    feed(ctx, (0, 0, some(20)))
    ctx.state_seq_set_data_ext(nothing, 0, flags)
    assert (ctx.memory.seq_pos_max(0), ctx.memory.provenance(0)) == (-1, [])


def test_ids_of_bytes_from_outside_prove_nothing(load: Load, new_context: Make) -> None:
    """Edited tensors under a checksum made right: nobody else's rows are taken for them, and they for nobody else's."""
    ctx = new_context(load("llama"))
    feed(ctx, (0, 0, some(20)))
    with ctx.checkpoint(0) as genuine:
        data = genuine.to_bytes()
        header, payload = checkpoint_format.decode(memoryview(data))
        halved = (np.frombuffer(bytes(payload), np.float32) * np.float32(0.5)).tobytes()
        rows = rows_of(ctx, 0)
        with lloyal.Checkpoint.from_bytes(ctx, checkpoint_format.encode(copy.deepcopy(header), halved)) as edited:
            edited.restore(2)
            mine = rows_of(ctx, 2)
            assert mine != rows
            with ctx.checkpoint(2) as again:
                again.restore(3)
                assert rows_of(ctx, 3) == mine
        with lloyal.Checkpoint.from_bytes(ctx, data) as known:  # what this process wrote is known again
            known.restore(1)
            assert ctx.memory.provenance(1) == ctx.memory.provenance(0)


def test_bytes_of_version_1_are_read(load: Load, new_context: Make) -> None:
    import hashlib

    ctx = new_context(load("llama"))
    feed(ctx, (0, 0, some(20)))
    with ctx.checkpoint(0) as saved:
        data = saved.to_bytes()
    size, n = checkpoint_format.PREFIX.size, checkpoint_format.SIGNATURE_SIZE
    magic, _, n_header, n_payload = checkpoint_format.PREFIX.unpack_from(data)
    prefix = checkpoint_format.PREFIX.pack(magic, 1, n_header, n_payload)
    body = data[size + checkpoint_format.DIGEST_SIZE : -n]
    old = prefix + hashlib.blake2b(prefix + body, digest_size=checkpoint_format.DIGEST_SIZE).digest() + body
    with lloyal.Checkpoint.from_bytes(ctx, old) as loaded:
        loaded.restore(1)
        assert rows_of(ctx, 1) == rows_of(ctx, 0)


def test_bytes_of_a_sequence_that_is_not_here_can_be_copied(load: Load, new_context: Make) -> None:
    model = load("llama")
    ctx, small = new_context(model, n_seq_max=64), new_context(model, n_seq_max=2)
    feed(ctx, (60, 0, some(20)))
    with ctx.checkpoint(60) as saved, lloyal.Checkpoint.from_bytes(small, saved.to_bytes()) as loaded:
        with loaded.to_host() as copied:
            assert copied.n_tokens == 20
            with pytest.raises(errors.InvalidArgument, match="seq_id=60"):
                copied.restore()
            copied.restore(1)
    assert small.memory.seq_pos_max(1) == 19


def test_a_state_goes_with_what_was_encoded(new_context: Make, tmp_path: Path) -> None:
    """Every row of a decoder depends on the encoder's output, which is in no state."""
    with lloyal.Model(write("t5", tmp_path)) as model:
        ctx, other = new_context(model, n_ctx=256), new_context(model, n_ctx=256)
        source = lloyal.Batch()
        source.extend(some(9), 0, 0, True)
        for context in (ctx, other):
            context.encode(source)
            feed(context, (0, 0, [1, 2, 3]))
        with ctx.checkpoint(0) as saved:
            expected = feed(ctx, (0, 3, [4]))[0]
            saved.restore(0)
            assert distance(feed(ctx, (0, 3, [4]))[0], expected) < TOLERANCE
            with pytest.raises(errors.StaleCheckpoint, match="encode"):
                saved.restore(0, ctx=other)
            with pytest.raises(errors.Unsupported, match="encode"):
                saved.to_bytes()
            data = ctx.state_seq_get_data_ext(0, 2)
            ctx.memory.seq_rm(0)
            ctx.encode(source)
            before = everything(ctx)
            with pytest.raises(errors.StaleCheckpoint, match="encode"):
                saved.restore(0)
            with pytest.raises(errors.StaleCheckpoint, match="encode"):
                ctx.state_seq_set_data_ext(data, 0, 2)
            assert everything(ctx) == before
        ctx.close()
        other.close()


@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2", "mamba2", "qwen35"])
@pytest.mark.parametrize("unified", [True, False])
def test_compaction_loses_nothing(name: str, unified: bool, load: Load, new_context: Make) -> None:
    model = load(name)
    ctx = new_context(model, n_ctx=256, n_seq_max=2, kv_unified=unified)
    n = 150 if unified else 60
    for seq in (0, 1):
        feed(ctx, (seq, 0, some(n)))
        if seq == 0:
            ctx.memory.seq_cp(0, 1)
            ctx.memory.seq_rm(1)
            if unified:
                ctx.memory.seq_cp(0, 1)
                break
    feed(ctx, (0, n, [5]), (1, n, [6]))
    rows = [ctx.memory.provenance(seq) for seq in (0, 1)]
    ctx.compact()
    assert [ctx.memory.provenance(seq) for seq in (0, 1)] == rows
    got = feed(ctx, (0, n + 1, [7]), (1, n + 1, [7]))
    for row, token in zip(got, (5, 6), strict=True):
        assert distance(row, next_logits(model, new_context, [*some(n), token, 7])) < TOLERANCE


@pytest.mark.parametrize("name", ["mamba2", "lfm2", "falcon-h1", "qwen35"])
def test_a_new_sequence_begins_with_nothing_after_a_stop(name: str, load: Load, new_context: Make) -> None:
    """Cells between those of a batch count as set to zero before they are."""
    model = load(name)
    ctx = new_context(model, n_seq_max=8)
    feed(ctx, *((seq, 0, some(9, seq)) for seq in range(8)))
    for seq in (1, 2, 4, 5, 6):
        ctx.memory.seq_rm(seq)
    abort_arm(1)
    with pytest.raises(errors.Aborted):
        feed(ctx, (0, 9, some(1)), (3, 9, some(1)), (7, 9, some(1)))
    abort_arm(-1)
    for seq in (1, 2, 4, 5, 6, 0):
        text = some(5, 100 + seq)
        assert distance(feed(ctx, (seq, 0, text))[0], next_logits(model, new_context, text)) < TOLERANCE, seq


@pytest.mark.parametrize("name", ["qwen35", "lfm2", "lfm2-swa"])
def test_a_fork_that_fails_leaves_the_rollback_pending(name: str, load: Load, new_context: Make) -> None:
    one = load(name)
    ctx, twin = (new_context(one, n_rs_seq=4) for _ in range(2))
    text = some(6)
    feed(ctx, (0, 0, text))
    ctx.memory.seq_rm(0, 3, -1)
    before = ctx.memory.provenance(0)
    fault_arm(0)
    with pytest.raises(errors.LloyalError, match="injected"):
        ctx.memory.seq_cp(0, 1)
    assert (ctx.memory.provenance(0), ctx.memory.seq_pos_max(0), ctx.memory.seq_pos_max(1)) == (before, 2, -1)
    ctx.memory.seq_cp(0, 1)
    [expected] = feed(twin, (0, 0, text[:3])) and feed(twin, (0, 3, [5]))
    for seq in (1, 0):
        assert distance(*feed(ctx, (seq, 3, [5])), expected) < TOLERANCE


@pytest.mark.parametrize("name", ["lfm2", "qwen35"])
def test_a_stopped_sequence_that_began_in_the_middle_is_gone(name: str, load: Load, new_context: Make) -> None:
    """llama.cpp takes a tail back that is the whole of it, and keeps the state, as if a snapshot had been taken."""
    model = load(name)
    ctx = new_context(model, n_rs_seq=4)
    feed(ctx, *((seq, 0, some(9, seq)) for seq in range(4)))
    ctx.memory.clear(False)
    abort_arm(1)
    with pytest.raises(errors.Aborted):
        feed(ctx, *((seq, 3, some(1)) for seq in range(4)))
    abort_arm(-1)
    for seq in range(4):
        text = some(5, 100 + seq)
        assert distance(feed(ctx, (seq, 0, text))[0], next_logits(model, new_context, text)) < TOLERANCE, seq


@pytest.mark.parametrize("name", ["lfm2", "qwen35"])
def test_a_rollback_that_a_stopped_decode_was_to_apply(name: str, load: Load, new_context: Make) -> None:
    """llama.cpp applies it for every state that lies between those of the batch; half applied, the state is gone."""
    model = load(name)
    for node in range(0, 120, 12):
        ctx = new_context(model, n_rs_seq=4)
        texts = [some(9, seq) for seq in range(4)]
        for seq, text in enumerate(texts):
            feed(ctx, (seq, 0, text))
        ctx.memory.seq_rm(2, 7, -1)
        abort_arm(node)
        try:
            feed(ctx, (0, 9, some(1)), (3, 9, some(1)))
        except errors.Aborted:
            left = ctx.memory.seq_pos_max(2)
            assert left in (-1, 6)
            text = texts[2][:7] if left == 6 else []
        else:
            text = texts[2][:7]
        abort_arm(-1)
        more = some(3, 50)
        assert (
            distance(feed(ctx, (2, len(text), more))[0], next_logits(model, new_context, [*text, *more])) < TOLERANCE
        ), node


@pytest.mark.parametrize("name", ["lfm2", "qwen35"])
def test_what_a_fork_that_failed_has_written_is_nobodys_state(name: str, load: Load, new_context: Make) -> None:
    """A rollback that was half applied may lie in a cell that llama.cpp counts as set to zero."""
    model = load(name)
    for n in range(12):
        ctx = new_context(model, n_rs_seq=4, n_seq_max=6)
        for seq in range(5):
            feed(ctx, (seq, 0, some(9, seq)))
        ctx.memory.seq_rm(1)
        ctx.memory.seq_rm(2)
        feed(ctx, (0, 9, some(1)), (3, 9, some(1)))  # two empty cells between those of the batch
        feed(ctx, (4, 9, some(4)))
        ctx.memory.seq_rm(4, 11, -1)
        feed(ctx, (0, 10, some(1)))  # where llama.cpp looks for a cell next
        fault_arm(n)
        try:
            ctx.memory.seq_cp(4, 5)
        except errors.LloyalError:
            assert ctx.memory.seq_pos_max(5) == -1
        fault_arm(-1)
        ctx.memory.seq_rm(5)
        for seq in (1, 2, 5):
            text = some(5, 60 + seq)
            assert distance(feed(ctx, (seq, 0, text))[0], next_logits(model, new_context, text)) < TOLERANCE, n
