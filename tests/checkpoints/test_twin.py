"""Checkpoints of two sequences that interleave, trim and decode again, against a twin context that takes none.

The twin runs the same batches and trims, so its rows are the same to the last bit, and what llama.cpp writes of its
sequences says what every checkpoint must hold. The same bits in the same cells give the same logits: that is demanded
in an empty context and among scattered cells, where llama.cpp's own copy of the twin's state is placed by the same
calls. In the context that took the checkpoints a restore shares the rows it finds, and sums run in another order; what
that alone changes is measured by putting states of the twin into cells in random orders.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import os
import random
from collections.abc import Iterator

import numpy as np
import pytest

import lloyal
from tests.checkpoints.raw_state import RawState, parse
from tests.decode import distance, feed
from tests.models import KINDS, N_VOCAB, WINDOW, tiny

FULL = bool(os.environ.get("LLOYAL_TEST_FULL"))
MODELS = ("llama", "gemma3", "mamba2", "lfm2", "lfm2-swa", "falcon-h1", "qwen35")
N_CHECKPOINTS = 64 if FULL else 8
N_CTX = 3072
LONGEST = 200
# No noise may exceed this part of the largest logit.
NOISE = 2e-2


@dataclasses.dataclass(frozen=True)
class Option:
    model: str
    type_k: str
    type_v: str
    flash: bool
    unified: bool

    def __str__(self) -> str:
        flash, unified = "fa" if self.flash else "no_fa", "unified" if self.unified else "streams"
        return f"{self.model}-{self.type_k}-{self.type_v}-{flash}-{unified}"

    @property
    def mrope(self) -> bool:
        return self.model == "qwen35"


def options() -> list[Option]:
    """All that llama.cpp allows: quantized V needs flash attention, recurrent states have one type."""
    every = []
    for model, flash, unified in itertools.product(MODELS, (True, False), (True, False)):
        kinds = [("f16", "f16")]
        if model != "mamba2":
            kinds += [("q8_0", "q8_0"), ("q4_0", "q4_0")] if flash else [("q8_0", "f16"), ("q4_0", "f16")]
        every += [Option(model, k, v, flash, unified) for k, v in kinds]
    if FULL:
        return every
    extra = {
        "llama-q8_0-q8_0-fa-unified",
        "llama-q4_0-f16-no_fa-streams",
        "gemma3-q4_0-q4_0-fa-streams",
        "lfm2-f16-f16-no_fa-unified",
        "falcon-h1-q8_0-q8_0-fa-streams",
        "qwen35-f16-f16-no_fa-streams",
    }
    return [o for o in every if str(o).endswith("-f16-f16-fa-unified") or str(o) in extra]


def make(model: lloyal.Model, option: Option, n_seq_max: int) -> lloyal.Context:
    return lloyal.Context(
        model,
        n_ctx=N_CTX,
        n_batch=256,
        n_ubatch=32,
        n_seq_max=n_seq_max,
        type_k=option.type_k,
        type_v=option.type_v,
        flash_attn=option.flash,
        kv_unified=option.unified,
        n_threads=1,
        n_threads_batch=1,
    )


def state_of(ctx: lloyal.Context, seq_id: int, option: Option) -> RawState:
    """The rows of a sequence in order of position, by way of llama.cpp alone."""
    return parse(ctx.state_seq_get_data_ext(seq_id), KINDS[option.model], option.mrope)


@dataclasses.dataclass(frozen=True)
class Step:
    """Tokens to decode in one batch, by sequence, or rows to give up."""

    feed: tuple[tuple[int, int, tuple[int, ...]], ...] = ()
    trim: tuple[int, int] | None = None

    def run(self, ctx: lloyal.Context) -> None:
        if self.trim:
            ctx.memory.seq_rm(*self.trim, -1)
        else:
            feed(ctx, *self.feed)


class Schedule:
    """Random work on sequences 0 and 1: each move is one or more steps, after which a checkpoint may be taken."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.history: dict[int, list[int]] = {0: [], 1: []}

    def tokens(self, most: int) -> tuple[int, ...]:
        return tuple(self.rng.randrange(N_VOCAB) for _ in range(self.rng.randint(1, most)))

    def moves(self, ctx: lloyal.Context) -> Iterator[tuple[list[Step], int]]:
        """Steps that have just been run on `ctx`, and the sequence to checkpoint."""
        while True:
            steps: list[Step] = []
            seq = self.rng.choice((0, 1))
            if self.history[seq] and (self.rng.random() < 0.35 or len(self.history[seq]) > LONGEST):
                self.go_back(ctx, seq, steps)
            parts = [(seq, self.tokens(12))]
            if self.rng.random() < 0.4:
                parts.append((1 - seq, self.tokens(6)))
            self.decode(ctx, parts, steps)
            yield steps, seq

    def decode(self, ctx: lloyal.Context, parts: list[tuple[int, tuple[int, ...]]], steps: list[Step]) -> None:
        step = Step(tuple((seq, len(self.history[seq]), tokens) for seq, tokens in parts))
        for seq, tokens in parts:
            self.history[seq] += tokens
        step.run(ctx)
        steps.append(step)

    def go_back(self, ctx: lloyal.Context, seq: int, steps: list[Step]) -> None:
        """To any earlier end: by a trim where the memory can, else by decoding from the start again."""
        history = self.history[seq]
        end = self.rng.randrange(max(0, len(history) - 30), len(history))
        can = end > 0 and ctx.memory.can_rollback(seq, len(history) - end) == "trim"
        steps.append(Step(trim=(seq, end if can else 0)))
        steps[-1].run(ctx)
        self.history[seq] = history[:end] if can else []
        if not can and end > 0:
            self.decode(ctx, [(seq, tuple(history[:end]))], steps)


