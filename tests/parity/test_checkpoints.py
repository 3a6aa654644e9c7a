"""Checkpoints over the architectures of llama.cpp: what is restored is, byte for byte, what a twin without any has.

Two sequences interleave while eight checkpoints are taken; they are restored in a random order into random sequences,
of the context itself and of an empty one. llama.cpp writes states in the order of cells: where that is the order of
positions (in an empty cache, and in buffers of a sequence's own) the bytes must be equal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import lloyal
from lloyal.errors import DecodeFailed, OutOfDeviceMemory, Unsupported
from lloyal.native import checkpoint as native
from tests.checkpoints.raw_state import LAYERS_OF, parse
from tests.decode import distance, feed
from tests.models import tokens
from tests.parity.architectures import Architecture, Contexts, chosen, contexts_of

N_CHECKPOINTS = 8
N_SEQ = 4
CONTEXT: dict[str, Any] = {"n_ctx": 1024, "n_batch": 64, "n_ubatch": 64, "n_seq_max": N_SEQ, "n_threads": 1}
NEXT = tokens(3, seed=2)

# Kinds of memory whose checkpoints hold the state as one piece, and what they cannot do for it.
NOT_SERIALIZED = {
    "sparse_attention": "caches that mirror each other cell for cell; llama.cpp's format cannot be checked beforehand",
    "compressed": "rows are folded into compressed ones; llama.cpp's format cannot be checked beforehand",
    "hybrid_indexed": "an index beside the cache; llama.cpp's format cannot be checked beforehand",
}


@pytest.fixture
def contexts(model: lloyal.Model) -> Iterator[Contexts]:
    with contexts_of(model, CONTEXT) as make:
        yield make


with_memory = pytest.mark.parametrize("arch", chosen(lambda arch: arch.has_memory), indirect=True)
# Shared rows lie in other cells than the twin's: without rounding to f16 that hardly moves logits.
EXACT: dict[str, Any] = {"type_k": "f32", "type_v": "f32", "flash_attn": "off"}
MODES: dict[str, dict[str, Any]] = {
    "unified": {"kv_unified": True},
    "unified-f32": {"kv_unified": True} | EXACT,
    "streams": {"kv_unified": False},
}


def rows_of(blob: bytes, kind: str) -> bytes:
    """A state with its rows in order of position, in the first of llama.cpp's forms that accounts for every byte."""
    for has_v, mrope in itertools.product((True, False), (False, True)):
        with contextlib.suppress(AssertionError, ValueError, struct.error):
            return parse(blob, kind, mrope, has_v).encode()
    raise AssertionError(f"{len(blob)} bytes are no state of {kind} memory")


ONE_BY_ONE = {"plamo2-dense"}


@dataclasses.dataclass
class Taken:
    checkpoint: lloyal.Checkpoint
    seq_id: int
    end: int
    state: bytes  # the twin's


@with_memory
@pytest.mark.parametrize("mode", MODES)
def test_eight_checkpoints_in_any_order(arch: Architecture, contexts: Contexts, tolerance: float, mode: str) -> None:
    rng = random.Random(f"{arch.name} {mode}")
    ctx, twin, clean, judge = (contexts(**MODES[mode]) for _ in range(4))
    ends = {0: 0, 1: 0}
    taken: list[Taken] = []
    for i in range(N_CHECKPOINTS):
        seq = i % 2 if i < 2 else rng.choice((0, 1))
        back = rng.randint(1, 5)
        if mode == "streams" and ends[seq] > 10 and ctx.memory.can_rollback(seq, back) == "trim":
            ends[seq] -= back
            for context in (ctx, twin):
                context.memory.seq_rm(seq, ends[seq], -1)
        parts = [(seq, ends[seq], tokens(rng.randint(1, 12), seed=rng.randrange(10**6)))]
        if rng.random() < 0.5:
            parts.append((1 - seq, ends[1 - seq], tokens(rng.randint(1, 6), seed=rng.randrange(10**6))))
        for context in (ctx, twin):
            # llama.cpp mixes up the sequences of a batch in some
            for batch in [[part] for part in parts] if arch.name in ONE_BY_ONE else [parts]:
                feed(context, *batch)
        for part in parts:
            ends[part[0]] += len(part[2])
        checkpoint = ctx.checkpoint(seq, where=rng.choice(("device", "host")))
        taken.append(Taken(checkpoint, seq, ends[seq], twin.state_seq_get_data_ext(seq)))
    rng.shuffle(taken)
    for one in taken:
        dest = rng.randrange(N_SEQ)
        judge.memory.clear()
        judge.state_seq_set_data_ext(one.state, dest)
        expected = judge.state_seq_get_data_ext(dest)
        # into an empty context: the same cells, so the same logits
        clean.memory.clear()
        one.checkpoint.restore(dest, ctx=clean)
        assert clean.state_seq_get_data_ext(dest) == expected
        row = feed(judge, (dest, one.end, NEXT))[0]
        assert distance(feed(clean, (dest, one.end, NEXT))[0], row) == 0
        # into the context it was taken in
        one.checkpoint.restore(dest)
        if mode == "streams":
            assert ctx.state_seq_get_data_ext(dest) == expected
        elif arch.kind in LAYERS_OF:
            # in other cells: compared in order of position
            assert rows_of(ctx.state_seq_get_data_ext(dest), arch.kind) == rows_of(expected, arch.kind)
        got = feed(ctx, (dest, one.end, NEXT))[0]
        assert mode == "unified" or distance(got, row) <= tolerance
        one.checkpoint.release()
    assert ctx.checkpoints.nbytes == 0


