# cython: language_level=3
"""What llama.h does not have of a context's memory: its layout as bytes, and putting it in order. Not for direct use."""

from libc.stdint cimport int64_t

cimport lloyal._cpp.core as core
cimport lloyal._cpp.memory as cmemory
cimport lloyal._cpp.state as cstate
from lloyal.llama.base cimport ContextBase
from lloyal.llama.status cimport check

__all__ = ["cells", "compact", "layout_signature"]


def compact(ContextBase ctx not None) -> None:
    """Put the rows of every sequence next to each other, in order. Releases the GIL."""
    cdef core.ContextHandle handle = ctx.pin()
    cdef core.Status status
    with nogil:
        status = cstate.memory_compact(handle)
    check(status)


def layout_signature(ContextBase ctx not None) -> tuple[bytes, bytes]:
    """How the context rotates its keys, and how its caches are laid out: a state fits where both are equal."""
    cdef core.ContextHandle handle = ctx.pin()  # nothing that changes is read, so nobody need be kept out
    cdef core.Status status
    cdef cstate.LayoutSignature out
    status = cstate.layout_signature(handle.get()[0], out)
    check(status)
    return bytes(out.rope), bytes(out.tensors)


def cells(ContextBase ctx not None) -> tuple[int, int]:
    """Cells of the fullest cache, and how many of them are taken."""
    cdef core.ContextHandle handle = ctx.pin()
    cdef core.Status status
    cdef int64_t n = 0
    cdef int64_t used = 0
    status = cmemory.memory_cells(handle, n, used)
    check(status)
    return n, used
