"""``lloyal bench``."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import Console

from lloyal import Context, Model
from lloyal.bench import N_MORE, check_plot, checkpoint_table, lockstep_line, measure_checkpoints, plot_checkpoints
from lloyal.cli.options import AsJson, Threads, find_model
from lloyal.cli.output import write_json
from lloyal.terminal import progress_bar

__all__ = ["checkpoint"]


def checkpoint(
    model: Annotated[str, typer.Option("--model", "-m", help="A GGUF file, or an embedded model.")] = "nano",
    tokens: Annotated[int, typer.Option("--n-tokens", "-n", min=64, help="Length of the prompt.")] = 4096,
    plot: Annotated[str | None, typer.Option("--plot", help="Write a picture to this file (.png, .svg, .pdf).")] = None,
    n_gpu_layers: Annotated[int, typer.Option("--n-gpu-layers", help="Layers on the devices; -1 is all.")] = -1,
    threads: Threads = 1,
    as_json: AsJson = False,
) -> None:
    """Every way to keep a state and bring it back, at three lengths of a prompt."""
    if plot is not None:
        check_plot(plot)  # what is missing is said before the work, not after
    began = time.perf_counter()
    lengths = sorted({max(16, tokens // 16), max(16, tokens // 4), tokens})
    with Model(find_model(model), n_gpu_layers=n_gpu_layers) as loaded:
        prompt = _numbers(loaded, tokens)
        with Context(loaded, n_ctx=tokens + N_MORE, n_batch=512, n_seq_max=4, n_threads=threads) as ctx:
            with progress_bar("Measuring") as show:
                result = {"model": model} | measure_checkpoints(ctx, prompt, lengths, progress=show)
    result["n_threads"] = threads
    result["seconds"] = time.perf_counter() - began
    if plot is not None:
        plot_checkpoints(result, plot)
    if as_json:
        write_json(result)
    else:
        console = Console(highlight=False)
        console.print(checkpoint_table(result))
        if "lockstep" in result:
            console.print("\n" + lockstep_line(result["lockstep"]))
        good = "Every restored state has the bytes it had." if result["identical"] else "A RESTORED STATE DIFFERS."
        console.print(f"\n{good}", style="green" if result["identical"] else "bold red")
    if not result["identical"]:
        raise typer.Exit(1)


def _numbers(model: Model, n: int) -> list[int]:
    """A prompt of `n` tokens that any vocabulary has; what it says does not matter for copying."""
    text = model.vocab.tokenize(" ".join(map(str, range(n))))
    return (text * (n // len(text) + 1))[:n]
