"""``lloyal demo``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from lloyal.cli.options import AsJson, Threads
from lloyal.cli.output import write_json
from lloyal.demo import tour

__all__ = ["demo"]


def demo(
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=64, max=16384, help="Length of the prompt.")] = 2048,
    threads: Threads = 1,
    as_json: AsJson = False,
) -> None:
    """A guided tour on the embedded models: checkpoints in device memory, and what they save."""
    result = tour(Console(quiet=as_json, highlight=False), n_tokens=tokens, n_threads=threads or 1)
    if as_json:
        write_json(result)
    if not result["identical"]:
        raise typer.Exit(1)
