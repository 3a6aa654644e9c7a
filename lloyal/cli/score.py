"""``lloyal score``."""

from __future__ import annotations

import math
import os
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lloyal import Context, Model, Vocab
from lloyal.cli.options import AsJson, Threads, find_model
from lloyal.cli.output import write_json
from lloyal.scoring import Score
from lloyal.scoring import score as score_text
from lloyal.terminal import printable

__all__ = ["score"]


def score(
    text: Annotated[str, typer.Argument(help="What to score; - reads standard input.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A GGUF file, or the name of an embedded model.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What comes before it and is not scored.")] = "",
    top: Annotated[int, typer.Option(min=0, max=1000, help="Most probable tokens to show beside each.")] = 0,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """How probable a model finds a text, token by token."""
    content = sys.stdin.buffer.read() if text == "-" else os.fsencode(text)
    before = os.fsencode(prompt)
    with Model(find_model(model)) as loaded:
        vocab = loaded.vocab
        n_tokens = len(vocab.tokenize(content)) + len(vocab.tokenize(before))
        with Context(loaded, n_ctx=n_tokens, n_seq_max=1, n_threads=threads) as ctx:
            found = score_text(ctx, content, prompt=before, top=top)
    if as_json:
        write_json(_as_json(found, vocab))
    else:
        _print(found, vocab)


def _piece(vocab: Vocab, token: int) -> str:
    return vocab.token_to_piece(token, special=True).decode("utf-8", "replace")


def _as_json(found: Score, vocab: Vocab) -> dict[str, object]:
    rows = [
        {
            "token": token,
            "text": _piece(vocab, token),
            "logprob": _number(logprob),
            "top": [{"token": other, "text": _piece(vocab, other), "logprob": _number(value)} for value, other in top],
        }
        for token, logprob, top in zip(found.tokens, found.logprobs, found.top, strict=True)
    ]
    return {"total": _number(found.total), "perplexity": _number(found.perplexity), "tokens": rows}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no other


def _print(found: Score, vocab: Vocab) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("log-probability", justify="right")
    table.add_column("token")
    if any(found.top):
        table.add_column("most probable", overflow="fold")
    for token, logprob, top in zip(found.tokens, found.logprobs, found.top, strict=True):
        others = "  ".join(f"{printable(repr(_piece(vocab, other))[1:-1])} {value:.2f}" for value, other in top)
        cells = [Text(f"{logprob:.3f}"), Text(printable(repr(_piece(vocab, token))[1:-1]))]
        table.add_row(*cells, *([Text(others, style="dim")] if any(found.top) else []))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"{len(found.tokens)} tokens, log-probability {found.total:.3f}, perplexity {found.perplexity:.3f}")