@with_memory
def test_bytes_or_a_refusal_with_a_reason(arch: Architecture, contexts: Contexts) -> None:
    ctx, other = contexts(), contexts()
    feed(ctx, (0, 0, tokens(30)))
    with ctx.checkpoint() as checkpoint:
        if arch.kind in NOT_SERIALIZED:
            with pytest.raises(Unsupported, match="cannot be serialized"):
                checkpoint.to_bytes()
            return
        with lloyal.Checkpoint.from_bytes(other, checkpoint.to_bytes()) as copy:
            copy.restore(2)
    expected = contexts()
    expected.state_seq_set_data_ext(ctx.state_seq_get_data_ext(0), 2)
    assert other.state_seq_get_data_ext(2) == expected.state_seq_get_data_ext(2)


@pytest.mark.parametrize("spare", [True, False], ids=["spare", "no_spare"])
@pytest.mark.parametrize("arch", chosen(lambda arch: arch.kind in NOT_SERIALIZED), indirect=True)
def test_failing_copies_of_whole_states(contexts: Contexts, spare: bool) -> None:
    """Every copy of a save and a restore fails once: nothing changes, or the destination is empty, as is said."""
    ctx, judge = (contexts(n_seq_max=3 if spare else 2) for _ in range(2))
    feed(ctx, (0, 0, tokens(20)), (1, 0, tokens(9, seed=1)))
    states = [ctx.state_seq_get_data_ext(seq) for seq in (0, 1)]

    def attempt(call: Callable[[], object], n: int) -> str | None:
        native.fault_arm(n)
        try:
            call()
        except (DecodeFailed, OutOfDeviceMemory) as error:
            return str(error)
        finally:
            native.fault_arm(-1)
        return None

    taken: list[lloyal.Checkpoint] = []
    n = 0
    while attempt(lambda: taken.append(ctx.checkpoint(0)), n) is not None:
        assert [ctx.state_seq_get_data_ext(seq) for seq in (0, 1)] == states
        assert ctx.checkpoints.nbytes == 0
        ctx.checkpoints.trim()
        n += 1
    assert n > 1
    feed(ctx, (0, 20, tokens(3)))
    # compressed memory has a stream for every sequence, whatever kv_unified says: nothing can be handed over
    staged = spare and ctx.memory.unified
    judge.state_seq_set_data_ext(states[0], 0)
    expected = judge.state_seq_get_data_ext(0)
    n = 0
    while (message := attempt(lambda: taken[0].restore(1), n)) is not None:
        assert ("is now empty" in message) == (not staged)
        if staged:
            assert ctx.state_seq_get_data_ext(1) == states[1]
        else:
            assert ctx.memory.seq_pos_max(1) == -1
            feed(ctx, (1, 0, tokens(9, seed=1)))
        n += 1
    assert n > 1
    judge.state_seq_set_data_ext(ctx.state_seq_get_data_ext(1), 0)
    assert judge.state_seq_get_data_ext(0) == expected
    taken[0].release()
