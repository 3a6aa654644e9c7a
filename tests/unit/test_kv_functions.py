"""The functions of `lloyal.kv`: what they do is what the methods below them do, and what cannot be done raises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

import lloyal
from lloyal import kv
from lloyal.errors import CacheFull, InvalidArgument, NoLease, NoLogits, StateMismatch, Unsupported
from lloyal.sampling import Sampling
from tests.decode import distance, feed
from tests.models import KINDS, N_VOCAB, tiny, tokens

Make = Callable[..., lloyal.Context]
ALL = sorted(KINDS)


@pytest.fixture
def ctx(new_context: Make) -> lloyal.Context:
    with lloyal.Model(tiny("llama")) as model:
        return new_context(model, n_seq_max=4)


def contexts(name: str, new_context: Make, n: int) -> list[lloyal.Context]:
    with lloyal.Model(tiny(name)) as model:
        return [new_context(model, n_ctx=1024, n_seq_max=4) for _ in range(n)]


@pytest.mark.parametrize("name", ALL)
def test_ranges_and_positions(name: str, new_context: Make) -> None:
    ctx, twin = contexts(name, new_context, 2)
    said = tokens(12)
    feed(ctx, (0, 0, said))
    assert (kv.pos_max(ctx, 0), kv.pos_max(ctx, 1)) == (11, -1)
    kv.seq_cp(ctx, 0, 2)
    assert kv.pos_max(ctx, 2) == 11
    row = feed(ctx, (2, 12, [7]))[0]
    assert distance(row, feed(twin, (0, 0, [*said, 7]))[0]) < 1e-2
    if ctx.memory.can_rollback(0, 4) == "trim":
        kv.remove_range(ctx, 0, 8)
        assert kv.pos_max(ctx, 0) == 7
    elif ctx.memory.can_rollback(0, 4) is None:
        with pytest.raises(Unsupported):
            kv.remove_range(ctx, 0, 8, 12)
        assert kv.pos_max(ctx, 0) == 11
    kv.seq_keep(ctx, 2)
    assert (kv.pos_max(ctx, 0), kv.pos_max(ctx, 2)) == (-1, 12)
    kv.remove_range(ctx, 2)
    assert kv.pos_max(ctx, 2) == -1
    with pytest.raises(InvalidArgument):
        kv.pos_max(ctx, 4)


@pytest.mark.parametrize("clear", [kv.clear_all, kv.clear_metadata])
def test_clearing(ctx: lloyal.Context, clear: Callable[[lloyal.Context], None]) -> None:
    first = feed(ctx, (0, 0, tokens(9)))[0]
    feed(ctx, (1, 0, tokens(4)))
    clear(ctx)
    assert [kv.pos_max(ctx, seq) for seq in range(4)] == [-1] * 4
    assert distance(feed(ctx, (0, 0, tokens(9)))[0], first) < 1e-2


@pytest.mark.parametrize("name", ALL)
def test_a_state_goes_into_one_sequence_and_no_other(name: str, new_context: Make) -> None:
    ctx, other = contexts(name, new_context, 2)
    said, beside = tokens(20), tokens(7, 1)
    feed(ctx, (1, 0, said))
    data = kv.state_save(ctx, 1)
    assert len(data) == kv.state_size(ctx, 1)
    feed(other, (0, 0, beside))
    feed(other, (2, 0, beside))
    assert kv.state_load(other, 2, data) == len(data)
    assert (kv.pos_max(other, 0), kv.pos_max(other, 2)) == (6, 19)
    assert distance(feed(other, (2, 20, [5]))[0], feed(ctx, (1, 20, [5]))[0]) < 1e-2
    untouched = feed(other, (0, 7, [5]))[0]
    kv.clear_all(ctx)
    assert distance(untouched, feed(ctx, (0, 0, [*beside, 5]))[0]) < 1e-2


def test_an_empty_sequence_has_no_state(ctx: lloyal.Context, tmp_path: Path) -> None:
    feed(ctx, (0, 0, tokens(5)))
    for save in (kv.state_size, kv.state_save):
        with pytest.raises(InvalidArgument, match="sequence 1 is empty"):
            save(ctx, 1)
    with pytest.raises(InvalidArgument, match="empty"):
        kv.write_file(ctx, 1, tmp_path / "none")
    assert not list(tmp_path.iterdir())


def test_a_damaged_state_falls_back_on_nothing(ctx: lloyal.Context) -> None:
    feed(ctx, (0, 0, tokens(5)))
    feed(ctx, (1, 0, tokens(8)))
    whole = kv.global_state_save(ctx)
    data = kv.state_save(ctx, 1)
    for bad in (data[: len(data) // 2], b"", whole):
        with pytest.raises((StateMismatch, InvalidArgument)):
            kv.state_load(ctx, 1, bad)
        assert kv.pos_max(ctx, 0) == 4


def test_the_whole_context(new_context: Make) -> None:
    ctx, other = contexts("llama", new_context, 2)
    feed(ctx, (0, 0, tokens(5)))
    feed(ctx, (3, 0, tokens(8)))
    data = kv.global_state_save(ctx)
    assert len(data) == kv.global_state_size(ctx)
    feed(other, (1, 0, tokens(3)))
    assert kv.global_state_load(other, data) == len(data)
    assert [kv.pos_max(other, seq) for seq in range(4)] == [4, -1, -1, 7]
    assert distance(feed(other, (3, 8, [2]))[0], feed(ctx, (3, 8, [2]))[0]) < 1e-2
    with pytest.raises(StateMismatch):
        kv.global_state_load(other, data[:-8])


def test_files(new_context: Make, tmp_path: Path) -> None:
    ctx, other = contexts("lfm2", new_context, 2)
    said = tokens(11)
    feed(ctx, (2, 0, said))
    path = tmp_path / "two"
    assert kv.write_file(ctx, 2, path, said) == path.stat().st_size
    found = kv.read_file(other, 1, path)
    assert found == kv.FileData(said, path.stat().st_size)
    with pytest.raises(NoLogits):
        other.logits()
    assert distance(feed(other, (1, 11, [3]))[0], feed(ctx, (2, 11, [3]))[0]) < 1e-2
    short = tmp_path / "short"
    short.write_bytes(path.read_bytes()[:30])
    for missing in (tmp_path / "missing", short):
        with pytest.raises((StateMismatch, OSError)):
            kv.read_file(other, 0, missing)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("n_sinks", "n_tail", "n_batch"), [(4, 30, None), (0, 25, 8), (4, 0, 3)])
def test_reseeding_is_reading_sinks_and_tail_anew(
    name: str, n_sinks: int, n_tail: int, n_batch: int | None, new_context: Make
) -> None:
    ctx, fresh = contexts(name, new_context, 2)
    said = tokens(90)
    feed(ctx, (0, 0, said))
    feed(ctx, (1, 0, said[:5]))
    sinks, tail = said[:n_sinks], said[len(said) - n_tail :]
    pos = kv.clear_and_reseed(ctx, sinks, tail, n_batch)
    assert pos == n_sinks + n_tail == kv.pos_max(ctx, 0) + 1
    assert kv.pos_max(ctx, 1) == -1
    expected = feed(fresh, (0, 0, [*sinks, *tail]))[0]
    assert distance(np.array(ctx.logits()), expected) < 1e-2
    assert distance(feed(ctx, (0, pos, [9]))[0], feed(fresh, (0, pos, [9]))[0]) < 1e-2


def test_what_cannot_be_reseeded_changes_nothing(ctx: lloyal.Context) -> None:
    feed(ctx, (0, 0, tokens(6)))
    for sinks, tail, n_batch, error in (
        ([], [], None, InvalidArgument),
        ([1], [N_VOCAB], None, InvalidArgument),
        ([-1], [2], None, InvalidArgument),
        ([1], [2], 0, InvalidArgument),
        ([1], [2], ctx.n_batch + 1, InvalidArgument),
        ([1], [2] * ctx.n_ctx, None, CacheFull),
    ):
        with pytest.raises(error):
            kv.clear_and_reseed(ctx, sinks, tail, n_batch)
    tenancy = kv.Tenancy(ctx)
    leased = [tenancy.acquire() for _ in range(3)]
    kv.remove_range(ctx, 0)
    leased.append(tenancy.acquire())
    assert 0 in leased
    tenancy.decode(_batch(0))
    with pytest.raises(NoLease):
        kv.clear_and_reseed(ctx, [1], [2])
    assert kv.pos_max(ctx, 0) == 0
    tenancy.evict_all()
    assert kv.clear_and_reseed(ctx, [1], [2]) == 2


def _batch(seq_id: int) -> lloyal.Batch:
    batch = lloyal.Batch()
    batch.add(1, 0, seq_id)
    return batch


def test_branches_go_on_after_a_reseed(ctx: lloyal.Context) -> None:
    with lloyal.BranchStore(ctx) as store:
        branch = store.create(tokens(9), sampling=Sampling(temperature=0))
        fork = branch.fork()
        first = [branch.step() for _ in range(6)]
        kv.clear_and_reseed(ctx, tokens(2), tokens(5))
        assert [fork.step() for _ in range(6)] == first
        assert kv.pos_max(ctx, 0) == 6


def test_cache_types_are_ggmls() -> None:
    names = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]
    for name in names:
        assert kv.cache_type(name) == gguf.GGMLQuantizationType[name.upper()]
    for wrong in ("q3_k", "F16", ""):
        with pytest.raises(InvalidArgument, match=f"{wrong!r}"):
            kv.cache_type(wrong)


def test_build_info_is_the_packages() -> None:
    assert kv.build_info() == lloyal.build_info()
