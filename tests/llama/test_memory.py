"""What `Context.memory` promises: the kind, and a true answer to "can these tokens be taken back?".

Wherever llama.cpp says yes and computes something else, the expected answer here is no, and the reference for a yes is
a twin context that never saw what was taken back.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import lloyal
from lloyal import StateSeqFlags
from lloyal.errors import Aborted, InvalidArgument, InvalidBatch, Unsupported
from tests.decode import distance, feed, feed_in_batches
from tests.models import CHUNK, KINDS, NAMES, WINDOW, tiny, tokens

RING = 4
RING_MODELS = ("qwen35", "lfm2", "lfm2-swa")
# f32 caches and no flash attention: only the order of additions moves a logit, by under 1e-4.
EXACT: dict[str, Any] = {"type_k": "f32", "type_v": "f32", "flash_attn": "off"}
TOLERANCE = 1e-3

NewContext = Callable[..., lloyal.Context]


@pytest.fixture(scope="module")
def model() -> Iterator[Callable[[str], lloyal.Model]]:
    """Tiny models by name, each loaded once."""
    loaded: dict[str, lloyal.Model] = {}

    def load(name: str) -> lloyal.Model:
        if name not in loaded:
            loaded[name] = lloyal.Model(tiny(name))
        return loaded[name]

    for name in NAMES:
        load(name)
    yield load
    for opened in loaded.values():
        opened.close()


Models = Callable[[str], lloyal.Model]


def state_of(ctx: lloyal.Context, seq_id: int) -> bytes:
    """The state of a sequence as bytes that do not depend on its id, its stream or its cells."""
    with lloyal.Context(ctx.model, params=ctx.params) as other:
        other.state_seq_set_data_ext(ctx.state_seq_get_data_ext(seq_id), 0)
        return other.state_seq_get_data_ext(0)


@pytest.mark.parametrize("name", NAMES)
def test_kind_is_what_the_layers_need(name: str, model: Models, new_context: NewContext) -> None:
    assert new_context(model(name)).memory.kind == KINDS[name]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_take_back(name: str, model: Models, new_context: NewContext) -> None:
    memory = new_context(model(name), n_rs_seq=RING).memory
    assert memory.can_rollback(0, 0) is None
    assert memory.can_rollback(0, 1) is None


@pytest.mark.parametrize("name", NAMES)
def test_all_or_nothing_can_always_go(name: str, model: Models, new_context: NewContext) -> None:
    ctx, twin = new_context(model(name), **EXACT), new_context(model(name), **EXACT)
    feed(ctx, (0, 0, tokens(20)))
    assert ctx.memory.can_rollback(0, 0) == "trim"
    assert ctx.memory.can_rollback(0, 20) == "trim"
    assert ctx.memory.can_rollback(0, 21) is None
    assert ctx.memory.can_rollback(0, -1) is None
    ctx.memory.seq_rm(0, 0, -1)
    assert ctx.memory.seq_pos_max(0) == -1
    other = tokens(12, seed=1)
    assert np.array_equal(feed(ctx, (0, 0, other)), feed(twin, (0, 0, other)))


@pytest.mark.parametrize("seq_id", [-1, 2, 300])
def test_a_sequence_that_is_not_there(seq_id: int, model: Models, new_context: NewContext) -> None:
    memory = new_context(model("llama"), n_seq_max=2).memory
    with pytest.raises(InvalidArgument, match=str(seq_id)):
        memory.can_rollback(seq_id, 1)


# The recurrent rollback ring. It stores a state per token of the last batch except the one before its first token, so
# batches of T tokens can go back T - 1. llama.cpp refuses more than n_rs_seq, and else says yes: with 3 tokens it takes
# back 3 and computes with a state that is something else (logits off by 4 on these models).


@pytest.mark.parametrize("name", RING_MODELS)
@pytest.mark.parametrize(
    ("batches", "n_back", "possible"),
    [
        ([5], 1, True),
        ([5], 2, True),
        ([5], 3, True),
        ([5], 4, True),
        ([5], 5, True),  # everything
        ([3, 5], 4, True),
        ([3, 5], 5, False),
        ([4, 3], 2, True),
        ([4, 3], 3, False),
        ([4, 1], 1, False),
        ([5, 1], 2, False),
        ([2, 9], 4, True),
        ([2, 9], 5, False),
        ([2, 40], 4, True),  # two micro-batches: the last 1 + n_rs_seq tokens stay together
        ([2, 35], 4, True),
        ([2, 34], 4, True),
    ],
)
def test_the_ring_goes_back_over_what_it_stored(
    name: str, batches: list[int], n_back: int, possible: bool, model: Models, new_context: NewContext
) -> None:
    parameters = EXACT | {"n_rs_seq": RING, "n_ubatch": 32}
    ctx, twin = new_context(model(name), **parameters), new_context(model(name), **parameters)
    text = tokens(sum(batches))
    for start, n in zip(np.cumsum([0, *batches[:-1]]).tolist(), batches, strict=True):
        feed(ctx, (0, start, text[start : start + n]))
    end = len(text) - n_back
    expected = ("trim" if end == 0 else "ring") if possible else None
    assert ctx.memory.can_rollback(0, n_back) == expected
    if not possible:
        before = state_of(ctx, 0)
        with pytest.raises(Unsupported, match="restore a checkpoint"):
            ctx.memory.seq_rm(0, end, -1)
        assert state_of(ctx, 0) == before
        return
    ctx.memory.seq_rm(0, end, -1)
    assert ctx.memory.seq_pos_max(0) == end - 1
    if end:
        feed_in_batches(twin, 0, text[:end], 32)
    for i, token in enumerate(tokens(3, seed=1)):
        assert distance(*feed(ctx, (0, end + i, [token])), *feed(twin, (0, end + i, [token]))) < TOLERANCE


@pytest.mark.parametrize("name", ["mamba2", "falcon-h1"])
def test_no_ring_where_the_architecture_has_none(name: str, model: Models, new_context: NewContext) -> None:
    ctx = new_context(model(name), n_rs_seq=RING)
    assert ctx.n_rs_seq == 0
    feed(ctx, (0, 0, tokens(5)))
    assert ctx.memory.can_rollback(0, 1) is None


@pytest.mark.parametrize("name", RING_MODELS)
def test_one_rollback_until_the_next_decode(name: str, model: Models, new_context: NewContext) -> None:
    ctx, twin = (new_context(model(name), n_rs_seq=RING, **EXACT) for _ in range(2))
    text = tokens(20)
    feed(ctx, (0, 0, text[:5]))
    ctx.memory.seq_rm(0, 4, -1)
    assert ctx.memory.can_rollback(0, 1) is None
    feed(ctx, (0, 4, text[4:7]))
    assert ctx.memory.can_rollback(0, 2) == "ring"
    ctx.memory.seq_rm(0, 5, -1)
    feed(twin, (0, 0, text[:5]))
    assert distance(*feed(ctx, (0, 5, text[5:9])), *feed(twin, (0, 5, text[5:9]))) < TOLERANCE


@pytest.mark.parametrize("name", RING_MODELS)
def test_states_that_change_places_lose_their_ring(name: str, model: Models, new_context: NewContext) -> None:
    # Sequences 0 and 2 are computed side by side, so the state of 1 makes room; its snapshots stay behind.
    ctx, twin = (new_context(model(name), n_rs_seq=RING, n_seq_max=4, **EXACT) for _ in range(2))
    for seq in range(3):
        feed(ctx, (seq, 0, tokens(5, seq)))
        feed(twin, (seq, 0, tokens(5, seq)))
    assert ctx.memory.can_rollback(1, 2) == "ring"
    feed(ctx, (0, 5, [1]), (2, 5, [2]))
    feed(twin, (0, 5, [1]), (2, 5, [2]))
    assert ctx.memory.can_rollback(1, 2) is None
    with pytest.raises(Unsupported):
        ctx.memory.seq_rm(1, 3, -1)
    assert np.array_equal(feed(ctx, (1, 5, [3])), feed(twin, (1, 5, [3])))


@pytest.mark.parametrize("name", RING_MODELS)
def test_a_neighbour_that_decodes_leaves_the_ring_alone(name: str, model: Models, new_context: NewContext) -> None:
    ctx, twin = (new_context(model(name), n_rs_seq=RING, n_seq_max=4, **EXACT) for _ in range(2))
    text = tokens(5)
    feed(ctx, (0, 0, text))
    for seq in (1, 2):
        feed(ctx, (seq, 0, tokens(5, seq)))
    assert ctx.memory.can_rollback(0, 3) == "ring"
    ctx.memory.seq_rm(0, 2, -1)
    feed(twin, (0, 0, text[:2]))
    assert distance(*feed(ctx, (0, 2, [7])), *feed(twin, (0, 2, [7]))) < TOLERANCE


@pytest.mark.parametrize("name", RING_MODELS)
def test_rings_of_one_verify_batch(name: str, model: Models, new_context: NewContext) -> None:
    # Drafts of different lengths in one batch, then each sequence goes back as far as it says it can.
    ctx, twin = (new_context(model(name), n_rs_seq=RING, n_seq_max=4, **EXACT) for _ in range(2))
    lengths = {0: 5, 1: 3, 2: 4, 3: 2}
    for seq in lengths:
        feed(ctx, (seq, 0, tokens(6, seq)))
        feed(twin, (seq, 0, tokens(6, seq)))
    drafts = {seq: tokens(n, 10 + seq) for seq, n in lengths.items()}
    feed(ctx, *((seq, 6, draft) for seq, draft in drafts.items()))
    deepest = {
        seq: max((n for n in range(1, 6) if ctx.memory.can_rollback(seq, n) == "ring"), default=0) for seq in drafts
    }
    assert sum(depth > 0 for depth in deepest.values()) >= 2
    for seq, draft in drafts.items():
        kept = len(draft) - deepest[seq]
        if deepest[seq]:
            ctx.memory.seq_rm(seq, 6 + kept, -1)
        feed(twin, (seq, 6, draft[:kept]))
        assert distance(*feed(ctx, (seq, 6 + kept, [9])), *feed(twin, (seq, 6 + kept, [9]))) < TOLERANCE


@pytest.mark.parametrize("name", RING_MODELS)
@pytest.mark.parametrize("unified", [True, False], ids=["unified", "streams"])
def test_a_fork_with_a_rollback_pending(name: str, unified: bool, model: Models, new_context: NewContext) -> None:
    # llama.cpp's child takes the state from before the rollback.
    ctx, twin = (new_context(model(name), n_rs_seq=RING, kv_unified=unified, **EXACT) for _ in range(2))
    text = tokens(6)
    feed(ctx, (0, 0, text))
    ctx.memory.seq_rm(0, 3, -1)
    ctx.memory.seq_cp(0, 1)
    [expected] = feed(twin, (0, 0, text[:3])) and feed(twin, (0, 3, [5]))
    [child] = feed(ctx, (1, 3, [5]))
    [parent] = feed(ctx, (0, 3, [5]))
    assert distance(child, expected) < TOLERANCE
    assert distance(parent, expected) < TOLERANCE


@pytest.mark.parametrize("name", RING_MODELS)
@pytest.mark.parametrize("flags", [StateSeqFlags.NONE, StateSeqFlags.ON_DEVICE])
def test_a_save_with_a_rollback_pending(
    name: str, flags: StateSeqFlags, model: Models, new_context: NewContext
) -> None:
    ctx, twin = (new_context(model(name), n_rs_seq=RING, **EXACT) for _ in range(2))
    text = tokens(6)
    feed(ctx, (0, 0, text))
    ctx.memory.seq_rm(0, 3, -1)
    ctx.state_seq_set_data_ext(ctx.state_seq_get_data_ext(0, flags), 1, flags)
    feed(twin, (0, 0, text[:3]))
    assert distance(*feed(ctx, (1, 3, [5])), *feed(twin, (0, 3, [5]))) < TOLERANCE


# Sliding windows. Rows outside the window are reused when the cache is full, and are not in a saved state.


@pytest.mark.parametrize("n_read", [100, 300, 517])
def test_a_window_goes_back_while_its_rows_are_there(n_read: int, model: Models, new_context: NewContext) -> None:
    parameters = EXACT | {"n_ctx": 1024, "n_batch": 32, "n_ubatch": 32, "n_seq_max": 1}
    n_cells = 256  # llama.cpp gives the window cache 256 cells for this
    text = tokens(n_read)
    ctx = new_context(model("gemma3"), **parameters)
    feed_in_batches(ctx, 0, text, 32)
    for n_back in range(1, n_read):
        first_needed = max(0, n_read - n_back - WINDOW + 1)
        answer = ctx.memory.can_rollback(0, n_back)
        if n_read <= n_cells or first_needed >= n_read - n_cells + 32:
            assert answer == "trim", f"{n_back} tokens back"
        elif first_needed < n_read - n_cells:
            assert answer is None, f"{n_back} tokens back"
    possible = [n for n in range(1, n_read) if ctx.memory.can_rollback(0, n)]
    for n_back in {possible[0], possible[len(possible) // 2], possible[-1]}:
        end = n_read - n_back
        ctx.memory.clear()
        feed_in_batches(ctx, 0, text, 32)
        ctx.memory.seq_rm(0, end, -1)
        twin = new_context(model("gemma3"), **parameters | {"swa_full": True})
        feed_in_batches(twin, 0, text[:end], 32)
        for i, token in enumerate(tokens(3, seed=1)):
            assert distance(*feed(ctx, (0, end + i, [token])), *feed(twin, (0, end + i, [token]))) < TOLERANCE


def test_rows_of_a_window_that_neighbours_took(model: Models, new_context: NewContext) -> None:
    # Positions 20 to 43 get lower cells than 0 to 19, and the search for free cells starts below them: a neighbour
    # takes the cells of 20 to 24. llama.cpp drops the older rows with them: the smallest position tells what is there.
    parameters = EXACT | {"n_ctx": 1024, "n_ubatch": 32}
    ctx, twin = (new_context(model("gemma3"), **parameters) for _ in range(2))
    text = tokens(44)
    feed(ctx, (2, 0, [1]))
    feed_in_batches(ctx, 1, tokens(199, 1), 20)
    feed(ctx, (0, 0, text[:20]))
    ctx.memory.seq_rm(1, -1, -1)
    feed(ctx, (0, 20, text[20:]))
    ctx.memory.seq_rm(2, -1, -1)
    feed_in_batches(ctx, 3, tokens(6, 3), 1)
    assert [n for n in range(1, 44) if ctx.memory.can_rollback(0, n)] == [1, 2, 3, 4]
    ctx.memory.seq_rm(0, 40, -1)
    feed(twin, (0, 0, text[:40]))
    more = tokens(3, seed=4)
    assert distance(*feed(ctx, (0, 40, more)), *feed(twin, (0, 40, more))) < TOLERANCE


def test_a_full_window_cache_always_goes_back(model: Models, new_context: NewContext) -> None:
    ctx = new_context(model("gemma3"), n_ctx=1024, swa_full=True)
    feed_in_batches(ctx, 0, tokens(400), 100)
    assert {ctx.memory.can_rollback(0, n) for n in range(1, 401)} == {"trim"}


@pytest.mark.parametrize("flags", [StateSeqFlags.NONE, StateSeqFlags.ON_DEVICE])
@pytest.mark.parametrize(
    ("name", "first", "n_possible"),
    [
        # The state holds the rows its last token sees, 16 of them; after one token back the next sees just those.
        ("gemma3", 0, 1),
        # The last token's chunk starts at 8192, and a token there needs nothing from before.
        ("llama4", CHUNK - 12, 18),
    ],
)
def test_after_a_restore_only_the_window_is_left(
    name: str, first: int, n_possible: int, flags: StateSeqFlags, model: Models, new_context: NewContext
) -> None:
    ctx, twin = (new_context(model(name), **EXACT) for _ in range(2))
    text = tokens(30)
    for context in (ctx, twin):
        feed_in_batches(context, 0, text, 15, pos0=first)
    end = first + len(text)
    assert {ctx.memory.can_rollback(0, n) for n in range(1, 31)} == {"trim"}
    state = ctx.state_seq_get_data_ext(0, flags)
    ctx.state_seq_set_data_ext(state, 1, flags)
    possible = [n for n in range(1, 30) if ctx.memory.can_rollback(1, n)]
    assert possible == list(range(1, 1 + n_possible))
    with pytest.raises(Unsupported, match="what the earlier tokens need is gone"):
        ctx.memory.seq_rm(1, end - n_possible - 1, -1)
    for n_back in possible:
        ctx.state_seq_set_data_ext(state, 1, flags)
        ctx.memory.seq_rm(1, end - n_back, -1)
        twin.memory.seq_rm(0, end - n_back, -1)
        assert distance(*feed(ctx, (1, end - n_back, [3])), *feed(twin, (0, end - n_back, [3]))) < TOLERANCE


def test_a_chunk_goes_back_over_its_start(model: Models, new_context: NewContext) -> None:
    ctx, twin = (new_context(model("llama4"), **EXACT) for _ in range(2))
    text = tokens(40)
    feed_in_batches(ctx, 0, text, 20, pos0=CHUNK - 20)
    assert ctx.memory.can_rollback(0, 25) == "trim"
    ctx.memory.seq_rm(0, CHUNK - 5, -1)
    feed(twin, (0, CHUNK - 20, text[:15]))
    assert distance(*feed(ctx, (0, CHUNK - 5, [3])), *feed(twin, (0, CHUNK - 5, [3]))) < TOLERANCE


@pytest.mark.parametrize("name", ["gemma3", "lfm2-swa"])
@pytest.mark.parametrize("n_children", [1, 3, 7])
def test_a_fork_of_a_wrapped_window_decodes_on(
    name: str, n_children: int, model: Models, new_context: NewContext
) -> None:
    # llama.cpp never reuses cells that two sequences share, however far outside the window, and finds no room.
    parameters = EXACT | {"n_ctx": 2048, "n_batch": 64, "n_ubatch": 64, "n_seq_max": 8}
    ctx, twin = (new_context(model(name), **parameters) for _ in range(2))
    text = tokens(600)
    for context in (ctx, twin):
        feed_in_batches(context, 0, text, 64)
    for child in range(1, 1 + n_children):
        ctx.memory.seq_cp(0, child)
    for i, token in enumerate(tokens(40, seed=1)):
        rows = feed(ctx, *((seq, 600 + i, [token]) for seq in range(1 + n_children)))
        [expected] = feed(twin, (0, 600 + i, [token]))
        assert max(distance(row, expected) for row in rows) < TOLERANCE


@pytest.mark.parametrize("name", ["gemma3", "lfm2-swa"])
def test_a_large_batch_of_several_sequences_keeps_its_windows(
    name: str, model: Models, new_context: NewContext
) -> None:
    # llama.cpp plans all micro-batches first and, once cells are reused, drops rows that the later ones still need: the
    # logits of a whole sequence come out wrong (by 6 on gemma3). There a batch is computed in slices, or refused if its
    # outputs lie in several.
    parameters = EXACT | {"n_ctx": 4096, "n_batch": 2048, "n_ubatch": 128, "n_seq_max": 4}
    ctx, twin = new_context(model(name), **parameters), new_context(model(name), **parameters | {"swa_full": True})
    texts = {seq: tokens(450, seq) for seq in range(3)}
    for context in (ctx, twin):
        for seq, text in texts.items():
            feed(context, (seq, 0, text[:50]))
    parts = [(seq, 50, text[50:]) for seq, text in texts.items()]
    try:
        rows = feed(ctx, *parts)
    except InvalidBatch:
        assert [ctx.memory.seq_pos_max(seq) for seq in texts] == [49] * 3
        one = lloyal.Batch()  # one output, in the last slice
        for seq, start, text in parts:
            one.extend(text, start, seq, "last" if seq == 2 else False)
        ctx.decode(one)
        assert distance(ctx.logits(len(one) - 1, copy=True), feed(twin, *parts)[-1]) < TOLERANCE
    else:
        assert max(distance(*pair) for pair in zip(rows, feed(twin, *parts), strict=True)) < TOLERANCE
    more = [(seq, 450, tokens(40, seed=9)) for seq in texts]
    assert max(distance(*pair) for pair in zip(feed(ctx, *more), feed(twin, *more), strict=True)) < TOLERANCE


# Forks.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("unified", [True, False], ids=["unified", "streams"])
@pytest.mark.parametrize("flags", [StateSeqFlags.NONE, StateSeqFlags.ON_DEVICE])
def test_a_fork_can_be_saved_at_once(
    name: str, unified: bool, flags: StateSeqFlags, model: Models, new_context: NewContext
) -> None:
    # With a stream per sequence llama.cpp copies at the next decode, and a save before that stores other bytes.
    ctx = new_context(model(name), kv_unified=unified)
    feed(ctx, (0, 0, tokens(40)))
    expected = state_of(ctx, 0)
    ctx.memory.seq_cp(0, 1)
    assert state_of(ctx, 1) == expected
    ctx.state_seq_set_data_ext(ctx.state_seq_get_data_ext(1, flags), 2, flags)
    assert state_of(ctx, 2) == expected


@pytest.mark.parametrize("unified", [True, False], ids=["unified", "streams"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2", "mamba2"])
def test_a_parent_that_changes_does_not_change_its_child(
    name: str, unified: bool, model: Models, new_context: NewContext
) -> None:
    ctx, twin = (new_context(model(name), kv_unified=unified, **EXACT) for _ in range(2))
    feed(ctx, (0, 0, tokens(20)))
    feed(ctx, (2, 0, tokens(25, 2)))
    feed(twin, (0, 0, tokens(20)))
    ctx.memory.seq_cp(0, 1)
    ctx.state_seq_set_data_ext(ctx.state_seq_get_data_ext(2), 0)
    assert distance(*feed(ctx, (1, 20, [3])), *feed(twin, (0, 20, [3]))) < TOLERANCE


@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2", "mamba2"])
def test_a_fork_needs_a_free_destination(name: str, model: Models, new_context: NewContext) -> None:
    ctx = new_context(model(name))
    feed(ctx, (0, 0, tokens(8)))
    feed(ctx, (1, 0, tokens(8, 1)))
    with pytest.raises(InvalidArgument, match=r"sequence 1 (already )?holds .*seq_rm them first"):
        ctx.memory.seq_cp(0, 1)


@pytest.mark.parametrize(("name", "unified"), [("mamba2", True), ("lfm2", True), ("llama", False), ("gemma3", False)])
def test_part_of_a_sequence_cannot_always_be_forked(
    name: str, unified: bool, model: Models, new_context: NewContext
) -> None:
    # llama.cpp copies the whole state whatever the range, or aborts.
    ctx = new_context(model(name), kv_unified=unified)
    feed(ctx, (0, 0, tokens(8)))
    with pytest.raises(Unsupported, match="positions 0 to 3 of sequence 0"):
        ctx.memory.seq_cp(0, 1, 0, 4)
    assert ctx.memory.seq_pos_max(1) == -1


def test_part_of_an_attention_cache_can_be_forked(model: Models, new_context: NewContext) -> None:
    ctx, twin = (new_context(model("llama"), **EXACT) for _ in range(2))
    feed(ctx, (0, 0, tokens(20)))
    feed(twin, (0, 0, tokens(20)[:9]))
    ctx.memory.seq_cp(0, 1, 0, 9)
    assert distance(*feed(ctx, (1, 9, [3])), *feed(twin, (0, 9, [3]))) < TOLERANCE


def test_a_sequence_that_starts_late_forks_between_streams() -> None:
    # llama.cpp asserts that the range starts at 0; in a process of its own, since a failure would end this one.
    script = textwrap.dedent("""
        import sys
        import lloyal
        with lloyal.Model(sys.argv[1]) as model:
            for parameters in ({"kv_unified": False}, {"kv_unified": True}):
                with lloyal.Context(model, n_ctx=512, n_threads=1, **parameters) as ctx:
                    batch = lloyal.Batch()
                    batch.extend([1, 2, 3], 7, 0, "last")
                    ctx.decode(batch)
                    ctx.memory.seq_cp(0, 1)
                    print(ctx.memory.seq_pos_min(1), ctx.memory.seq_pos_max(1))
    """)
    for name in ("llama", "gemma3", "lfm2", "mamba2"):
        command = [sys.executable, "-P", "-c", script, str(tiny(name))]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        last = [line.split()[1] for line in run.stdout.splitlines()]
        assert last == ["9", "9"]


# Aborts.


@pytest.mark.parametrize("name", ["llama", "gemma3", "mamba2", "qwen35", "lfm2"])
def test_what_an_abort_leaves_is_right(name: str, model: Models, new_context: NewContext) -> None:
    # A recurrent state that was being computed, or moved for a neighbour, is neither old nor new: such a sequence must
    # be empty. What else is left must go on as if freshly read.
    parameters = EXACT | {"n_ctx": 2048, "n_batch": 1024, "n_ubatch": 1024 if name == "gemma3" else 128, "n_seq_max": 4}
    ctx, twin = (new_context(model(name), **parameters) for _ in range(2))
    prompts = {seq: tokens(20, seq) for seq in range(3)}
    long = {seq: tokens(400, 10 + seq) for seq in (0, 2)}
    aborts = 0
    for attempt in range(200):
        ctx.memory.clear()
        for seq, prompt in prompts.items():
            feed(ctx, (seq, 0, prompt))
        timer = threading.Timer(1e-3 * (attempt % 8), ctx.abort)
        timer.start()
        try:
            feed(ctx, *((seq, 20, text) for seq, text in long.items()))
        except Aborted:
            aborts += 1
        else:
            continue
        finally:
            timer.join()
        for seq, prompt in prompts.items():
            end = ctx.memory.seq_pos_max(seq) + 1
            rows = ctx.memory.provenance(seq)
            assert (rows[-1][1] if rows else 0) == end
            text = (prompt + long.get(seq, []))[:end]
            twin.memory.clear()
            if text:
                feed_in_batches(twin, 0, text, 128)
            assert distance(*feed(ctx, (seq, end, [3])), *feed(twin, (0, end, [3]))) < TOLERANCE
        if aborts == 3:
            return
    pytest.fail(f"{aborts} of 200 decodes could be aborted")


# Other operations.


def test_rows_in_the_middle_can_leave_an_attention_cache(model: Models, new_context: NewContext) -> None:
    ctx = new_context(model("llama"), **EXACT)
    feed(ctx, (0, 0, tokens(30)))
    ctx.memory.seq_rm(0, 10, 20)
    assert [run[:2] for run in ctx.memory.provenance(0)] == [(0, 10), (20, 30)]
    # llama.cpp keeps the positions of the rest: the same as masking the rows out, which a fork of two parts does.
    feed(ctx, (1, 0, tokens(30)))
    ctx.memory.seq_cp(1, 2, 0, 10)
    ctx.memory.seq_cp(1, 2, 20, 30)
    rows = feed(ctx, (0, 30, [3]), (2, 30, [3]))
    assert distance(*rows) < TOLERANCE


@pytest.mark.parametrize("name", ["mamba2", "lfm2", "qwen35"])
def test_rows_in_the_middle_cannot_leave_a_recurrent_state(name: str, model: Models, new_context: NewContext) -> None:
    ctx = new_context(model(name), n_rs_seq=RING)
    feed(ctx, (0, 0, tokens(30)))
    before = state_of(ctx, 0)
    with pytest.raises(Unsupported, match="positions 10 to 19 of sequence 0"):
        ctx.memory.seq_rm(0, 10, 20)
    assert state_of(ctx, 0) == before


@pytest.mark.parametrize("name", NAMES)
def test_removing_every_sequence(name: str, model: Models, new_context: NewContext) -> None:
    # llama.cpp refuses this for recurrent memory.
    ctx = new_context(model(name))
    for seq in range(3):
        feed(ctx, (seq, 0, tokens(5, seq)))
    ctx.memory.seq_rm(-1)
    assert [ctx.memory.seq_pos_max(seq) for seq in range(3)] == [-1, -1, -1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("unified", [True, False], ids=["unified", "streams"])
def test_keeping_one_sequence(name: str, unified: bool, model: Models, new_context: NewContext) -> None:
    # llama.cpp cleans only the kept sequence's own stream.
    ctx = new_context(model(name), kv_unified=unified)
    for seq in range(3):
        feed(ctx, (seq, 0, tokens(5, seq)))
    before = state_of(ctx, 1)
    ctx.memory.seq_keep(1)
    assert [ctx.memory.seq_pos_max(seq) for seq in range(3)] == [-1, 4, -1]
    assert state_of(ctx, 1) == before


def test_shifting_moves_rows_and_keeps_what_they_say(model: Models, new_context: NewContext) -> None:
    # RoPE is relative: rows moved by 5 and a token 5 later give the same logits.
    ctx, twin = (new_context(model("llama"), **EXACT) for _ in range(2))
    text = tokens(20)
    for context in (ctx, twin):
        feed(context, (0, 0, text))
    ctx.memory.seq_add(0, 0, -1, 5)
    assert (ctx.memory.seq_pos_min(0), ctx.memory.seq_pos_max(0)) == (5, 24)
    assert distance(*feed(ctx, (0, 25, [3])), *feed(twin, (0, 20, [3]))) < TOLERANCE


@pytest.mark.parametrize("name", ["mamba2", "lfm2", "qwen35", "falcon-h1"])
def test_shifting_where_it_would_be_wrong(name: str, model: Models, new_context: NewContext) -> None:
    ctx = new_context(model(name))
    feed(ctx, (0, 0, tokens(8)))
    assert not ctx.memory.can_shift
    before = state_of(ctx, 0)
    with pytest.raises(Unsupported, match="seq_add"):
        ctx.memory.seq_add(0, 0, -1, 5)
    with pytest.raises(Unsupported, match="seq_div"):
        ctx.memory.seq_div(0, 0, -1, 2)
    assert state_of(ctx, 0) == before
