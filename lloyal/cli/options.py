"""Options that several commands take."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from lloyal import models
from lloyal.errors import InvalidArgument

__all__ = ["AsJson", "Threads", "find_model"]

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]
Threads = Annotated[int | None, typer.Option("--threads", "-t", min=1, max=512, help="CPU threads.")]


def find_model(name: str) -> str:
    """The file of an embedded model, or the path that `name` is; ``./nano`` is always a path."""
    if name in models.NAMES:
        return models.path(name)
    if not os.path.exists(name) and os.path.basename(name) == name and not name.endswith(".gguf"):
        known = ", ".join(models.NAMES)
        raise InvalidArgument(f"there is no file {name!r}, and no embedded model of that name: they are {known}")
    return name
