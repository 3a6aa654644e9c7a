"""What ``lloyal bench`` shows of a measurement: a table, a line, a picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rich.table import Table

from lloyal.errors import InvalidArgument, LloyalError
from lloyal.terminal import human_bytes, human_seconds

__all__ = [
    "READING",
    "check_plot",
    "checkpoint_table",
    "lockstep_line",
    "plot_checkpoints",
    "plot_widths",
    "plotter",
    "speculation_table",
    "width_table",
]

READING = "read the prompt again"


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


def lockstep_line(found: dict[str, Any]) -> str:
    """What `measure_checkpoints` says of sequences in lockstep, in a line."""
    save, restore = (f"{found[what]['median']:.2f}x" for what in ("save", "restore"))
    rows = f"{found['n_rows']} rows of one of {found['n_sequences']} sequences in lockstep"
    return f"{rows}: save {save}, restore {restore} of side by side, {max(found['n_copies'].values())} copies"


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
    _save(figure, path)


def width_table(result: dict[str, Any]) -> Table:
    """The result of `measure_widths` for a terminal: a column for every depth and setting."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    table.add_column("rows", justify="right", no_wrap=True)
    columns = [(depth["n_tokens"], setting) for depth in result["depths"] for setting in depth["settings"]]
    for n_tokens, setting in columns:
        table.add_column(f"at {n_tokens},\n{setting['name']}", justify="right", no_wrap=True)
    for i, width in enumerate(columns[0][1]["widths"]):
        cells = []
        for _, setting in columns:
            one = setting["widths"][i]
            cells.append(human_seconds(one["seconds"]["median"]) if i == 0 else f"{one['steps']['median']:.2f}x")
        table.add_row(str(width["n_rows"]), *cells)
    return table


def speculation_table(result: dict[str, Any]) -> Table:
    """The result of `measure_speculation` for a terminal."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    for name in ("guesses", "tokens/s", "of plain", "", "a step", "right", "same text"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("none", f"{1 / result['plain']['median']:.0f}", "1.00x", "", "1.00", "", "", style="dim")
    for one in result["numbers"]:
        low, high = one["speed"]["quartiles"]
        right = f"{one['kept'] / one['guessed']:.0%} of {one['guessed']}" if one["guessed"] else "none read"
        table.add_row(
            "as found" if one["n"] is None else str(one["n"]),
            f"{1 / one['seconds']['median']:.0f}",
            f"{one['speed']['median']:.2f}x",
            f"{low:.2f} to {high:.2f}",
            f"{one['tokens_per_step']:.2f}",
            right,
            "yes" if one["same"] == 1 else f"for {one['same']:.0%}",
        )
    return table


def plot_widths(result: dict[str, Any], path: str) -> None:
    """Write a picture of the result of `measure_widths`: steps of one row over rows. Raises as `plot_checkpoints`."""
    figure = plotter()(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for depth in result["depths"]:
        for setting in depth["settings"]:
            rows = [width["n_rows"] for width in setting["widths"]]
            steps = [width["steps"]["median"] for width in setting["widths"]]
            axes.plot(rows, steps, marker="o", label=f"at {depth['n_tokens']}, {setting['name']}")
    axes.plot(rows, rows, color="grey", linestyle="--", label="row by row")
    axes.set(title=result.get("model", "model"), xlabel="rows in a batch", ylabel="steps of one row")
    axes.set_xticks(rows)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    _save(figure, path)


def _save(figure: Any, path: str) -> None:
    try:
        figure.savefig(path)
    except ValueError as error:
        raise InvalidArgument(f"{path}: {error}") from None


def check_plot(path: str) -> None:
    """Raise what `plot_checkpoints` would raise for this path, before anything is measured."""
    formats = plotter()().canvas.get_supported_filetypes()
    kind = Path(path).suffix.removeprefix(".").lower()
    if kind not in formats:
        raise InvalidArgument(
            f"{path}: the name must end in one of {', '.join('.' + name for name in sorted(formats))}"
        )
    if not os.access(Path(path).parent, os.W_OK):
        raise InvalidArgument(f"{path}: there is no folder {str(Path(path).parent)!r} that can be written to")


def plotter() -> Any:
    """The class of matplotlib that draws, or `LloyalError` if it is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise LloyalError("a plot needs matplotlib: pip install 'lloyal[plot]'") from None
    return Figure
