# Written by tools/stubs.py from memory.pyx.
"""What llama.h does not have of a context's memory: its layout as bytes, and putting it in order. Not for direct use."""

from lloyal.llama.base import ContextBase

__all__ = ["cells", "compact", "layout_signature"]

def compact(ctx: ContextBase) -> None:
    """Put the rows of every sequence next to each other, in order. Releases the GIL."""

def layout_signature(ctx: ContextBase) -> tuple[bytes, bytes]:
    """How the context rotates its keys, and how its caches are laid out: a state fits where both are equal."""

def cells(ctx: ContextBase) -> tuple[int, int]:
    """Cells of the fullest cache, and how many of them are taken."""
