"""Sequences, their states and files, and starting over: the numbered behaviours of docs/liblloyal.md."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import lloyal
from lloyal import BranchStore, errors, kv
from tests.branches.reference import GREEDY, PROMPT, behaviours, tokens
from tests.decode import feed, same

NewContext = Callable[..., lloyal.Context]


@pytest.fixture
def ctx(nano: lloyal.Model, new_context: NewContext) -> lloyal.Context:
    return new_context(nano, n_seq_max=8)


@behaviours("30", "81")
def test_an_empty_sequence_has_no_state(ctx):
    assert kv.pos_max(ctx, 0) == -1
    feed(ctx, (1, 0, range(20, 30)))
    for ask in (kv.state_size, kv.state_save):
        with pytest.raises(errors.InvalidArgument, match="sequence 0 is empty"):
            ask(ctx, 0)


@behaviours("31", "37", "38", "39", "7")
def test_what_is_not_there_raises(ctx, nano, new_context, tmp_path):
    closed = new_context(nano)
    file = tmp_path / "x"
    feed(closed, (0, 0, [1]))
    kv.write_file(closed, 0, file)
    closed.close()
    for call in (
        lambda: kv.pos_max(closed, 0),
        lambda: kv.remove_range(closed, 0),
        lambda: kv.seq_cp(closed, 0, 1),
        lambda: kv.seq_keep(closed, 0),
        lambda: kv.state_size(closed, 0),
        lambda: kv.state_save(closed, 0),
        lambda: kv.state_load(closed, 0, b"x"),
        lambda: kv.global_state_size(closed),
        lambda: kv.global_state_save(closed),
        lambda: kv.clear_all(closed),
        lambda: kv.clear_metadata(closed),
        lambda: kv.clear_and_reseed(closed, [1], [2]),
        lambda: kv.write_file(closed, 0, file),
        lambda: kv.read_file(closed, 0, file),
    ):
        with pytest.raises(errors.Closed):
            call()
    for load in (lambda data: kv.state_load(ctx, 0, data), lambda data: kv.global_state_load(ctx, data)):
        for data in (b"", b"\0" * 64):
            with pytest.raises((errors.StateMismatch, errors.InvalidArgument)):
                load(data)
    with pytest.raises(errors.InvalidArgument, match="seq_id=8"):
        kv.pos_max(ctx, 8)


@behaviours("32", "33", "86", "161")
def test_ranges_are_removed_or_refused(ctx, nano_hybrid, new_context):
    lloyal.prefill(ctx, [20] * 10)
    assert kv.pos_max(ctx, 0) == 9
    lloyal.prefill(ctx, [21] * 90)
    assert kv.pos_max(ctx, 0) == 99
    kv.remove_range(ctx, 0, 40)
    assert kv.pos_max(ctx, 0) == 39
    kv.remove_range(ctx, 0)
    assert kv.pos_max(ctx, 0) == -1
    recurrent = new_context(nano_hybrid)
    lloyal.prefill(recurrent, [20] * 10)
    with pytest.raises(errors.Unsupported):
        kv.remove_range(recurrent, 0, 2, 5)
    assert kv.pos_max(recurrent, 0) == 9


@behaviours("34", "35", "78")
def test_the_state_of_a_sequence_is_its_alone(model, new_context):
    ctx = new_context(model, n_seq_max=4)
    (row,) = feed(ctx, (0, 0, range(20, 25)))
    feed(ctx, (1, 0, range(60, 69)))
    size, whole = kv.state_size(ctx, 0), kv.global_state_size(ctx)
    data = kv.state_save(ctx, 0)
    assert 0 < len(data) == size < whole
    assert kv.pos_max(ctx, 0) == 4
    kv.remove_range(ctx, 0)
    assert kv.pos_max(ctx, 0) == -1
    others = ctx.memory.version(1)
    assert kv.state_load(ctx, 0, data) == size
    assert kv.state_load(ctx, 3, data) == size, "an empty sequence may be the place, too"
    assert [kv.pos_max(ctx, seq) for seq in range(4)] == [4, 8, -1, 4]
    assert ctx.memory.version(1) == others, "other sequences are not touched"
    with pytest.raises(errors.NoLogits):
        ctx.logits(-1)
    with pytest.raises(errors.StateMismatch):
        kv.state_load(ctx, 2, kv.global_state_save(ctx))
    assert [kv.pos_max(ctx, seq) for seq in range(4)] == [4, 8, -1, 4]
    expected = feed(new_context(model), (0, 0, [*range(20, 25), 7]))[0]
    for seq in (0, 3):
        assert same(feed(ctx, (seq, 5, [7]))[0], expected)
    assert not same(row, expected)


@behaviours("36")
def test_the_whole_context_is_asked_for_by_name(model, new_context):
    ctx, other = new_context(model, n_seq_max=4), new_context(model, n_seq_max=4)
    feed(ctx, (0, 0, range(20, 25)), (2, 0, range(60, 69)))
    data = kv.global_state_save(ctx)
    assert len(data) == kv.global_state_size(ctx)
    assert kv.global_state_load(other, data) == len(data)
    assert [kv.pos_max(other, seq) for seq in range(4)] == [4, -1, 8, -1]
    assert same(feed(other, (2, 9, [7]))[0], feed(ctx, (2, 9, [7]))[0])


@behaviours("37", "N2")
def test_clearing_forgets_every_sequence(ctx):
    for clear in (kv.clear_all, kv.clear_metadata):
        (first,) = feed(ctx, (0, 0, range(20, 30)))
        feed(ctx, (5, 0, range(20, 23)))
        assert kv.pos_max(ctx, 0) == 9
        clear(ctx)
        assert [kv.pos_max(ctx, seq) for seq in range(8)] == [-1] * 8
        assert same(feed(ctx, (0, 0, range(20, 30)))[0], first), "nothing of it is seen any more"
        clear(ctx)


@behaviours("37", "N2")
def test_branches_outlive_clearing(ctx):
    """They know their tokens, and read them again."""
    with BranchStore(ctx) as store:
        branch = store.create(PROMPT, sampling=GREEDY)
        twin = branch.fork()
        expected = [twin.step() for _ in range(4)]
        twin.prune()
        kv.clear_all(ctx)
        assert [branch.step() for _ in range(4)] == expected
        branch.prune()
        kv.clear_all(ctx)
        assert [kv.pos_max(ctx, seq) for seq in range(8)] == [-1] * 8


# Files


@behaviours("38", "39", "136", "139")
def test_files_hold_a_sequence_and_its_tokens(ctx, tmp_path):
    path = tmp_path / "sequence.bin"
    with pytest.raises(errors.InvalidArgument, match="empty"):
        kv.write_file(ctx, 0, path)
    assert not path.exists()
    text = tokens(ctx, PROMPT * 2)
    assert len(text) > 20
    feed(ctx, (0, 0, text))
    for nowhere in ("", tmp_path / "no" / "folder", tmp_path):
        with pytest.raises(OSError):
            kv.write_file(ctx, 0, nowhere, text)
    written = kv.write_file(ctx, 0, path, text)
    assert written == path.stat().st_size > 0
    magic, version = struct.unpack("<II", path.read_bytes()[:8])
    assert magic
    assert version
    found = kv.read_file(ctx, 3, path)
    assert found == (text, written)
    assert kv.pos_max(ctx, 3) == len(text) - 1


@behaviours("39", "137")
def test_files_that_are_none_of_ours(ctx, tmp_path):
    feed(ctx, (0, 0, range(20, 30)))
    good, bad = tmp_path / "good", tmp_path / "bad"
    kv.write_file(ctx, 0, good)
    bad.write_bytes(struct.pack("<I", 0xDEADBEEF) + good.read_bytes()[4:])
    with pytest.raises(errors.StateMismatch):
        kv.read_file(ctx, 0, bad)
    bad.write_bytes(good.read_bytes()[:-100])
    with pytest.raises(errors.StateMismatch):
        kv.read_file(ctx, 1, bad)
    for missing in ("", tmp_path / "missing"):
        with pytest.raises((OSError, errors.StateMismatch)):
            kv.read_file(ctx, 0, missing)
    assert kv.pos_max(ctx, 0) == 9, "what cannot be read leaves the sequence alone"


@behaviours("138")
def test_a_fresh_context_goes_on_from_a_file(model, new_context, tmp_path: Path):
    ctx, fresh = new_context(model), new_context(model)
    text = tokens(ctx)
    (row,) = feed(ctx, (0, 0, text))
    expected = feed(ctx, (0, len(text), [int(row.argmax())]))[0]
    ctx.memory.clear()
    feed(ctx, (0, 0, text))
    kv.write_file(ctx, 0, tmp_path / "x", text)
    assert kv.read_file(fresh, 0, tmp_path / "x").tokens == text
    with pytest.raises(errors.NoLogits):
        fresh.logits(-1)
    got = feed(fresh, (0, len(text), [int(row.argmax())]))[0]
    assert same(got, expected)
    assert got.argmax() == expected.argmax()


# Several sequences


@behaviours("140", "141")
def test_sequences_do_not_see_each_other(ctx):
    text = tokens(ctx)
    (a,) = feed(ctx, (0, 0, text))
    version = ctx.memory.version(0)
    (b,) = feed(ctx, (1, 0, text))
    assert same(a, b)
    assert kv.pos_max(ctx, 0) == kv.pos_max(ctx, 1) == len(text) - 1
    assert ctx.memory.version(0) == version
    kv.remove_range(ctx, 0)
    assert (kv.pos_max(ctx, 0), kv.pos_max(ctx, 1)) == (-1, len(text) - 1)
    assert same(feed(ctx, (1, len(text), [7]))[0], feed(ctx, (2, 0, [*text, 7]))[0])


@behaviours("40", "143")
def test_sequences_are_copied_whole_or_in_part(ctx):
    feed(ctx, (0, 0, range(20, 80)))
    assert kv.pos_max(ctx, 2) == -1
    kv.seq_cp(ctx, 0, 2)
    assert kv.pos_max(ctx, 2) == kv.pos_max(ctx, 0) == 59
    kv.seq_cp(ctx, 0, 1, 0, 50)
    assert (kv.pos_max(ctx, 1), kv.pos_max(ctx, 0)) == (49, 59)
    assert same(feed(ctx, (1, 50, [7]))[0], feed(ctx, (3, 0, [*range(20, 70), 7]))[0])


@behaviours("41")
def test_one_sequence_is_kept(ctx):
    for seq in range(8):
        feed(ctx, (seq, 0, range(20, 25 + seq)))
    kv.seq_keep(ctx, 7)
    assert [kv.pos_max(ctx, seq) for seq in range(8)] == [-1] * 7 + [11]


@behaviours("40", "143", "41")
def test_copies_of_recurrent_sequences_are_whole(nano_hybrid, new_context):
    ctx = new_context(nano_hybrid, n_seq_max=4)
    feed(ctx, (0, 0, range(20, 30)))
    kv.seq_cp(ctx, 0, 1)
    with pytest.raises(errors.Unsupported):
        kv.seq_cp(ctx, 0, 2, 0, 5)
    assert [kv.pos_max(ctx, seq) for seq in range(4)] == [9, 9, -1, -1]
    kv.seq_keep(ctx, 1)
    assert [kv.pos_max(ctx, seq) for seq in range(4)] == [-1, 9, -1, -1]


# Starting over


@behaviours("134")
@pytest.mark.parametrize(("sinks", "tail"), [(4, 11), (4, 252), (0, 15), (15, 0)])
def test_starting_over_reads_first_and_last_tokens(nano, new_context, sinks, tail):
    ctx = new_context(nano, n_batch=256, n_seq_max=2)
    text = (tokens(ctx) * 30)[: sinks + tail]
    feed(ctx, (0, 0, range(20, 60)), (1, 0, range(20, 60)))
    assert kv.clear_and_reseed(ctx, text[:sinks], text[sinks:], 64) == len(text)
    assert kv.pos_max(ctx, 0) == len(text) - 1
    assert kv.pos_max(ctx, 1) == -1
    row = ctx.logits(-1, copy=True)
    assert same(row, feed(new_context(nano), (0, 0, text))[0])


@behaviours("134")
def test_there_must_be_something_to_start_over_with(ctx):
    feed(ctx, (0, 0, range(20, 30)))
    for sinks, tail in (([], []), ([-1], [1]), ([1], [len(ctx.vocab)])):
        with pytest.raises(errors.InvalidArgument):
            kv.clear_and_reseed(ctx, sinks, tail)
    with pytest.raises(errors.CacheFull):
        kv.clear_and_reseed(ctx, [1], [2] * 512)
    assert kv.pos_max(ctx, 0) == 9


@behaviours("135")
def test_a_long_text_goes_on_from_its_ends(nano, new_context):
    """Where a text of 1500 tokens goes on, its first 4 and last 1020 are as good."""
    ctx = new_context(nano, n_ctx=2048)
    with BranchStore(ctx) as store:
        branch = store.create(PROMPT, sampling=GREEDY)
        branch.set_bias({ctx.vocab.eos: -np.inf, ctx.vocab.eot: -np.inf})
        while branch.position < 1500:
            branch.step()
        text, whole = branch.tokens, [_log_softmax(branch.logits)]
        for _ in range(32):
            branch.step()
            whole.append(_log_softmax(branch.logits))
        goes_on = branch.tokens[1500:]
    pos = kv.clear_and_reseed(ctx, text[:4], text[-1020:])
    assert kv.pos_max(ctx, 0) == 1023
    parts = [_log_softmax(ctx.logits(-1, copy=True))]
    for i, token in enumerate(goes_on):
        parts.append(_log_softmax(feed(ctx, (0, pos + i, [token]))[0]))
    best = [[set(np.argsort(-row)[:10].tolist()) for row in pair] for pair in zip(whole, parts, strict=True)]
    assert np.mean([len(a & b) for a, b in best]) >= 7
    apart = [((np.exp(p) - np.exp(q)) * (p - q)).sum() / 2 for p, q in zip(whole, parts, strict=True)]
    assert np.mean(apart) < 0.1


def _log_softmax(row: np.ndarray) -> np.ndarray:
    wide = row.astype(np.float64)
    return wide - np.logaddexp.reduce(wide)


@behaviours("135")
def test_branches_go_on_after_starting_over(ctx):
    """They are not part of it: what they hold is read again when they go on."""
    with BranchStore(ctx) as store:
        branch = store.create(PROMPT, sampling=GREEDY)
        twin = branch.fork()
        expected = [twin.step() for _ in range(4)]
        twin.prune()
        kv.clear_and_reseed(ctx, range(20, 24), range(30, 90))
        assert [branch.step() for _ in range(4)] == expected
        assert kv.pos_max(ctx, 0) == 63


# Names


@behaviours("118")
def test_cache_types_have_names(nano, new_context):
    names = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
    assert len({kv.cache_type(name) for name in names}) == len(names)
    for wrong in ("q9_9", "F16", "", "q4_k"):
        with pytest.raises(errors.InvalidArgument):
            kv.cache_type(wrong)
        with pytest.raises(errors.InvalidArgument):
            new_context(nano, type_k=wrong)
