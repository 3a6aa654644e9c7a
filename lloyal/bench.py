"""How lloyal measures: two sides in turns, in one run, and what ``lloyal bench`` reports with it.

Speed is reported as a ratio. Both sides of it run in the same process on the same machine state, one after the other,
again and again; each round gives one ratio, and the median of them is the result. A slow second hits both sides.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from rich.table import Table

from lloyal import Checkpoint, Context, StateSeqFlags
from lloyal.decoding import prefill
from lloyal.errors import InvalidArgument, LloyalError, NoLease, Unsupported
from lloyal.terminal import human_bytes, human_seconds

__all__ = [
    "N_MORE",
    "Timing",
    "alternate",
    "checkpoint_table",
    "measure_checkpoints",
    "plot_checkpoints",
    "plotter",
    "ratio",
    "timed",
]

# One measurement: prepares what it needs, does the work once, returns the seconds of the work alone.
Side = Callable[[], float]


@dataclasses.dataclass(frozen=True)
class Timing:
    """What one side took, or the ratio of two, round by round."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles."""
        if len(self.values) < 2:
            return self.values[0], self.values[0]
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high

    def as_json(self) -> dict[str, object]:
        return {"median": self.median, "quartiles": list(self.spread), "rounds": len(self.values)}


def timed(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call, by the wall or by another clock."""
    began = clock()
    work()
    return clock() - began


def alternate(
    sides: Mapping[str, Side], rounds: int, *, warm_up: int = 1, progress: Callable[[int, int], object] | None = None
) -> dict[str, Timing]:
    """Measure the sides in turns; every other round goes through them backwards.

    Parameters
    ----------
    sides : mapping of str to callable
        Each returns the seconds of one measurement.
    rounds : int
    warm_up : int
        Rounds before that are not counted.
    progress : callable, optional
        Called with the rounds done and their number.

    Returns
    -------
    dict of str to Timing
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(-warm_up, rounds):
        for name in list(sides) if i % 2 else reversed(list(sides)):
            taken = sides[name]()
            if i >= 0:
                seconds[name].append(taken)
        if progress is not None:
            progress(i + warm_up + 1, rounds + warm_up)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def ratio(of: Timing, to: Timing) -> Timing:
    """``of / to`` round by round."""
    return Timing(tuple(a / b for a, b in zip(of.values, to.values, strict=True)))


# lloyal bench checkpoint

READING = "read the prompt again"
RAW = {"llama.cpp, host": StateSeqFlags.NONE, "llama.cpp, ON_DEVICE": StateSeqFlags.ON_DEVICE}
N_MORE = 64  # tokens between two checkpoints that share what is before


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
        ``"identical"``: all of them.

    Notes
    -----
    Every restore goes into an empty sequence. The memory is empty afterwards.
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
    ctx.memory.clear()
    result["identical"] = all(way["identical"] for length in result["lengths"] for way in length["ways"])
    return result


def _read(ctx: Context, tokens: Sequence[int]) -> None:
    prefill(ctx, tokens, logits=False)
    ctx.synchronize()


def _measure_length(ctx: Context, rounds: int) -> dict[str, Any]:
    """Every way at the length that sequence 0 has now, and a plain copy of as many bytes."""
    import numpy as np  # half of what the command line would take to start

    expected = ctx.state_seq_get_data(0)
    ways = [_measure_raw(ctx, name, flags, expected, rounds) for name, flags in RAW.items()]
    ways += [_measure_ours(ctx, where, False, expected, rounds) for where in ("host", "device", "cells")]
    ways.append(_measure_next(ctx, rounds))
    if ctx.memory.kind != "attention":
        ways.append(_measure_ours(ctx, "device", True, expected, rounds))
    size = next(way["bytes"] for way in ways if way and way["name"] == _name("device"))
    block, copy = np.ones(size, dtype=np.uint8), np.zeros(size, dtype=np.uint8)
    memcpy = alternate({"copy": lambda: timed(lambda: np.copyto(copy, block))}, rounds)["copy"]
    return {
        "state_bytes": size,
        "memcpy_seconds": memcpy.as_json(),
        "ways": [way for way in ways if way is not None],
    }


def _measure_raw(ctx: Context, name: str, flags: StateSeqFlags, expected: bytes, rounds: int) -> dict[str, Any] | None:
    try:
        state = ctx.state_seq_get_data_ext(0, flags)
    except Unsupported:
        return None  # ON_DEVICE on a quantized cache
    saves = alternate({"save": lambda: timed(lambda: ctx.state_seq_get_data_ext(0, flags))}, rounds)["save"]
    state = ctx.state_seq_get_data_ext(0, flags)

    def restore() -> float:
        ctx.memory.seq_rm(0)
        return timed(lambda: ctx.state_seq_set_data_ext(state, 0, flags))

    restores = alternate({"restore": restore}, rounds)["restore"]
    return _way(name, saves, restores, len(expected), ctx.state_seq_get_data(0) == expected)


def _measure_ours(ctx: Context, where: str, only_part: bool, expected: bytes, rounds: int) -> dict[str, Any] | None:
    try:
        saves = alternate({"save": partial(_save, ctx, where, only_part)}, rounds)["save"]
    except (Unsupported, NoLease):
        return None  # cells, where the memory or n_seq_max has none to share
    with ctx.checkpoint(0, where=where, partial=only_part) as checkpoint:
        pos_max = checkpoint.pos_max

        def restore() -> float:
            if only_part:
                prefill(ctx, [0], logits=False)  # one token more, to be taken back
            else:
                ctx.memory.seq_rm(0)
            return timed(checkpoint.restore)

        restores = alternate({"restore": restore}, rounds)["restore"]
        size = checkpoint.nbytes
    identical = ctx.memory.seq_pos_max(0) == pos_max and ctx.state_seq_get_data(0) == expected
    return _way(_name(where, "partial" if only_part else ""), saves, restores, size, identical)


def _measure_next(ctx: Context, rounds: int) -> dict[str, Any]:
    """The next checkpoint while one before it lives: only what came in between is copied, both ways."""
    with ctx.checkpoint(0) as before:
        held = ctx.checkpoints.nbytes
        prefill(ctx, [0] * N_MORE, logits=False)
        expected = ctx.state_seq_get_data(0)
        saves = alternate({"save": partial(_save, ctx, "device", False)}, rounds)["save"]
        with ctx.checkpoint(0) as checkpoint:
            size = ctx.checkpoints.nbytes - held

            def restore() -> float:
                before.restore()
                return timed(checkpoint.restore)

            restores = alternate({"restore": restore}, rounds)["restore"]
            identical = ctx.state_seq_get_data(0) == expected
        before.restore()
    return _way(_name("device", f"+{N_MORE} tokens"), saves, restores, size, identical)


def _save(ctx: Context, where: str, only_part: bool) -> float:
    taken: list[Checkpoint] = []
    seconds = timed(lambda: taken.append(ctx.checkpoint(0, where=where, partial=only_part)))
    taken[0].release()
    return seconds


def _name(where: str, how: str = "") -> str:
    return f"checkpoint, {where}" + (f", {how}" if how else "")


def _way(name: str, saves: Timing, restores: Timing, size: int, identical: bool) -> dict[str, Any]:
    return {"name": name, "save": saves.as_json(), "restore": restores.as_json(), "bytes": size, "identical": identical}


def checkpoint_table(result: dict[str, Any]) -> Table:
    """The result of `measure_checkpoints` for a terminal."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", show_edge=False)
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("way", no_wrap=True)
    for name in ("save", "restore", "vs reading", "keeps"):
        table.add_column(name, justify="right", no_wrap=True)
    for length in result["lengths"]:
        reading = human_seconds(length["read_seconds"])
        table.add_row(str(length["n_tokens"]), READING, "", reading, "1x", "", style="dim")
        for way in length["ways"]:
            restore = way["restore"]["median"]
            table.add_row(
                "",
                way["name"],
                human_seconds(way["save"]["median"]),
                human_seconds(restore),
                f"{length['read_seconds'] / restore:.0f}x",
                human_bytes(way["bytes"]),
            )
        size = human_bytes(length["state_bytes"])
        copying = human_seconds(length["memcpy_seconds"]["median"])
        table.add_row("", f"plain copy, {size}", copying, "", "", "", style="dim")
    return table


def plot_checkpoints(result: dict[str, Any], path: str) -> None:
    """Write a picture of the result: seconds to restore over the tokens of the prompt, for every way.

    Raises
    ------
    LloyalError
        matplotlib is missing.
    InvalidArgument
        The name ends in no format that matplotlib writes.
    OSError
        The file cannot be written.
    """
    figure = plotter()(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    lengths = result["lengths"]
    n_tokens = [length["n_tokens"] for length in lengths]
    names = [way["name"] for way in lengths[-1]["ways"]]
    for side, what in zip(axes, ("save", "restore"), strict=True):
        for name in names:
            seconds = [next(way for way in length["ways"] if way["name"] == name)[what]["median"] for length in lengths]
            side.plot(n_tokens, seconds, marker="o", label=name)
        if what == "restore":
            reading = [length["read_seconds"] for length in lengths]
            side.plot(n_tokens, reading, marker="o", color="grey", linestyle="--", label=READING)
        side.set(title=what, xlabel="tokens", xscale="log", yscale="log")
        side.set_xticks(n_tokens, [str(n) for n in n_tokens])
        side.minorticks_off()
        side.grid(visible=True, alpha=0.3)
    axes[0].set_ylabel("seconds")
    axes[1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(f"{result.get('model', 'model')}, {result['memory'].replace('_', ' ')} memory")
    try:
        figure.savefig(path)
    except ValueError as error:
        raise InvalidArgument(f"{path}: {error}") from None


def plotter() -> Any:
    """The class of matplotlib that draws, or `LloyalError` if it is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise LloyalError("a plot needs matplotlib: pip install 'lloyal[plot]'") from None
    return Figure
