"""Many checkpoints of sequences that interleave, go back and decode again, against a twin that took none.

The twin runs the same batches. A restore may put rows into other cells, and then sums run in another order; what that
does is bounded by a fraction of the logits' scale that a wrong row exceeds many times over (`test_a_wrong_row_shows`).
"""

from __future__ import annotations

import itertools
import os
import random

import numpy as np
import pytest

import lloyal
from tests.decode import distance, feed
from tests.models import N_VOCAB, tiny

FULL = bool(os.environ.get("LLOYAL_TEST_FULL"))
MODELS = ("llama", "gemma3", "llama4", "mamba2", "lfm2", "lfm2-swa", "falcon-h1", "qwen35")
N_SEQ = 6
# Part of the largest logit that another order of cells may change.
ORDER_NOISE = 2e-2

Option = tuple[str, str, bool, bool]


def options() -> list[Option]:
    every = [
        (model, kind, flash, unified)
        for model, kind in itertools.product(MODELS, ("f16", "q8_0", "q4_0"))
        for flash, unified in itertools.product((True, False), (True, False))
        if flash or kind == "f16"
    ]
    if FULL:
        return every
    extra = {
        ("llama", "q8_0", True, True),
        ("llama", "f16", False, True),
        ("llama", "f16", True, False),
        ("gemma3", "q4_0", True, True),
        ("lfm2", "f16", False, True),
        ("falcon-h1", "f16", True, False),
    }
    return [o for o in every if o[1:] == ("f16", True, True) or o in extra]


def make(model: lloyal.Model, option: Option) -> lloyal.Context:
    _, kind, flash, unified = option
    return lloyal.Context(
        model,
        n_ctx=2048,
        n_batch=64,
        n_ubatch=32,
        n_seq_max=N_SEQ,
        type_k=kind,
        type_v=kind,
        flash_attn=flash,
        kv_unified=unified,
        n_threads=1,
        n_threads_batch=1,
    )


def replay(ctx: lloyal.Context, batches: list[list[int]], probe: list[int]) -> np.ndarray:
    """The logits of `probe` after the given batches, in an empty context."""
    ctx.memory.clear()
    pos = 0
    for tokens in batches:
        feed(ctx, (0, pos, tokens))
        pos += len(tokens)
    return feed(ctx, (0, pos, probe))[0]


@pytest.mark.parametrize("option", options(), ids=lambda o: "-".join(map(str, o)))
def test_any_checkpoint_in_any_order_into_any_sequence(option: Option) -> None:
    rng = random.Random(repr(option))
    with lloyal.Model(tiny(option[0])) as model, make(model, option) as ctx, make(model, option) as twin:
        batches: dict[int, list[list[int]]] = {0: [], 1: []}
        taken: list[tuple[lloyal.Checkpoint, list[list[int]]]] = []
        for _ in range(64 if FULL else 14):
            seq = rng.choice((0, 1))
            if taken and rng.random() < 0.3:
                # go back to any earlier state, of either sequence, and go on differently from there
                checkpoint, history = rng.choice(taken)
                checkpoint.restore(seq)
                batches[seq] = history
            tokens = [rng.randrange(N_VOCAB) for _ in range(rng.randint(1, 20))]
            feed(ctx, (seq, sum(map(len, batches[seq])), tokens))
            batches[seq] = [*batches[seq], tokens]
            taken.append((ctx.checkpoint(seq, where=rng.choice(("device", "device", "host"))), batches[seq]))
        rng.shuffle(taken)
        probe = [rng.randrange(N_VOCAB) for _ in range(3)]
        for checkpoint, history in taken:
            expected = replay(twin, history, probe)
            end = sum(map(len, history))
            seq = rng.randrange(N_SEQ)
            checkpoint.restore(seq)
            assert checkpoint.n_tokens == end
            assert ctx.memory.seq_pos_max(seq) == end - 1
            got = feed(ctx, (seq, end, probe))[0]
            assert distance(got, expected) <= ORDER_NOISE * np.abs(expected).max(), checkpoint
        ctx.checkpoints.release_all()
        assert ctx.checkpoints.nbytes == 0
        del taken, checkpoint


@pytest.mark.parametrize("name", MODELS)
def test_restoring_in_place_is_exact(name: str) -> None:
    """Nothing else was decoded in between: the rows land in order and the logits are bit-equal.

    But in a window, where cells that fell out of it are reused, in another order than before.
    """
    option = (name, "f16", True, True)
    rng = random.Random(name)
    first, other, probe = ([rng.randrange(N_VOCAB) for _ in range(n)] for n in (40, 12, 3))
    with lloyal.Model(tiny(name)) as model, make(model, option) as ctx:
        for where in ("device", "host"):
            ctx.memory.clear()
            feed(ctx, (0, 0, first))
            with ctx.checkpoint(where=where) as checkpoint:
                expected = feed(ctx, (0, 40, probe))[0]
                checkpoint.restore()
                feed(ctx, (0, 40, other))
                checkpoint.restore()
                bound = ORDER_NOISE * np.abs(expected).max() if "sliding_window" in ctx.memory.kind else 0
                assert distance(feed(ctx, (0, 40, probe))[0], expected) <= bound


@pytest.mark.parametrize("name", MODELS)
def test_a_wrong_row_shows(name: str) -> None:
    """The comparison above can fail: one token of the context altered moves the logits far more than its bound."""
    option = (name, "f16", True, True)
    rng = random.Random(name)
    tokens, probe = ([rng.randrange(N_VOCAB) for _ in range(n)] for n in (12, 3))
    with lloyal.Model(tiny(name)) as model, make(model, option) as ctx:
        expected = replay(ctx, [tokens], probe)
        moved = []
        for i in range(8, 12):
            wrong = list(tokens)
            wrong[i] = (wrong[i] + 1) % N_VOCAB
            moved.append(distance(replay(ctx, [wrong], probe), expected))
        assert np.median(moved) > ORDER_NOISE * np.abs(expected).max()