@dataclasses.dataclass
class Taken:
    checkpoint: lloyal.Checkpoint
    n_steps: int  # the twin has run as many when its sequence is the same
    seq_id: int
    history: list[int]
    state: RawState | None = None  # the twin's


@dataclasses.dataclass
class Measured:
    """Largest differences of logits: with a checkpoint, and by the same cause without one."""

    moved: list[float] = dataclasses.field(default_factory=list)
    moved_bare: list[float] = dataclasses.field(default_factory=list)
    batches: list[float] = dataclasses.field(default_factory=list)
    batches_bare: list[float] = dataclasses.field(default_factory=list)
    scale: float = 0.0

    def check(self) -> None:
        # Rarely the last bit of a sum decides how a K or V value is rounded to the type of the cache, and the logits
        # jump: three quarters are held to the measured difference, all of them to what no wrong row would meet.
        most = sorted(self.moved)[: len(self.moved) * 3 // 4]
        assert max(most) <= 2 * max(self.moved_bare), "more than another order of cells does"
        assert sorted(self.batches)[len(most) - 1] <= max(self.batches_bare) + 2 * max(self.moved_bare)
        assert max(self.moved + self.moved_bare + self.batches + self.batches_bare) <= NOISE * self.scale

    def __str__(self) -> str:
        return (
            f"of logits up to {self.scale:.2g}: other cells {max(self.moved):.2g} (without checkpoints "
            f"{max(self.moved_bare):.2g}), other batches {max(self.batches):.2g} ({max(self.batches_bare):.2g})"
        )


def bit_equal(got: RawState, expected: RawState) -> None:
    equal = got.encode() == expected.encode()  # apart: pytest would look for the difference for minutes
    assert equal, "the restored rows are not the ones the checkpoint was taken of"


def probe_loaded(ctx: lloyal.Context, seq_id: int, end: int, probe: list[int], state: RawState) -> np.ndarray:
    """Logits of `probe` on a state that llama.cpp itself put into the first free cells."""
    ctx.state_seq_set_data_ext(state.encode(), seq_id)
    return feed(ctx, (seq_id, end, probe))[0]


FILLERS = (1, 2, 3)
SPARE = 5


def scatter(ctx: lloyal.Context, rng: random.Random) -> None:
    """Leave the free cells in runs of 1 to 6, and one of the fillers to free more later."""
    ctx.memory.clear()
    ends = dict.fromkeys(FILLERS, 0)
    for seq in [*FILLERS] * 10:
        n = rng.randint(1, 6)
        feed(ctx, (seq, ends[seq], [rng.randrange(N_VOCAB) for _ in range(n)]))
        ends[seq] += n
    ctx.memory.seq_rm(FILLERS[0])


def probe_permuted(ctx: lloyal.Context, end: int, probe: list[int], state: RawState, rng: random.Random) -> np.ndarray:
    """The same with the rows in a random order in scattered cells, and the tokens of `probe` between them."""
    scatter(ctx, rng)
    ctx.state_seq_set_data_ext(state.permuted(np.random.default_rng(rng.randrange(2**32))).encode(), 0)
    ctx.memory.seq_rm(FILLERS[2])
    return feed(ctx, (0, end, probe))[0]


def restore_bare(ctx: lloyal.Context, seq_id: int, state: RawState) -> None:
    """Restore without a checkpoint: into the spare sequence and over from there, where sequences can share cells."""
    if not ctx.memory.unified:
        ctx.state_seq_set_data_ext(state.encode(), seq_id)
        return
    ctx.state_seq_set_data_ext(state.encode(), SPARE)
    ctx.memory.seq_rm(seq_id)
    ctx.memory.seq_cp(SPARE, seq_id)
    ctx.memory.seq_rm(SPARE)


def recompute(ctx: lloyal.Context, seq_id: int, history: list[int], probe: list[int]) -> np.ndarray:
    ctx.memory.clear()
    feed(ctx, (seq_id, 0, history))
    return feed(ctx, (seq_id, len(history), probe))[0]


@pytest.mark.parametrize("option", options(), ids=str)
def test_restored_in_any_order_into_any_sequence(option: Option) -> None:
    rng = random.Random(str(option))
    n_seq = SPARE + 1
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(lloyal.Model(tiny(option.model)))
        ctx, twin, clean, busy, busy_twin = (stack.enter_context(make(model, option, n_seq)) for _ in range(5))
        seed = rng.random()
        for context in (busy, busy_twin):
            scatter(context, random.Random(seed))
        steps: list[Step] = []
        taken: list[Taken] = []
        released: list[lloyal.Checkpoint] = []
        schedule = Schedule(rng)
        for move, seq in itertools.islice(schedule.moves(ctx), N_CHECKPOINTS):
            steps += move
            released.append(ctx.checkpoint(1 - seq))  # the others share its rows
            checkpoint = ctx.checkpoint(seq, where=rng.choice(("device", "device", "host")))
            taken.append(Taken(checkpoint, len(steps), seq, list(schedule.history[seq])))
        for checkpoint in released:
            checkpoint.release()
        ctx.checkpoints.trim()
        at = 0
        for one in taken:
            for step in steps[at : one.n_steps]:
                step.run(twin)
            at = one.n_steps
            one.state = state_of(twin, one.seq_id, option)
            assert sum(len(cache.positions) > 0 for cache in one.state.caches) == len(one.state.caches)

        probe = [rng.randrange(N_VOCAB) for _ in range(3)]
        rng.shuffle(taken)
        measured = Measured()
        for i, one in enumerate(taken):
            assert one.state is not None
            end, dest = len(one.history), rng.randrange(n_seq)
            assert one.checkpoint.n_tokens == end
            # The cells of an empty cache, from the first on: by llama.cpp's own copy, and by the checkpoint.
            clean.memory.clear()
            expected = probe_loaded(clean, dest, end, probe, one.state)
            clean.memory.clear()
            one.checkpoint.restore(dest, ctx=clean)
            bit_equal(state_of(clean, dest, option), one.state)
            assert distance(feed(clean, (dest, end, probe))[0], expected) == 0, "same cells, other logits"
            # Scattered cells of a cache with other sequences.
            other = rng.choice((0, FILLERS[0], 4))
            one.checkpoint.restore(other, ctx=busy)
            bit_equal(state_of(busy, other, option), one.state)
            restore_bare(busy_twin, other, one.state)
            bare = feed(busy_twin, (other, end, probe))[0]
            assert distance(feed(busy, (other, end, probe))[0], bare) == 0, "the same scattered cells, other logits"
            measured.moved_bare.append(distance(bare, expected))
            for context in (busy, busy_twin):
                context.memory.seq_rm(other)
            # Where it was taken, sharing the rows that are still there.
            one.checkpoint.restore(dest)
            assert ctx.memory.seq_pos_max(dest) == end - 1
            bit_equal(state_of(ctx, dest, option), one.state)
            got = feed(ctx, (dest, end, probe))[0]
            measured.moved.append(distance(got, expected))
            if i % (4 if FULL else 1) == 0:
                measured.moved_bare.append(distance(probe_permuted(clean, end, probe, one.state, rng), expected))
            # Computed again in one batch instead of many.
            again = recompute(clean, dest, one.history, probe)
            measured.batches.append(distance(again, got))
            measured.batches_bare.append(distance(again, expected))
            measured.scale = max(measured.scale, float(np.abs(expected).max()))
        print(f"{option}: {len(taken)} checkpoints, {measured}")
        measured.check()
        ctx.checkpoints.release_all()
        assert ctx.checkpoints.nbytes == 0


@pytest.mark.parametrize("option", [o for o in options() if o.unified], ids=str)
def test_cells_are_what_bare_seq_cp_gives(option: Option) -> None:
    """As many as there are spare sequences, restored in any order: the twin makes the same copies with `seq_cp`."""
    rng = random.Random(f"cells {option}")
    n_spare = 64 if FULL else 8
    with (
        lloyal.Model(tiny(option.model)) as model,
        make(model, option, 3 + n_spare) as ctx,
        make(model, option, 3 + n_spare) as twin,
        make(model, option, 4) as clean,
    ):
        taken: list[Taken] = []
        own: list[RawState] = []  # windowed: the twin's rows are computed in other cells, which moves last bits
        schedule = Schedule(rng)
        for move, seq in itertools.islice(schedule.moves(ctx), n_spare):
            for step in move:
                step.run(twin)
            own.append(state_of(ctx, seq, option))
            checkpoint = ctx.checkpoint(seq, where="cells")
            assert checkpoint.lease is not None
            assert checkpoint.nbytes == 0
            twin.memory.seq_cp(seq, checkpoint.lease)
            taken.append(Taken(checkpoint, 0, seq, list(schedule.history[seq]), state_of(twin, seq, option)))
        assert lloyal.kv.Tenancy(ctx).available == 1
        probe = [rng.randrange(N_VOCAB) for _ in range(3)]
        order = list(zip(taken, own, strict=True))
        rng.shuffle(order)
        # Cells that fell out of the window are given up here at once, so later rows land elsewhere than in the twin.
        windowed = "sliding_window" in ctx.memory.kind

        def kept(state: RawState) -> RawState:
            return state.without_stale(WINDOW) if windowed else state

        measured = Measured()
        for one, before in order:
            assert one.state is not None
            end, dest = len(one.history), rng.randrange(3)
            for _ in range(2):
                one.checkpoint.restore(dest)
                bit_equal(kept(state_of(ctx, dest, option)), kept(before if windowed else one.state))
                twin.memory.seq_rm(dest)
                twin.memory.seq_cp(one.checkpoint.lease, dest)
                got, bare = (feed(context, (dest, end, probe))[0] for context in (ctx, twin))
                assert windowed or distance(got, bare) == 0
            clean.memory.clear()
            expected = probe_loaded(clean, 0, end, probe, one.state)
            measured.moved.append(distance(got, expected))
            measured.moved_bare.append(distance(bare, expected))
            if windowed:
                measured.moved_bare.append(distance(probe_permuted(clean, end, probe, one.state, rng), expected))
            again = recompute(clean, 0, one.history, probe)
            measured.batches.append(distance(again, got))
            measured.batches_bare.append(distance(again, expected))
            measured.scale = max(measured.scale, float(np.abs(expected).max()))
        print(f"{option}: {len(taken)} in cells, {measured}")
        measured.check()
        ctx.checkpoints.release_all()
        assert lloyal.kv.Tenancy(ctx).available == n_spare


@pytest.mark.parametrize("option", options(), ids=str)
@pytest.mark.parametrize("where", ["device", "host"])
def test_partial_ones_bring_back_every_row(option: Option, where: str) -> None:
    rng = random.Random(f"partial {option}")
    with lloyal.Model(tiny(option.model)) as model, make(model, option, 4) as ctx:
        schedule = Schedule(rng)
        for _ in range(20 if FULL else 4):
            schedule.history[0] = []
            ctx.memory.seq_rm(0)
            for _ in range(rng.randint(1, 4)):
                schedule.decode(ctx, [(0, schedule.tokens(30))], [])
            expected = state_of(ctx, 0, option)
            checkpoint = ctx.checkpoint(where=where, partial=True)
            fork = option.unified and rng.random() < 0.5
            ctx.memory.seq_rm(1)
            if fork:
                ctx.memory.seq_cp(0, 1)
            for seq in (0, 1)[: 1 + fork]:
                end = ctx.memory.seq_pos_max(seq) + 1
                feed(ctx, (seq, end, schedule.tokens(20)))
                feed(ctx, (seq, ctx.memory.seq_pos_max(seq) + 1, schedule.tokens(20)))
                checkpoint.restore(seq)
                bit_equal(state_of(ctx, seq, option), expected)
            checkpoint.release()


def one_bit(state: RawState) -> RawState:
    """In one row of the last tensor, or of the recurrent state."""
    state = copy.deepcopy(state)
    if state.caches:
        state.caches[-1].tensors[-1].data = state.caches[-1].tensors[-1].data.copy()
        state.caches[-1].tensors[-1].data[0, 0, 0] ^= 1
    else:
        state.recurrent = state.recurrent[:-1] + bytes([state.recurrent[-1] ^ 1])
    return state


def two_rows_swapped(state: RawState) -> RawState:
    state = copy.deepcopy(state)
    for tensor in state.caches[-1].tensors:
        tensor.data = tensor.data[:, [1, 0, *range(2, tensor.data.shape[1])]]
    return state


def one_row_less(state: RawState) -> RawState:
    state = copy.deepcopy(state)
    cache = state.caches[-1]
    cache.positions, cache.ext = cache.positions[1:], cache.ext[1:]
    for tensor in cache.tensors:
        tensor.data = tensor.data[:, 1:]
    return state


WRONG_STATES = {"one bit": one_bit, "two rows swapped": two_rows_swapped, "one row less": one_row_less}


@pytest.mark.parametrize("name", MODELS)
def test_wrong_rows_show(name: str) -> None:
    """The comparisons above can fail: states and contexts with one thing wrong in them are told from the right ones."""
    option = Option(name, "f16", "f16", True, True)
    rng = random.Random(name)
    text, other = ([rng.randrange(N_VOCAB) for _ in range(14)] for _ in range(2))
    probe = [rng.randrange(N_VOCAB) for _ in range(3)]
    with lloyal.Model(tiny(name)) as model, make(model, option, 4) as ctx:
        feed(ctx, (0, 0, text))
        right = state_of(ctx, 0, option)
        bit_equal(parse(right.encode(), KINDS[name], option.mrope), right)
        for what, change in WRONG_STATES.items():
            if right.caches or what == "one bit":
                with pytest.raises(AssertionError, match="restored rows"):
                    bit_equal(change(right), right)
        expected = feed(ctx, (0, 14, probe))[0]
        limit = NOISE * float(np.abs(expected).max())
        # What a restore that did too little would leave behind.
        wrong: dict[str, list[int]] = {
            "the destination as it was": other,
            "rows of another sequence in the second half": text[:7] + other[7:],
            "a row too few": text[:-1],
        }
        for what, tokens in wrong.items():
            ctx.memory.clear()
            feed(ctx, (0, 0, tokens))
            with pytest.raises(AssertionError, match="restored rows"):
                bit_equal(state_of(ctx, 0, option), right)
            assert distance(feed(ctx, (0, len(tokens), probe))[0], expected) > limit, what
        if len(right.caches) and right.recurrent:
            # The recurrent state of an earlier moment under the attention rows of a later one.
            ctx.memory.clear()
            feed(ctx, (0, 0, text[:10]))
            early = state_of(ctx, 0, option)
            mixed = dataclasses.replace(right, recurrent=early.recurrent)
            with pytest.raises(AssertionError, match="restored rows"):
                bit_equal(mixed, right)
