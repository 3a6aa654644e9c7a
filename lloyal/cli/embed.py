"""``lloyal embed``."""

from __future__ import annotations

import sys
from typing import Annotated

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


def embed(
    model: Annotated[str, typer.Option("--model", "-m", help="A GGUF file, or the name of an embedded model.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; without any, the lines of standard input.")] = None,
    normalize: Annotated[bool, typer.Option(help="Scale every vector to length 1.")] = True,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Vectors that stand for texts, and how close they are to each other."""
    wanted = texts or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not wanted:
        raise InvalidArgument("there are no texts: name some, or give lines on standard input")
    with Model(find_model(model)) as loaded:
        rows = embed_texts(loaded, wanted, normalize=normalize, n_threads=threads)
    if as_json:
        write_json([{"text": text, "embedding": row.tolist()} for text, row in zip(wanted, rows, strict=True)])
        return
    close = rows @ rows.T
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("text", overflow="ellipsis", no_wrap=True, max_width=40)
    for i in range(len(wanted)):
        table.add_column(str(i + 1), justify="right")
    for i, text in enumerate(wanted):
        table.add_row(Text(f"{i + 1} {printable(text)}"), *(f"{value:.3f}" for value in close[i]))
    console = Console(highlight=False)
    console.print(f"{len(wanted)} vectors of {rows.shape[1]} values (--json shows them). Dot products:\n")
    console.print(table)
