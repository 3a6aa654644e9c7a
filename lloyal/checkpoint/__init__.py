"""Checkpoints: the state of a sequence as a value, what all of a context cost, and their bytes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lloyal.checkpoint.budget import Checkpoints
from lloyal.checkpoint.value import Checkpoint

if TYPE_CHECKING:
    from lloyal.context import Context as Context
    from lloyal.model import Model as Model

__all__ = ["Checkpoint", "Checkpoints"]


def __getattr__(name: str) -> Any:
    # A context knows its checkpoints, so it is imported when it is asked for.
    if name in ("Context", "Model"):
        return getattr(import_module(f"lloyal.{name.lower()}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
