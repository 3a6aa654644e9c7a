"""Checkpoints of two sequences that interleave, trim and decode again, against a twin context that takes none.

The twin runs the same batches and trims, so its rows are the same to the last bit, and what llama.cpp writes of its
sequences says what every checkpoint must hold. From the same bits in the same cells come the same logits: that is
demanded wherever the cells can be the same. Where a restore puts rows into other cells, sums run in another order;
what that alone changes is measured by putting states of the twin into scattered cells without any checkpoint.
"""

from __future__ import annotations

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
from tests.models import KINDS, N_VOCAB, tiny

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
    extra = {"llama-q8_0-q8_0-fa-unified", "llama-q4_0-f16-no_fa-streams", "gemma3-q4_0-q4_0-fa-streams",
             "lfm2-f16-f16-no_fa-unified", "falcon-h1-q8_0-q8_0-fa-streams", "qwen35-f16-f16-no_fa-streams"}
    return [o for o in every if str(o).endswith("-f16-f16-fa-unified") or str(o) in extra]


def context(model: lloyal.Model, option: Option, n_seq_max: int) -> lloyal.Context:
    return lloyal.Context(
        model, n_ctx=N_CTX, n_batch=256, n_ubatch=32, n_seq_max=n_seq_max, type_k=option.type_k, type_v=option.type_v,
        flash_attn=option.flash, kv_unified=option.unified, n_threads=1, n_threads_batch=1,
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
        assert max(self.moved) <= 2 * max(self.moved_bare), "more than another order of cells does"
        assert max(self.batches) <= max(self.batches_bare) + 2 * max(self.moved_bare), "more than other batches do"
        # and neither of the two hides a wrong row: test_wrong_rows_show
        assert max(self.moved_bare + self.batches_bare) <= NOISE * self.scale

    def __str__(self) -> str:
        return (f"of logits up to {self.scale:.2g}: other cells {max(self.moved):.2g} (without checkpoints "
                f"{max(self.moved_bare):.2g}), other batches {max(self.batches):.2g} ({max(self.batches_bare):.2g})")


def bit_equal(got: RawState, expected: RawState) -> None:
    assert got.encode() == expected.encode(), "the restored rows are not the ones the checkpoint was taken of"


def probe_loaded(ctx: lloyal.Context, seq_id: int, end: int, probe: list[int], state: RawState) -> np.ndarray:
    """Logits of `probe` on a state that llama.cpp itself put into the first free cells."""
    ctx.state_seq_set_data_ext(state.encode(), seq_id)
    return feed(ctx, (seq_id, end, probe))[0]


def probe_scattered(ctx: lloyal.Context, end: int, probe: list[int], state: RawState, rng: random.Random) -> np.ndarray:
    """The same with the rows in a random order in scattered cells, and the tokens of `probe` between them."""
    ctx.memory.clear()
    going, _, going_later = fillers = range(1, 4)
    ends = dict.fromkeys(fillers, 0)
    for seq in [*fillers] * 10:
        n = rng.randint(1, 6)
        feed(ctx, (seq, ends[seq], [rng.randrange(N_VOCAB) for _ in range(n)]))
        ends[seq] += n
    ctx.memory.seq_rm(going)
    ctx.state_seq_set_data_ext(state.permuted(np.random.default_rng(rng.randrange(2**32))).encode(), 0)
    ctx.memory.seq_rm(going_later)
    return feed(ctx, (0, end, probe))[0]


def recompute(ctx: lloyal.Context, seq_id: int, history: list[int], probe: list[int]) -> np.ndarray:
    ctx.memory.clear()
    feed(ctx, (seq_id, 0, history))
    return feed(ctx, (seq_id, len(history), probe))[0]


@pytest.mark.parametrize("option", options(), ids=str)
def test_restored_in_any_order_into_any_sequence(option: Option) -> None:
    rng = random.Random(str(option))
    n_seq = 6
    with lloyal.Model(tiny(option.model)) as model, context(model, option, n_seq) as ctx, \
            context(model, option, n_seq) as twin, context(model, option, n_seq) as clean, \
            context(model, option, n_seq) as scattered:
        steps: list[Step] = []
        taken: list[Taken] = []
        schedule = Schedule(rng)
        for move, seq in itertools.islice(schedule.moves(ctx), N_CHECKPOINTS):
            steps += move
            checkpoint = ctx.checkpoint(seq, where=rng.choice(("device", "device", "host")))
            taken.append(Taken(checkpoint, len(steps), seq, list(schedule.history[seq])))
        at = 0
        for one in taken:
            for step in steps[at:one.n_steps]:
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
            # Whatever cells are free in a busy cache.
            one.checkpoint.restore(dest)
            assert ctx.memory.seq_pos_max(dest) == end - 1
            restored = state_of(ctx, dest, option)
            bit_equal(restored, one.state)
            got = feed(ctx, (dest, end, probe))[0]
            measured.moved.append(distance(got, expected))
            if i % (4 if FULL else 1) == 0:
                elsewhere = probe_scattered(scattered, end, probe, one.state, rng)
                measured.moved_bare.append(distance(elsewhere, expected))
            # Computed again in one batch instead of many.
            again = recompute(clean, dest, one.history, probe)
            measured.batches.append(distance(again, got))
            measured.batches_bare.append(distance(again, expected))
            measured.scale = max(measured.scale, float(np.abs(expected).max()))
        print(f"{option}: {len(taken)} checkpoints, {measured}")
        measured.check()
        ctx.checkpoints.release_all()
        assert ctx.checkpoints.nbytes == 0
