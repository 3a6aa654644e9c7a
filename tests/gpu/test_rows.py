"""Rows that lie here and there are gathered and scattered bit for bit, whatever their types, sizes and cells.

The caches are filled with random bytes, many of them no numbers, by llama.cpp's own copy, and the rows of one sequence
get whatever cells another one left free. What llama.cpp writes of the sequences says whether a byte is wrong.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lloyal
from lloyal import errors
from lloyal.llama import checkpoint as native
from tests import models
from tests.checkpoints.raw_state import RawState, parse
from tests.decode import feed

Make = Callable[..., lloyal.Context]
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


@pytest.fixture(params=LAYOUTS, ids=str)
def cells(request: pytest.FixtureRequest, devices: Any, tmp_path: Path, new_context: Make) -> Iterator[Cells]:
    layout = request.param
    path = write_model(tmp_path / "model.gguf", layout.n_kv_heads)
    with lloyal.Model(path, devices=devices) as model:
        options: dict[str, Any] = {"type_k": layout.type_k, "type_v": layout.type_v, "flash_attn": layout.flash}
        ctx = new_context(model, n_ctx=N_CELLS, n_seq_max=5, n_ubatch=32, **options)
        yield Cells(ctx, seed=3)
        ctx.checkpoints.release_all()
        ctx.close()


@pytest.mark.parametrize("where", ["device", "host"])
def test_every_byte_comes_back(cells: Cells, place: str, where: str) -> None:
    ctx = cells.ctx
    for n_rows in (13,) if place == "rpc" else (33, 90):  # llama.cpp's own copies take a message a row and piece
        ctx.memory.clear()
        cells.put(1, N_CELLS - 20)
        cells.make_holes(1, n_rows)
        expected = cells.put(0, n_rows)
        others = cells.state(1)
        with ctx.checkpoint(0, where=where) as checkpoint:
            assert cells.state(0) == expected
            assert cells.state(1) == others
            ctx.memory.seq_rm(0)
            cells.make_holes(1, n_rows)
            others = cells.state(1)
            checkpoint.restore(2)
            assert cells.state(2) == expected
            assert cells.state(1) == others
            # what is read from the middle of a chunk
            ctx.memory.seq_rm(2, n_rows // 2)
            cells.make_holes(1, n_rows)
            others = cells.state(1)
            checkpoint.restore(3)
            assert cells.state(3) == expected
            assert cells.state(1) == others
            # through the other kind of memory
            with checkpoint.to_host() as host:
                ctx.memory.clear()
                host.restore(3)
            assert cells.state(3) == expected
        assert ctx.checkpoints.nbytes == 0


def test_chunks_are_packed_by_rows(cells: Cells) -> None:
    """What little of a large chunk is needed is copied out of it, from here and there."""
    ctx = cells.ctx
    cells.put(0, 200)
    with ctx.checkpoint(0):
        kept = []
        for seq_id, begin in enumerate((20, 75, 151), 1):
            ctx.memory.seq_cp(0, seq_id)
            ctx.memory.seq_rm(seq_id, begin + 13)
            ctx.memory.seq_rm(seq_id, 5, begin)
            kept.append((ctx.checkpoint(seq_id), cells.state(seq_id)))
    before = ctx.checkpoints.nbytes
    ctx.checkpoints.trim()
    assert ctx.checkpoints.nbytes < before / 2
    ctx.memory.clear()
    for checkpoint, expected in kept:
        checkpoint.restore(0)
        assert cells.state(0) == expected


@pytest.mark.parametrize("n_seqs", [16, 7])
@pytest.mark.parametrize("flash", [True, False], ids=["fa", "no_fa"])
def test_lockstep_takes_a_handful_of_copies(
    devices: Any, place: str, new_context: Make, n_seqs: int, flash: bool
) -> None:
    def operations(work: Callable[[], Any]) -> tuple[int, Any]:
        native.fault_arm(10**9)
        try:
            result = work()
            return 10**9 - native.fault_remaining(), result
        finally:
            native.fault_arm(-1)

    with lloyal.Model(models.tiny("llama"), devices=devices) as model:
        ctx = new_context(model, n_ctx=2048, n_seq_max=n_seqs + 2, n_batch=64, flash_attn=flash)
        batch = lloyal.Batch()
        for step in range(20 if place == "rpc" else 100):
            batch.clear()
            for seq_id in range(n_seqs):
                batch.add((step * 7 + seq_id) % 50, step, seq_id, False)
            ctx.decode(batch)
        state = lambda seq_id: parse(ctx.state_seq_get_data_ext(seq_id), "attention").encode()  # noqa: E731
        expected = [state(seq_id) for seq_id in (2, 3, 4)]
        most = 4 * 2 * models.N_LAYER
        for where in ("device", "host"):
            saved, checkpoint = operations(lambda where=where: ctx.checkpoint(3, where=where))
            ctx.memory.seq_rm(3)
            restored, _ = operations(lambda checkpoint=checkpoint: checkpoint.restore(3))
            assert max(saved, restored) <= most
            checkpoint.release()
            assert [state(seq_id) for seq_id in (2, 3, 4)] == expected
        ctx.close()


@pytest.mark.parametrize("where", ["device", "host"])
def test_a_fault_among_them_changes_nothing(devices: Any, new_context: Make, where: str) -> None:
    with lloyal.Model(models.tiny("llama"), devices=devices) as model:
        cells = Cells(new_context(model, n_ctx=N_CELLS, n_seq_max=5, n_ubatch=32, flash_attn=False), seed=5)
        ctx = cells.ctx
        cells.put(1, 60)
        cells.make_holes(1, 12)
        expected = cells.put(0, 12)
        others = cells.state(1)

        def failing(work: Callable[[], Any], check: Callable[[], None]) -> int:
            for n in range(1000):
                ctx.checkpoints.trim()
                native.fault_arm(n)
                try:
                    work()
                except (errors.OutOfDeviceMemory, errors.DecodeFailed):
                    assert native.fault_remaining() < 0
                    check()
                else:
                    if native.fault_remaining() >= 0:  # it was never reached: everything worked
                        return n
                    check()
                finally:
                    native.fault_arm(-1)
            raise AssertionError("it fails for ever")

        def after_save() -> None:
            ctx.checkpoints.release_all()
            assert ctx.checkpoints.nbytes == 0
            assert (cells.state(0), cells.state(1)) == (expected, others)

        taken: list[lloyal.Checkpoint] = []
        assert failing(lambda: taken.append(ctx.checkpoint(0, where=where)), after_save) > 2
        checkpoint = taken[-1]
        held = ctx.checkpoints.nbytes
        ctx.memory.seq_rm(0)

        def after_restore() -> None:
            assert ctx.checkpoints.nbytes == held
            assert cells.state(1) == others
            assert ctx.memory.seq_pos_max(2) in (-1, 11)
            ctx.memory.seq_rm(2)

        assert failing(lambda: checkpoint.restore(2), after_restore) > 2
        assert cells.state(2) == expected
        ctx.close()
