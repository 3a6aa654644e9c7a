"""Rows that lie here and there are gathered and scattered bit for bit, whatever their types, sizes and cells.

The caches are filled with random bytes, many of them no numbers, by llama.cpp's own copy, and the rows of one sequence
get whatever cells another one left free. What llama.cpp writes of the sequences says whether a byte is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import lloyal
from lloyal import errors
from lloyal.native import checkpoint as native
from tests import models
from tests.checkpoints.raw_state import parse
from tests.gpu.cells import LAYOUTS, N_CELLS, Cells, write_model

Make = Callable[..., lloyal.Context]


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
