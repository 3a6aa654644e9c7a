"""``lloyal demo``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from lloyal.cli.options import AsJson, Threads, find_model
from lloyal.cli.output import write_json
from lloyal.demo import tour

__all__ = ["demo"]


def demo(
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=64, max=16384, help="Length of the prompt.")] = 2048,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A GGUF file instead of the embedded models.")
    ] = None,
    threads: Threads = 1,
    as_json: AsJson = False,
) -> None:
    """A guided tour: checkpoints in device memory, and what they save."""
    path = find_model(model) if model is not None else None
    result = tour(Console(quiet=as_json, highlight=False), n_tokens=tokens, n_threads=threads or 1, model=path)
    if as_json:
        write_json(result)
    if not result["identical"]:
        raise typer.Exit(1)
