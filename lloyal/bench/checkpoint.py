"""``lloyal bench checkpoint``: every way to keep a state and bring it back, measured in turns."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lloyal import Checkpoint, Context, StateSeqFlags
from lloyal.bench.timing import Side, Timing, alternate, ratio, timed
from lloyal.checkpoint.place import Place
from lloyal.decoding import prefill
from lloyal.errors import NoLease, Unsupported
from lloyal.native import checkpoint as native

__all__ = ["N_MORE", "N_TOGETHER", "measure_checkpoints"]

RAW = {"llama.cpp, host": StateSeqFlags.NONE, "llama.cpp, ON_DEVICE": StateSeqFlags.ON_DEVICE}
N_MORE = 64  # tokens between two checkpoints that share what is before
N_TOGETHER = 16  # sequences in lockstep
_NEVER = 10**9  # operations


def measure_checkpoints(
    ctx: Context,
    tokens: Sequence[int],
    lengths: Sequence[int],
    *,
    rounds: int = 7,
    progress: Callable[[float, float], object] = lambda done, total: None,
) -> dict[str, Any]:
    """Read a prompt, and at several lengths measure every way to keep and bring back the state.

    Parameters
    ----------
    ctx : Context
        Empty, with room for the prompt and `N_MORE` tokens, and two sequences at least.
    tokens : sequence of int
        The prompt, at least ``max(lengths)`` tokens.
    lengths : sequence of int
        Where to stop and measure, ascending.
    rounds : int
        Measurements of each way; medians and quartiles are reported.
    progress : callable, optional
        Called with the work done and all of it.

    Returns
    -------
    dict
        ``"lengths"``: for each its tokens, the seconds that reading took and the ways, each with ``save`` and
        ``restore`` timings, ``bytes`` kept and ``identical``: whether the restored state has the bytes it had.
        ``"lockstep"``, where every row is kept: what one of `N_TOGETHER` sequences that were decoded together takes,
        as parts of the same rows side by side, and how many copies and allocations that is.
        ``"identical"``: all of them.

    Notes
    -----
    Everything at one length is measured in turns. Restores go into an empty sequence; the partial one takes one token
    back, and that of the next checkpoint `N_MORE`. The memory is empty afterwards.
    """
    result: dict[str, Any] = {"memory": ctx.memory.kind, "lengths": []}
    seconds = 0.0
    read = 0
    for n in lengths:
        for begin in range(read, n, ctx.n_batch):
            part = tokens[begin : min(begin + ctx.n_batch, n)]
            seconds += timed(partial(_read, ctx, part))
            progress(begin + len(part), max(lengths))
        read = n
        result["lengths"].append({"n_tokens": n, "read_seconds": seconds, **_measure_length(ctx, rounds)})
    if ctx.memory.kind == "attention":
        result["lockstep"] = _measure_lockstep(ctx, max(lengths), rounds)
    ctx.memory.clear()
    found = [way for length in result["lengths"] for way in length["ways"]] + [result.get("lockstep", {})]
    result["identical"] = all(way.get("identical", True) for way in found)
    return result


def _read(ctx: Context, tokens: Sequence[int]) -> None:
    prefill(ctx, tokens, logits=False)
    ctx.synchronize()


@dataclasses.dataclass
class _Way:
    """One way to keep the state of sequence 0 and bring it back; rows are made fresh, so that nothing is shared."""

    name: str
    save: Side
    restore: Side
    n_bytes: int
    expected: bytes


def _measure_length(ctx: Context, rounds: int) -> dict[str, Any]:
    """Every way at the length that sequence 0 has now, and a plain copy of as many bytes, all of them in turns."""
    import numpy as np  # half of what the command line would take to start

    state = ctx.state_seq_get_data_ext(0)
    ways = _ways(ctx, state)
    size = next(way.n_bytes for way in ways if way.name == _name("device"))
    block, copy = np.ones(size, dtype=np.uint8), np.zeros(size, dtype=np.uint8)
    plain: dict[str, Side] = {"": lambda: timed(lambda: np.copyto(copy, block))}
    saves = alternate(plain | {way.name: way.save for way in ways}, rounds)
    restores = alternate({way.name: way.restore for way in ways}, rounds)
    found = []
    for way in ways:
        way.restore()
        times = {"save": saves[way.name].as_json(), "restore": restores[way.name].as_json()}
        identical = ctx.state_seq_get_data(0) == way.expected
        found.append({"name": way.name, **times, "bytes": way.n_bytes, "identical": identical})
    _reset(ctx, state)
    return {"state_bytes": size, "memcpy_seconds": saves[""].as_json(), "ways": found}


def _reset(ctx: Context, state: bytes) -> None:
    ctx.memory.seq_rm(0)
    ctx.state_seq_set_data_ext(state, 0)


def _ways(ctx: Context, state: bytes) -> list[_Way]:
    ways = []
    for name, flags in RAW.items():
        with contextlib.suppress(Unsupported):  # ON_DEVICE on a quantized cache
            ways.append(_raw_way(ctx, name, flags, state))
    places: tuple[Place, ...] = ("host", "device", "cells")
    for where in places:
        with contextlib.suppress(Unsupported, NoLease):  # cells, where the memory or n_seq_max has none to share
            ways.append(_our_way(ctx, where, False, state))
    ways.append(_next_way(ctx, state))
    if ctx.memory.kind != "attention":
        ways.append(_our_way(ctx, "device", True, state))
    return ways


def _raw_way(ctx: Context, name: str, flags: StateSeqFlags, state: bytes) -> _Way:
    def save() -> float:
        return timed(lambda: ctx.state_seq_get_data_ext(0, flags))

    def restore() -> float:
        _reset(ctx, state)
        blob = ctx.state_seq_get_data_ext(0, flags)
        ctx.memory.seq_rm(0)
        return timed(lambda: ctx.state_seq_set_data_ext(blob, 0, flags))

    save()  # or Unsupported
    expected = ctx.state_seq_get_data(0)
    return _Way(name, save, restore, len(expected), expected)


def _our_way(ctx: Context, where: Place, only_part: bool, state: bytes) -> _Way:
    """`only_part`: one token is decoded and taken back; otherwise the restore finds the sequence empty."""

    def restore() -> float:
        _reset(ctx, state)
        with ctx.checkpoint(0, where=where, partial=only_part) as checkpoint:
            if only_part:
                prefill(ctx, [0], logits=False)
            else:
                ctx.memory.seq_rm(0)
            return timed(checkpoint.restore)

    _reset(ctx, state)
    with ctx.checkpoint(0, where=where, partial=only_part) as checkpoint:
        size = checkpoint.nbytes
    name = _name(where, "partial" if only_part else "")
    return _Way(name, lambda: _save(ctx, where, only_part), restore, size, ctx.state_seq_get_data(0))


def _next_way(ctx: Context, state: bytes) -> _Way:
    """The next checkpoint while one before it lives: only what came in between is copied, both ways."""

    def after(work: Callable[[Checkpoint], float]) -> float:
        _reset(ctx, state)
        with ctx.checkpoint(0) as before:
            prefill(ctx, [0] * N_MORE, logits=False)
            return work(before)

    def save() -> float:
        seconds = after(lambda before: _save(ctx, "device", False))
        _reset(ctx, state)
        return seconds

    def restore(before: Checkpoint) -> float:
        with ctx.checkpoint(0) as checkpoint:
            before.restore()
            return timed(checkpoint.restore)

    def size(before: Checkpoint) -> float:
        held = ctx.checkpoints.nbytes
        with ctx.checkpoint(0):
            return ctx.checkpoints.nbytes - held

    n_bytes = int(after(size))
    expected = ctx.state_seq_get_data(0)
    _reset(ctx, state)
    return _Way(_name("device", f"+{N_MORE} tokens"), save, partial(after, restore), n_bytes, expected)


def _measure_lockstep(ctx: Context, n_tokens: int, rounds: int) -> dict[str, Any]:
    """Rows in cells of sequence 0 that are freed for them: every so many, or the same number in one place."""
    n_rows = n_tokens // N_TOGETHER
    state = ctx.state_seq_get_data_ext(0)
    ctx.memory.seq_cp(0, 1, 0, n_rows)
    rows = ctx.state_seq_get_data_ext(1)

    def place(step: int) -> None:
        ctx.memory.clear()
        ctx.state_seq_set_data_ext(state, 0)
        for i in range(n_rows):
            ctx.memory.seq_rm(0, i * step, i * step + 1)
        ctx.state_seq_set_data_ext(rows, 1)

    seconds: dict[str, dict[int, list[float]]] = {"save": {}, "restore": {}}
    n_copies = dict.fromkeys(seconds, 0)

    def measure(what: str, step: int, work: Callable[[], object]) -> None:
        native.fault_arm(_NEVER)
        try:
            seconds[what].setdefault(step, []).append(timed(work))
            n_copies[what] = _NEVER - native.fault_remaining()
        finally:
            native.fault_arm(-1)

    identical = True
    taken: list[Checkpoint] = []
    for step in (1, N_TOGETHER) * rounds:
        place(step)
        before = ctx.state_seq_get_data(1)
        measure("save", step, lambda: taken.append(ctx.checkpoint(1)))
        with taken.pop() as checkpoint:
            ctx.memory.seq_rm(1)
            measure("restore", step, checkpoint.restore)
        identical = identical and ctx.state_seq_get_data(1) == before
    ratios = {
        what: ratio(Timing(tuple(by_step[N_TOGETHER])), Timing(tuple(by_step[1]))).as_json()
        for what, by_step in seconds.items()
    }
    return {"n_sequences": N_TOGETHER, "n_rows": n_rows, **ratios, "n_copies": n_copies, "identical": identical}


def _save(ctx: Context, where: Place, only_part: bool) -> float:
    taken: list[Checkpoint] = []
    seconds = timed(lambda: taken.append(ctx.checkpoint(0, where=where, partial=only_part)))
    taken[0].release()
    return seconds


def _name(where: str, how: str = "") -> str:
    return f"checkpoint, {where}" + (f", {how}" if how else "")
