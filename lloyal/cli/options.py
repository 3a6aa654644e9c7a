"""Options that several commands take."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from lloyal import models
from lloyal.errors import InvalidArgument

if TYPE_CHECKING:
    from lloyal import Context, Model
    from lloyal.speculative import Drafter

__all__ = ["AsJson", "Draft", "Threads", "draft_for", "find_model"]

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]
Threads = Annotated[int | None, typer.Option("--threads", "-t", min=1, max=512, help="CPU threads.")]

Draft = Annotated[
    str | None,
    typer.Option("--draft", help="Guess tokens: ngram, suffix, or a small model (a GGUF file or an embedded one)."),
]


def find_model(name: str) -> str:
    """The file of an embedded model, or the path that `name` is; ``./nano`` is always a path."""
    if name in models.NAMES:
        return models.path(name)
    if not os.path.exists(name) and os.path.basename(name) == name and not name.endswith(".gguf"):
        known = ", ".join(models.NAMES)
        raise InvalidArgument(f"there is no file {name!r}, and no embedded model of that name: they are {known}")
    return name


def draft_for(name: str, ctx: Context) -> tuple[Drafter, Model | None]:
    """What ``--draft`` names, for texts of `ctx`; and the model of a draft model, to be closed."""
    from lloyal import Context, Model, speculative

    if name in ("ngram", "suffix"):
        return speculative.NGram() if name == "ngram" else speculative.Suffix(), None
    if not os.path.exists(name) and name not in models.NAMES:
        raise InvalidArgument(f"--draft {name}: it is neither ngram nor suffix, nor a file, nor one of the embedded "
                              f"models: {', '.join(models.NAMES)}")  # fmt: skip
    model = Model(find_model(name), n_gpu_layers=-1)
    small = Context(
        model,
        n_ctx=ctx.n_ctx,
        n_seq_max=ctx.n_seq_max,
        n_threads=ctx.n_threads,
        n_threads_batch=ctx.n_threads_batch,
    )
    return speculative.DraftModel(small), model
