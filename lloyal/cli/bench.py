"""``lloyal bench``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lloyal import Context, Model
from lloyal.bench import (
    N_MORE,
    WIDTHS,
    check_plot,
    checkpoint_table,
    lockstep_line,
    measure_checkpoints,
    measure_speculation,
    measure_widths,
    plot_checkpoints,
    plot_widths,
    speculation_table,
    width_table,
)
from lloyal.cli.options import AsJson, Threads, draft_for, find_model
from lloyal.cli.output import write_json
from lloyal.terminal import progress_bar

__all__ = ["checkpoint", "speculative", "width"]

PROMPTS = (
    """import os


def read_lines(path):
    with open(path) as file:
        return file.readlines()


def write_lines(""",
    """class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)
""",
)


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


def width(
    model: Annotated[str, typer.Option("--model", "-m", help="A GGUF file, or an embedded model.")] = "nano",
    depth: Annotated[
        list[int] | None, typer.Option("--depth", "-d", min=1, help="Tokens in front; may be repeated.")
    ] = None,
    plot: Annotated[str | None, typer.Option("--plot", help="Write a picture to this file (.png, .svg, .pdf).")] = None,
    n_gpu_layers: Annotated[int, typer.Option("--n-gpu-layers", help="Layers on the devices; -1 is all.")] = -1,
    threads: Threads = 1,
    as_json: AsJson = False,
) -> None:
    """What a batch of several rows costs, in steps of one row: what guesses have to earn."""
    if plot is not None:
        check_plot(plot)
    depths = sorted(set(depth or (128, 1024)))
    with Model(find_model(model), n_gpu_layers=n_gpu_layers) as loaded:
        prompt = _numbers(loaded, max(depths[-1], max(WIDTHS)))
        contexts: dict[str, Context] = {}
        try:
            for name, flash in (("flash attention", True), ("without", False)):
                contexts[name] = Context(
                    loaded, n_ctx=depths[-1] + max(WIDTHS), n_seq_max=1, n_threads=threads, n_threads_batch=threads,
                    flash_attn=flash,
                )  # fmt: skip
            with progress_bar("Measuring") as show:
                result: dict[str, Any] = {"model": model, "n_threads": threads}
                result |= measure_widths(contexts, prompt, depths, progress=show)
        finally:
            for ctx in contexts.values():
                ctx.close()
    if plot is not None:
        plot_widths(result, plot)
    if as_json:
        write_json(result)
    else:
        console = Console(highlight=False)
        console.print(width_table(result))
        console.print("\nThe first line is a step of one row; the others are such steps.", style="dim")


def speculative(
    model: Annotated[str, typer.Option("--model", "-m", help="A GGUF file, or an embedded model.")] = "nano",
    draft: Annotated[
        str, typer.Option("--draft", help="ngram, suffix, or a small model (a GGUF file or an embedded one).")
    ] = "nano-draft",
    guesses: Annotated[
        list[int] | None, typer.Option("--guesses", "-g", min=1, max=64, help="Of a step; may be repeated.")
    ] = None,
    prompt: Annotated[Path | None, typer.Option("--prompt", "-p", help="A file with the text to go on from.")] = None,
    tokens: Annotated[int, typer.Option("--n-tokens", "-n", min=8, help="To generate.")] = 256,
    n_gpu_layers: Annotated[int, typer.Option("--n-gpu-layers", help="Layers on the devices; -1 is all.")] = -1,
    flash_attn: Annotated[bool | None, typer.Option(help="By default llama.cpp's choice.")] = None,
    threads: Threads = 1,
    as_json: AsJson = False,
) -> None:
    """What guesses are worth: tokens a second against plain steps, in turns, and whether the text is the same."""
    texts = PROMPTS if prompt is None else (prompt.read_text(encoding="utf-8", errors="replace"),)
    with Model(find_model(model), n_gpu_layers=n_gpu_layers) as loaded:
        longest = max(len(loaded.vocab.tokenize(text)) for text in texts)
        with Context(
            loaded, n_ctx=longest + tokens + 65, n_seq_max=1, n_threads=threads, n_threads_batch=threads,
            flash_attn="auto" if flash_attn is None else flash_attn,
        ) as ctx:  # fmt: skip
            drafter, small = draft_for(draft, ctx)
            try:
                with progress_bar("Measuring") as show:
                    result: dict[str, Any] = {"model": model, "draft": draft, "n_threads": threads}
                    result |= measure_speculation(
                        ctx,
                        lambda: drafter,
                        texts,
                        n_tokens=tokens,
                        numbers=[None, *(guesses or (1, 2, 4, 8))],
                        progress=show,
                    )
            finally:
                if small is not None:
                    small.close()
    if as_json:
        write_json(result)
    else:
        Console(highlight=False).print(speculation_table(result))


def _numbers(model: Model, n: int) -> list[int]:
    """A prompt of `n` tokens that any vocabulary has; what it says does not matter for copying."""
    text = model.vocab.tokenize(" ".join(map(str, range(n))))
    return (text * (n // len(text) + 1))[:n]
