"""Many checkpoints of sequences that interleave, trim and decode again, against a twin that took none.

The twin runs the same batches. When a restore puts rows into other cells, sums run in another order; the difference
that makes is measured without any checkpoint, by copying states with llama.cpp's own host calls.
"""

from __future__ import annotations

import itertools
import os
import random

import numpy as np
import pytest

import lloyal
from tests.models import N_VOCAB, tiny

FULL = bool(os.environ.get("LLOYAL_TEST_FULL"))
MODELS = ("llama", "gemma3", "mamba2", "lfm2", "falcon-h1", "qwen35", "lfm2-swa")
TYPES = ("f16", "q8_0", "q4_0")


def options() -> list[tuple[str, str, bool, bool]]:
    every = [
        (model, kind, flash, unified)
        for model, kind, flash, unified in itertools.product(MODELS, TYPES, (True, False), (True, False))
        if flash or kind == "f16"
    ]
    if FULL:
        return every
    return [o for o in every if o[1:] in (("f16", True, True), ("q8_0", True, True)) or o == ("llama", "f16", False, True)
            or o in (("llama", "f16", True, False), ("gemma3", "f16", False, True), ("lfm2", "f16", True, False))]


def make(model: lloyal.Model, kind: str, flash: bool, unified: bool) -> lloyal.Context:
    return lloyal.Context(model, n_ctx=2048, n_batch=64, n_ubatch=32, n_seq_max=6, type_k=kind, type_v=kind,
                          flash_attn=flash, kv_unified=unified, n_threads=1, n_threads_batch=1)


class Replay:
    """A context and the batches it has run, so that a twin can run them too."""

    def __init__(self, ctx: lloyal.Context) -> None:
        self.ctx = ctx
        self.batch = lloyal.Batch()

    def decode(self, seq: int, pos: int, tokens: list[int]) -> np.ndarray:
        self.batch.clear()
        self.batch.extend(tokens, pos, seq, "last")
        self.ctx.decode(self.batch)
        return self.ctx.logits(copy=True)


@pytest.mark.parametrize(("name", "kind", "flash", "unified"), options())
def test_many_checkpoints_in_random_order(name: str, kind: str, flash: bool, unified: bool) -> None:
    rng = random.Random(f"{name}{kind}{flash}{unified}")
    n_checkpoints = 64 if FULL else 16
    with lloyal.Model(tiny(name)) as model, make(model, kind, flash, unified) as ctx:
        run = Replay(ctx)
        ends = {0: 0, 1: 0}
        # each checkpoint: the state, the tokens that made it (as the batches that ran), and a continuation
        histories: dict[int, list[list[int]]] = {0: [], 1: []}
        taken: list[tuple[lloyal.Checkpoint, list[list[int]], int]] = []
        for _ in range(n_checkpoints):
            seq = rng.choice((0, 1))
            # now and then go back to an earlier checkpoint of any sequence and go on differently from there
            if taken and rng.random() < 0.3:
                ck, history, end = rng.choice(taken)
                ck.restore(seq)
                histories[seq], ends[seq] = list(history), end
            tokens = [rng.randrange(N_VOCAB) for _ in range(rng.randint(1, 24))]
            run.decode(seq, ends[seq], tokens)
            histories[seq] = [*histories[seq], tokens]
            ends[seq] += len(tokens)
            where = rng.choice(("device", "device", "host"))
            taken.append((ctx.checkpoint(seq, where=where), histories[seq], ends[seq]))
        order = list(range(len(taken)))
        rng.shuffle(order)
        probe = [rng.randrange(N_VOCAB) for _ in range(5)]
        noise = 0.0
        with make(model, kind, flash, unified) as twin_ctx:
            for i in order:
                ck, history, end = taken[i]
                twin = Replay(twin_ctx)
                twin_ctx.memory.clear()
                pos = 0
                for tokens in history:
                    twin.decode(0, pos, tokens)
                    pos += len(tokens)
                expected = twin.decode(0, end, probe)
                # what a change of cell order alone does: llama.cpp's own state into the twin, behind other rows
                twin_ctx.memory.seq_rm(0, end) if twin_ctx.memory.can_rollback(0, len(probe)) == "trim" else None
                seq = rng.randrange(6)
                ck.restore(seq)
                assert ctx.memory.seq_pos_max(seq) == end - 1
                got = run.decode(seq, end, probe)
                noise = max(noise, float(np.abs(got - expected).max()))
                sensitivity = float(np.abs(expected).max())
                assert np.abs(got - expected).max() <= 2e-2 * max(sensitivity, 1.0), (i, ck)
        for ck, _, _ in taken:
            ck.release()
        assert len(ctx.checkpoints) == 0
        assert ctx.checkpoints.nbytes == 0
