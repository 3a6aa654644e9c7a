"""The n-th allocation or copy of a save and of a restore fails, for every n, and everything else is as it was.

What a sequence holds is compared as the bytes that llama.cpp writes of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest

import lloyal
from lloyal import errors
from lloyal.native import checkpoint as native
from tests.checkpoints.raw_state import parse
from tests.decode import feed
from tests.models import KINDS, WINDOW, tiny, tokens

Make = Callable[..., lloyal.Context]
MODELS = ("llama", "gemma3", "mamba2", "lfm2", "lfm2-swa", "falcon-h1", "qwen35")


@pytest.fixture(autouse=True)
def disarm() -> Iterator[None]:
    yield
    native.fault_arm(-1)


@dataclasses.dataclass
class Case:
    name: str
    ctx: lloyal.Context
    seqs: tuple[int, ...]

    def states(self) -> list[bytes]:
        """Every sequence, rows in order of position."""
        found = []
        for seq in self.seqs:
            state = parse(self.ctx.state_seq_get_data_ext(seq), KINDS[self.name], self.name == "qwen35")
            found.append((state.without_stale(WINDOW) if self.ctx.model.n_swa else state).encode())
        return found

    def usage(self) -> tuple[int, int, int]:
        checkpoints = self.ctx.checkpoints
        return checkpoints.nbytes, len(checkpoints), lloyal.kv.Tenancy(self.ctx).available


def failing(call: Callable[[], object], check: Callable[[str], None]) -> int:
    """Let `call` fail at every allocation and copy, calling `check` with the message after each; then let it succeed.

    Returns
    -------
    int
        How often it failed.
    """
    n = 0
    while True:
        native.fault_arm(n)
        failed = None
        try:
            call()
        except (errors.OutOfDeviceMemory, errors.DecodeFailed) as error:
            failed = str(error)
        fired = native.fault_remaining() < 0
        native.fault_arm(-1)
        assert fired == (failed is not None), "it failed without a fault, or a fault went unnoticed"
        if failed is None:
            return n
        check(failed)
        n += 1


@pytest.mark.parametrize("partial", [False, True], ids=["full", "partial"])
@pytest.mark.parametrize("where", ["device", "host", "cells"])
@pytest.mark.parametrize("name", MODELS)
def test_a_failing_save_changes_nothing(name: str, where: str, partial: bool, new_context: Make) -> None:
    with lloyal.Model(tiny(name)) as model:
        case = Case(name, new_context(model, n_ubatch=32, n_seq_max=6), (0, 1))
        ctx = case.ctx
        feed(ctx, (0, 0, tokens(30, seed=1)), (1, 0, tokens(20, seed=3)))
        earlier = [ctx.checkpoint(0, where=kind) for kind in ("device", "host")]
        expected_earlier = case.states()[0]
        feed(ctx, (0, 30, tokens(10, seed=2)))
        before, usage = case.states(), case.usage()
        later: list[lloyal.Checkpoint] = []

        def check(message: str) -> None:
            assert case.states() == before
            assert case.usage() == usage
            ctx.checkpoints.trim()

        ctx.checkpoints.trim()
        n = failing(lambda: later.append(ctx.checkpoint(0, where=where, partial=partial)), check)
        # sharing cells takes no memory, and an attention cache keeps nothing that a trim brings back
        assert bool(n) == (where != "cells" and not (partial and name == "llama"))
        feed(ctx, (0, 40, tokens(5)))
        later[0].restore(0)
        assert case.states() == before
        for checkpoint in earlier:
            checkpoint.restore(0)
            assert case.states()[0] == expected_earlier
        ctx.checkpoints.release_all()
        ctx.close()


@pytest.mark.parametrize("partial", [False, True], ids=["full", "partial"])
@pytest.mark.parametrize("where", ["device", "host", "cells"])
@pytest.mark.parametrize("name", MODELS)
def test_a_failing_restore_with_a_spare_sequence_changes_nothing(
    name: str,
    where: str,
    partial: bool,
    new_context: Make,
) -> None:
    with lloyal.Model(tiny(name)) as model:
        case = Case(name, new_context(model, n_ubatch=32, n_seq_max=6), (0, 1, 2, 3, 4))
        ctx = case.ctx
        feed(ctx, (0, 0, tokens(40, seed=1)), (1, 0, tokens(20, seed=3)))
        expected = case.states()[0]
        full = ctx.checkpoint(0)
        checkpoint = ctx.checkpoint(0, where=where, partial=partial)
        ctx.memory.seq_cp(0, 2)
        feed(ctx, (2, 40, tokens(12, seed=4)))
        if not partial:
            # nothing is left to share
            ctx.memory.seq_rm(0)
        before, usage = case.states(), case.usage()

        def check(message: str) -> None:
            assert "injected" in message
            assert "empty" not in message
            assert case.states() == before
            assert case.usage() == usage

        dest = 2 if partial else 1
        n = failing(lambda: checkpoint.restore(dest), check)
        assert bool(n) == (where != "cells" and name != "llama")
        after = case.states()
        assert after[dest] == expected
        assert [s for i, s in enumerate(after) if i != dest] == [s for i, s in enumerate(before) if i != dest]
        # and with every row to be read
        ctx.memory.clear()
        feed(ctx, (1, 0, tokens(7, seed=5)))
        before, usage = case.states(), case.usage()
        n = failing(lambda: full.restore(1), check)
        assert n > 0
        assert case.states()[1] == expected
        ctx.checkpoints.release_all()
        ctx.close()


@pytest.mark.parametrize("unified", [True, False], ids=["unified", "streams"])
@pytest.mark.parametrize("partial", [False, True], ids=["full", "partial"])
@pytest.mark.parametrize("where", ["device", "host"])
@pytest.mark.parametrize("name", MODELS)
def test_a_failing_restore_without_one_empties_and_says_so(
    name: str,
    where: str,
    partial: bool,
    unified: bool,
    new_context: Make,
) -> None:
    with lloyal.Model(tiny(name)) as model:
        case = Case(name, new_context(model, n_ubatch=32, n_seq_max=2, kv_unified=unified), (0, 1))
        ctx = case.ctx
        feed(ctx, (0, 0, tokens(30, seed=1)), (1, 0, tokens(20, seed=3)))
        expected = case.states()
        full = ctx.checkpoint(0)
        checkpoint = ctx.checkpoint(0, where=where, partial=partial)

        def spoil() -> None:
            if ctx.memory.seq_pos_max(0) < 29:
                full.restore(0)
            feed(ctx, (0, 30, tokens(5)))

        def attempt() -> None:
            if partial:
                spoil()
            else:
                ctx.memory.seq_rm(0)
                feed(ctx, (0, 0, tokens(9, seed=6)))
            native.fault_arm(count[0])
            checkpoint.restore(0)

        count = [0]
        while True:
            try:
                attempt()
            except (errors.OutOfDeviceMemory, errors.DecodeFailed) as error:
                message = str(error)
            else:
                break
            finally:
                native.fault_arm(-1)
            assert "sequence 0 is now empty" in message
            assert ctx.memory.seq_pos_max(0) == -1
            assert ctx.memory.provenance(0) == []
            assert case.states()[1] == expected[1]
            full.restore(0)
            assert case.states() == expected
            count[0] += 1
        assert bool(count[0]) == (not (partial and name == "llama"))
        assert case.states() == expected
        ctx.checkpoints.release_all()
        ctx.close()


@pytest.mark.parametrize("name", MODELS)
def test_a_failing_read_of_bytes_changes_nothing(name: str, new_context: Make) -> None:
    with lloyal.Model(tiny(name)) as model:
        case = Case(name, new_context(model, n_ubatch=32, n_seq_max=4), (0, 1))
        ctx = case.ctx
        feed(ctx, (0, 0, tokens(30, seed=1)), (1, 0, tokens(20, seed=3)))
        with ctx.checkpoint(0) as checkpoint:
            data = checkpoint.to_bytes()
        before, usage = case.states(), case.usage()
        copies: list[lloyal.Checkpoint] = []

        def check(message: str) -> None:
            assert case.states() == before
            assert case.usage() == usage
            ctx.checkpoints.trim()

        ctx.checkpoints.trim()
        assert failing(lambda: copies.append(lloyal.Checkpoint.from_bytes(ctx, data)), check) > 0
        copies[0].restore(1)
        assert case.states() == [before[0], before[0]]
        ctx.checkpoints.release_all()
        ctx.close()
