"""Parity over the architectures of llama.cpp: memory kinds, rollbacks and raw states are what they say they are.

The models have random weights, rescaled so that their logits depend on the context; how much is measured for each, and
a difference of logits counts against that. What two contexts are compared on, they have computed in the same batches
wherever that is possible: the shape of a batch alone moves logits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import lloyal
from lloyal import StateSeqFlags
from lloyal.errors import Unsupported
from tests.decode import distance, feed, feed_in_batches
from tests.models import tokens
from tests.parity.architectures import ARCHITECTURES, FULL, Architecture, Contexts, chosen, contexts_of

RING = 4
CONTEXT: dict[str, Any] = {
    "n_ctx": 1024,
    "n_batch": 64,
    "n_ubatch": 64,
    "n_seq_max": 4,
    "n_rs_seq": RING,
    "n_threads": 1,
}
# Without rounding to f16 batches of different shapes can be compared: f32 caches, no flash attention.
EXACT: dict[str, Any] = {"type_k": "f32", "type_v": "f32", "flash_attn": "off"}

PROMPT = tokens(40)
DRAFT = tokens(5, seed=1)
END = len(PROMPT) + len(DRAFT)
NEXT = tokens(3, seed=2)


@pytest.fixture
def contexts(model: lloyal.Model) -> Iterator[Contexts]:
    with contexts_of(model, CONTEXT) as make:
        yield make


def architectures(condition: Callable[[Architecture], bool]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("arch", chosen(condition), indirect=True)


with_memory = architectures(lambda arch: arch.has_memory)
without_memory = architectures(lambda arch: not arch.has_memory)
unified_or_not = pytest.mark.parametrize("unified", [True, False], ids=["unified", "streams"])


def read(ctx: lloyal.Context, draft: list[int] = DRAFT) -> lloyal.Context:
    """The prompt in two batches, then the draft in one."""
    feed_in_batches(ctx, 0, PROMPT, 20)
    if draft:
        feed(ctx, (0, len(PROMPT), draft))
    return ctx


def goes_on(ctx: lloyal.Context, seq_id: int, pos: int) -> np.ndarray:
    """Logits after three more tokens."""
    return feed(ctx, (seq_id, pos, NEXT))[0]


def test_the_table_is_complete(generated: dict[str, dict[str, Any]]) -> None:
    for name, one in generated.items():
        assert ARCHITECTURES[name].memory_class == one["memory_class"], name
    if FULL:
        assert set(generated) == set(ARCHITECTURES)


def test_loads_and_decodes(arch: Architecture, contexts: Contexts) -> None:
    ctx = contexts()
    assert ctx.memory.kind == arch.kind
    row = goes_on(read(ctx), 0, END) if arch.has_memory else feed(ctx, (0, 0, PROMPT))[0]
    assert row.shape == (ctx.model.vocab.n_tokens,)
    assert np.all(np.isfinite(row))
    assert np.std(row) > 0.1


def test_depends_on_its_context(sensitivity: float) -> None:
    assert sensitivity > 0.1


@without_memory
def test_without_memory(contexts: Contexts) -> None:
    ctx = contexts()
    feed(ctx, (0, 0, PROMPT))
    assert ctx.memory.can_rollback(0, 1) is None
    for flags in StateSeqFlags.NONE, StateSeqFlags.ON_DEVICE:
        with pytest.raises(Unsupported, match="no memory"):
            ctx.state_seq_get_data_ext(0, flags)


@with_memory
def test_can_rollback_is_true(arch: Architecture, contexts: Contexts, tolerance: float) -> None:
    for n_back in (1, 3, 4, 5, 6, 20):
        ctx = read(contexts(**EXACT))
        if not arch.has_state:
            expected = "trim"
        elif arch.has_ring and n_back <= min(RING, len(DRAFT) - 1):
            expected = "ring"
        else:
            expected = None
        assert ctx.memory.can_rollback(0, n_back) == expected, f"{n_back} tokens back"
        end = END - n_back
        before = ctx.state_seq_get_data_ext(0)
        if expected is None:
            with pytest.raises(Unsupported):
                ctx.memory.seq_rm(0, end, -1)
            assert ctx.state_seq_get_data_ext(0) == before
            continue
        ctx.memory.seq_rm(0, end, -1)
        state = ctx.state_seq_get_data_ext(0)
        if n_back <= len(DRAFT):
            # A twin that ran the same batches with other tokens in place of those taken back: no trace is left of them.
            twin = read(contexts(**EXACT), DRAFT[: end - len(PROMPT)] + tokens(n_back, seed=3))
            twin.memory.seq_rm(0, end, -1)
            assert twin.state_seq_get_data_ext(0) == state
        # A twin that never read them.
        twin = contexts(**EXACT)
        if n_back <= len(DRAFT):
            read(twin, DRAFT[: end - len(PROMPT)])
            if n_back == len(DRAFT):
                assert twin.state_seq_get_data_ext(0) == state
        else:
            feed_in_batches(twin, 0, PROMPT[:end], 20)
        assert distance(goes_on(ctx, 0, end), goes_on(twin, 0, end)) <= tolerance


@architectures(lambda arch: arch.has_small_window)
def test_rollback_behind_a_wrapped_window(arch: Architecture, contexts: Contexts, tolerance: float) -> None:
    text = tokens(400, seed=5)

    def read_on(ctx: lloyal.Context, end: int) -> lloyal.Context:
        feed_in_batches(ctx, 0, text[: min(end, 396)], 44)
        if end > 396:
            feed(ctx, (0, 396, text[396:end]))
        return ctx

    ctx = read_on(contexts(**EXACT), 400)
    answers = {n_back: ctx.memory.can_rollback(0, n_back) for n_back in (1, 3, 40, 130, 260, 380)}
    assert answers[1] == answers[3] == ("trim" if not arch.has_state else "ring" if arch.has_ring else None)
    assert answers[40] == (None if arch.has_state else "trim")
    assert answers[380] is None
    for n_back, how in answers.items():
        end = 400 - n_back
        if how is None:
            with pytest.raises(Unsupported):
                ctx.memory.seq_rm(0, end, -1)
            continue
        back = read_on(contexts(**EXACT), 400)
        back.memory.seq_rm(0, end, -1)
        twin = read_on(contexts(**EXACT | {"swa_full": True}), end)
        assert distance(goes_on(back, 0, end), goes_on(twin, 0, end)) <= tolerance


@with_memory
@unified_or_not
def test_a_fork_is_saved_at_once_and_goes_on(contexts: Contexts, tolerance: float, unified: bool) -> None:
    ctx, twin, other = (contexts(kv_unified=unified) for _ in range(3))
    read(ctx)
    read(twin)
    ctx.memory.seq_cp(0, 2)
    other.state_seq_set_data_ext(ctx.state_seq_get_data_ext(2), 0)
    assert other.state_seq_get_data_ext(0) == twin.state_seq_get_data_ext(0)
    expected = goes_on(twin, 0, END)
    assert distance(goes_on(ctx, 2, END), expected) <= tolerance
    assert distance(goes_on(ctx, 0, END), expected) <= tolerance


@with_memory
@unified_or_not
def test_host_round_trip(contexts: Contexts, tolerance: float, unified: bool) -> None:
    ctx, other = (contexts(kv_unified=unified) for _ in range(2))
    state = read(ctx).state_seq_get_data_ext(0)
    assert other.state_seq_set_data_ext(state, 0) == len(state)
    assert other.state_seq_get_data_ext(0) == state
    # Into another sequence, beside its original.
    ctx.state_seq_set_data_ext(state, 2)
    other.state_seq_set_data_ext(ctx.state_seq_get_data_ext(2), 0)
    assert other.state_seq_get_data_ext(0) == state
    expected = goes_on(ctx, 0, END)
    assert distance(goes_on(ctx, 2, END), expected) <= tolerance
    assert distance(goes_on(other, 0, END), expected) <= tolerance


@with_memory
@unified_or_not
def test_device_round_trip(contexts: Contexts, tolerance: float, unified: bool) -> None:
    flags = StateSeqFlags.ON_DEVICE
    ctx, other = (contexts(kv_unified=unified) for _ in range(2))
    host = read(ctx).state_seq_get_data_ext(0)
    device = ctx.state_seq_get_data_ext(0, flags)
    # The tensors outlive what happens to the sequence.
    ctx.memory.seq_rm(0, -1, -1)
    feed(ctx, (0, 0, tokens(30, seed=4)))
    for dest in (0, 2):
        ctx.state_seq_set_data_ext(device, dest, flags)
        other.state_seq_set_data_ext(ctx.state_seq_get_data_ext(dest), 0)
        assert other.state_seq_get_data_ext(0) == host
    expected = goes_on(other, 0, END)
    for dest in (0, 2):
        assert distance(goes_on(ctx, dest, END), expected) <= tolerance


def first_row_that_differs(a: bytes, b: bytes) -> slice:
    """The first stretch of 32 bytes or more in which two states differ: one row of a tensor."""
    assert len(a) == len(b)
    at = np.flatnonzero(np.frombuffer(a, np.uint8) != np.frombuffer(b, np.uint8))
    for stretch in np.split(at, np.flatnonzero(np.diff(at) > 8) + 1):
        if stretch[-1] - stretch[0] >= 32:
            return slice(int(stretch[0]), int(stretch[-1]) + 1)
    raise AssertionError("the states do not differ in a row")


@with_memory
def test_one_wrong_row_shows(contexts: Contexts, tolerance: float) -> None:
    # The comparisons above can fail: a state with one row of another text in it is told from the right one by its bytes
    # and by the logits that follow.
    right = read(contexts())
    state = right.state_seq_get_data_ext(0)
    text = PROMPT + DRAFT
    changed = [*text[:30], (text[30] + 1) % 128, *text[31:]]
    stranger = contexts()
    for start, end in itertools.pairwise((0, 20, 40, 45)):
        feed(stranger, (0, start, changed[start:end]))
    row = first_row_that_differs(state, stranger.state_seq_get_data_ext(0))
    wrong = bytearray(state)
    wrong[row] = stranger.state_seq_get_data_ext(0)[row]
    ctx = contexts()
    ctx.state_seq_set_data_ext(wrong, 0)
    assert ctx.state_seq_get_data_ext(0) != state
    assert distance(goes_on(ctx, 0, END), goes_on(right, 0, END)) > tolerance
