"""What a context's bytes are counted in."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from lloyal.llama.backend import Device

__all__ = ["BufferUse"]


class BufferUse(NamedTuple):
    """Bytes that one kind of buffer holds for a context.

    Attributes
    ----------
    buffer : str
        llama.cpp's name of the kind, such as ``"CPU"`` or ``"CUDA0"``.
    device : Device or None
        Where it is.
    is_host : bool
        True if the CPU can read it without a copy.
    model, context, compute : int
        Weights (shared by all contexts of the model), memory of the context, and working memory.
    """

    buffer: str
    device: Device | None
    is_host: bool
    model: int
    context: int
    compute: int
