# cython: language_level=3
"""Hidden rows of what branches read, for drafters that start from them. Not for direct use: see `lloyal.speculative`."""

from libc.stdint cimport INT32_MAX, int32_t
from libc.string cimport memcpy
from libcpp cimport bool as cppbool
from libcpp.vector cimport vector

cimport lloyal._cpp.branch as cbranch
cimport lloyal._cpp.core as core
cimport lloyal._cpp.decode as cdecode
from lloyal.llama.args cimport as_int32, as_integer
from lloyal.llama.base cimport ContextBase
from lloyal.llama.status cimport check
from lloyal.native.branch cimport BranchBase

__all__ = ["head_info", "hidden_rows", "is_on", "keep_hidden"]


def keep_hidden(ContextBase ctx not None, layers: Sequence[int], most: int) -> None:
    """Keep the inputs of these layers of what branches read from now on; without layers nothing any more.

    Parameters
    ----------
    layers : sequence of int
        The number of layers stands for what a prediction head gets.
    most : int
        Tokens of a branch whose rows are kept until they are asked for.
    """
    cdef vector[int32_t] list
    cdef core.Status status
    cdef int32_t count = as_integer(most, "most", 1, INT32_MAX)
    for layer in layers:
        list.push_back(as_int32(layer, "layer"))
    cdef core.ContextHandle handle = ctx.pin()
    with nogil:
        status = cdecode.context_keep_hidden(handle, list, count)
    check(status)


def hidden_rows(BranchBase branch not None, layers: Sequence[int], begin: int) -> tuple[int, NDArray[float32]]:
    """The rows of a branch's tokens from `begin` on, and the token of the first: later where those before are gone.

    Returns
    -------
    int
        The branch's position if there are no rows to its end, or not of these layers.
    array of float32, shape (n, values)

    Notes
    -----
    The branch keeps none of those before `begin` any longer.
    """
    import numpy

    cdef vector[int32_t] list
    cdef vector[float] rows
    cdef float[::1] target
    cdef core.Status status
    cdef int32_t from_token = as_integer(begin, "begin", 0, INT32_MAX)
    cdef int32_t first = 0
    cdef cbranch.BranchHandle handle
    for layer in layers:
        list.push_back(as_int32(layer, "layer"))
    handle = branch.pin()
    with nogil:
        status = cbranch.branch_hidden(handle.get().context, handle.get()[0], list, from_token, first, rows)
    check(status)
    n = branch.info().position - first
    found = numpy.empty(rows.size(), dtype=numpy.float32)
    if rows.size():
        target = found
        memcpy(&target[0], rows.data(), rows.size() * sizeof(float))
    return first, found.reshape(n, -1) if n else found.reshape(0, 0)


def is_on(ContextBase ctx not None, ContextBase parent not None) -> bool:
    """Whether a context was made with ``parent=parent``."""
    cdef core.ContextHandle handle = ctx.pin()
    cdef core.ContextHandle other = parent.pin()
    cdef core.Status status
    cdef cppbool found = False
    status = cdecode.context_is_on(handle, other, found)
    check(status)
    return found


def head_info(ContextBase ctx not None) -> dict[str, Any]:
    """What a context on top of another takes: see `lloyal.speculative.heads`."""
    cdef core.ContextHandle handle = ctx.pin()
    cdef cdecode.HeadInfo info
    cdef core.Status status = cdecode.context_head_info(handle, info)
    check(status)
    return {"mtp": info.mtp, "shared": info.shared, "chained": info.chained, "n_embd": info.n_embd,
            "n_embd_features": info.n_embd_features}
