"""Bytes: what a context's are counted in, and what callers hand over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from lloyal.errors import InvalidArgument

if TYPE_CHECKING:
    from lloyal.llama.backend import Device

__all__ = ["BufferUse", "readable", "writable"]

# Values that are their bytes; an object is a pointer.
_PLAIN = frozenset("?cbBhHiIlLqQnNefd")


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


def readable(data: Any, name: str) -> memoryview:
    """The bytes of a buffer, flat. `TypeError` for what has none or holds objects."""
    view = _plain(data, name)
    return view.cast("B") if view.c_contiguous else memoryview(view.tobytes())


def writable(out: Any, name: str) -> memoryview:
    """The bytes of a buffer to write to, flat."""
    view = _plain(out, name)
    if view.readonly or not view.c_contiguous:
        raise InvalidArgument(f"{name} must be a writable, contiguous buffer")
    return view.cast("B")


def _plain(data: Any, name: str) -> memoryview:
    view = memoryview(data)
    if view.format.removeprefix("@") not in _PLAIN:
        raise TypeError(f"{name} holds values of format {view.format!r}: plain bytes or numbers are needed")
    return view if view.nbytes else memoryview(bytearray())
