"""``lloyal embed``."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Literal

import numpy
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lloyal import Model
from lloyal.cli.options import AsJson, Threads, find_model
from lloyal.cli.output import write_json
from lloyal.embedding import embed as embed_texts
from lloyal.errors import InvalidArgument
from lloyal.terminal import printable

__all__ = ["embed"]

N_NEAREST = 3


def embed(
    model: Annotated[str, typer.Option("--model", "-m", help="A GGUF file, or the name of an embedded model.")],
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts; none, or -, reads the lines of standard input.")
    ] = None,
    pooling: Annotated[
        Literal["mean", "cls", "last"] | None, typer.Option(help="How tokens become one; by default the model's way.")
    ] = None,
    normalize: Annotated[bool, typer.Option(help="Scale every vector to length 1.")] = True,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Vectors that stand for texts, and which are nearest to each other."""
    if texts in (None, [], ["-"]):
        wanted = [line for line in sys.stdin.buffer.read().splitlines() if line.strip()]
    else:
        wanted = [os.fsencode(text) for text in texts or ()]
    if not wanted:
        raise InvalidArgument("there are no texts: name some, or give lines on standard input")
    with Model(find_model(model)) as loaded:
        rows = embed_texts(loaded, wanted, pooling=pooling, normalize=normalize, n_threads=threads)
    shown = [text.decode("utf-8", "replace") for text in wanted]
    if as_json:
        write_json([{"text": text, "embedding": row.tolist()} for text, row in zip(shown, rows, strict=True)])
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("text", "nearest", "dot product"):
        table.add_column(heading, overflow="ellipsis", no_wrap=True, max_width=36)
    close = rows @ rows.T
    numpy.fill_diagonal(close, -numpy.inf)
    for i, text in enumerate(shown):
        for rank, j in enumerate(numpy.argsort(-close[i])[: min(N_NEAREST, len(shown) - 1)]):
            value = f"{close[i, j]:.3f}"
            table.add_row(Text(printable(text) if rank == 0 else ""), Text(printable(shown[j])), Text(value))
    console = Console(highlight=False)
    console.print(f"{len(shown)} vectors of {rows.shape[1]} values; --json shows them.")
    if len(shown) > 1:
        console.print()
        console.print(table)
