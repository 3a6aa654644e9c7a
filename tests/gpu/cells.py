"""Caches whose cells are filled with random bytes, and freed at random, by llama.cpp's own copy."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np

import lloyal
from tests import models
from tests.checkpoints.raw_state import RawState, parse
from tests.decode import feed

N_CELLS = 256


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a cache stores its rows."""

    type_k: str
    type_v: str
    flash: bool
    n_kv_heads: int = 2

    def __str__(self) -> str:
        return f"{self.type_k}-{self.type_v}-{'fa' if self.flash else 'no_fa'}-{self.n_kv_heads}"


LAYOUTS = (
    Layout("f16", "f16", True),
    Layout("f16", "f16", False, 1),  # V transposed: pieces of two bytes
    Layout("f32", "f32", False, 1),  # of four
    Layout("bf16", "bf16", False, 1),
    Layout("q8_0", "q4_0", True),
    Layout("q8_0", "q4_0", True, 1),  # rows of 34 and of 18 bytes
    Layout("q5_0", "iq4_nl", True, 1),
)


def write_model(path: Path, n_kv_heads: int) -> Path:
    recipe = models.llama(1)
    recipe.keys |= {"attention.head_count_kv": n_kv_heads}
    width = n_kv_heads * models.HEAD
    for i in range(models.N_LAYER):
        for name in "kv":
            recipe.matrix(f"blk.{i}.attn_{name}.weight", models.N_EMBD, width, 1.5)
    recipe.write(path)
    return path


class Cells:
    """A context whose cells are filled and freed at random."""

    def __init__(self, ctx: lloyal.Context, seed: int) -> None:
        self.ctx = ctx
        self.random = random.Random(seed)
        self.bytes = np.random.default_rng(seed)
        feed(ctx, (0, 0, [1]))
        self.example = parse(ctx.state_seq_get_data_ext(0), "attention")
        ctx.memory.clear()

    def state(self, seq_id: int) -> bytes:
        return parse(self.ctx.state_seq_get_data_ext(seq_id), "attention").encode()

    def put(self, seq_id: int, n_rows: int) -> bytes:
        """Give a sequence rows of random bytes, in the first cells that are free; its state."""
        (cache,) = self.example.caches
        tensors = [
            dataclasses.replace(
                t, data=self.bytes.integers(0, 256, (t.data.shape[0], n_rows, t.data.shape[2]), np.uint8)
            )
            for t in cache.tensors
        ]
        ext = np.zeros((n_rows, 0), np.uint8)
        made = dataclasses.replace(cache, positions=np.arange(n_rows, dtype=np.int32), ext=ext, tensors=tensors)
        state = RawState([made], b"").encode()
        self.ctx.state_seq_set_data_ext(state, seq_id)
        assert self.state(seq_id) == state
        return state

    def make_holes(self, seq_id: int, n_rows: int) -> None:
        """Free so many cells of a sequence, in one of the ways that decoding together leaves them."""
        ctx = self.ctx
        held = [pos for row in ctx.memory.provenance(seq_id) for pos in range(row[0], row[1])]
        kind = self.random.choice(["step", "scattered", "pairs", "odd"])
        if kind == "step":
            gone = held[self.random.randrange(3) :: max(2, len(held) // n_rows)]
        elif kind == "pairs":
            gone = [pos for pos in held if pos % 5 < 2]
        elif kind == "odd":
            gone = [pos for pos in held if pos % 2 or pos % 16 == 0]
        else:
            gone = self.random.sample(held, len(held))
        for pos in gone[:n_rows]:
            ctx.memory.seq_rm(seq_id, pos, pos + 1)
