"""Options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

from lloyal import models

__all__ = ["AsJson", "Threads", "find_model"]

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]
Threads = Annotated[int | None, typer.Option("--threads", "-t", min=1, max=512, help="CPU threads.")]


def find_model(name: str) -> str:
    """The file of an embedded model, or the path that `name` is; ``./nano`` is always a path."""
    return models.path(name) if name in models.NAMES else name
