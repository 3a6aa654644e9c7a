# cython: language_level=3
"""What a context computes besides logits, and where its bytes are. `Context` has these as methods."""

from libc.stdint cimport int32_t
from libc.string cimport memcpy
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core
cimport lloyal._cpp.decode as cdecode
cimport lloyal.libllama.llama as c
from lloyal.llama.args cimport as_int32
from lloyal.llama.backend cimport wrap_device
from lloyal.llama.base cimport ContextBase
from lloyal.llama.outputs cimport OutputCopy, output_copy, wrap_output
from lloyal.llama.status cimport check

from lloyal.llama.buffers import BufferUse

__all__ = [
    "embeddings_layer_inp", "embeddings_nextn", "get_causal_attn", "get_embeddings", "get_logits", "memory_breakdown", "set_causal_attn", "set_embeddings", "set_embeddings_layer_inp", "set_embeddings_nextn", "set_nextn_layer_offset",
]


def memory_breakdown(ContextBase ctx not None) -> list[BufferUse]:
    """`Context.memory_breakdown`."""
    cdef core.ContextHandle handle
    cdef core.Status status
    cdef vector[cdecode.BufferUse] rows
    handle = ctx.pin()
    with nogil:
        status = cdecode.context_memory(handle, rows)
    check(status)
    return [
        BufferUse(buffer=rows[i].buffer.decode(), device=wrap_device(rows[i].device) if rows[i].device != NULL else None,
                  is_host=rows[i].is_host, model=rows[i].model, context=rows[i].context, compute=rows[i].compute)
        for i in range(rows.size())
    ]


def set_embeddings(ContextBase ctx not None, value: bool) -> None:
    """`Context.set_embeddings`."""
    cdef core.ContextHandle handle
    cdef core.Status status
    cdef bint on = value
    handle = ctx.pin()
    with nogil:
        status = cdecode.context_set_embeddings(handle, on)
    check(status)


def get_causal_attn(ContextBase ctx not None) -> bool:
    """`Context.causal_attn`."""
    cdef core.ContextHandle handle = ctx.pin()
    return c.llama_get_causal_attn(handle.get().ptr)


def set_causal_attn(ContextBase ctx not None, value: bool) -> None:
    """`Context.set_causal_attn`."""
    cdef core.ContextHandle handle
    cdef core.Status status
    cdef bint on = value
    handle = ctx.pin()
    with nogil:
        status = cdecode.context_set_causal(handle, on)
    check(status)


def get_logits(ContextBase ctx not None) -> NDArray[float32]:
    """`Context.get_logits`."""
    return _rows(ctx, False)


def get_embeddings(ContextBase ctx not None) -> NDArray[float32]:
    """`Context.get_embeddings`."""
    return _rows(ctx, True)


def _rows(ContextBase ctx not None, embeddings):
    import numpy

    cdef core.ContextHandle handle
    cdef core.Status status
    cdef vector[float] rows
    cdef float[::1] target
    cdef bint embd = embeddings
    cdef int32_t n = 0
    handle = ctx.pin()
    with nogil:
        status = cdecode.read_all(handle, embd, rows, n)
    check(status)
    found = numpy.empty(rows.size(), dtype=numpy.float32)
    target = found
    memcpy(&target[0], rows.data(), rows.size() * sizeof(float))
    return found.reshape(n, -1)


def set_embeddings_nextn(ContextBase ctx not None, value: bool, masked: bool) -> None:
    """`Context.set_embeddings_nextn`."""
    cdef core.ContextHandle handle
    cdef core.Status status
    cdef bint on = value
    cdef bint only_outputs = masked
    handle = ctx.pin()
    with nogil:
        status = cdecode.context_set_nextn(handle, on, only_outputs)
    check(status)


def embeddings_nextn(ContextBase ctx not None, index: int, copy: bool, out: BufferLike | None) -> Any:
    """`Context.embeddings_nextn`."""
    return _row(ctx, 0, index, copy, out, False)


def set_nextn_layer_offset(ContextBase ctx not None, offset: int) -> None:
    """`Context.set_nextn_layer_offset`."""
    cdef core.ContextHandle handle
    cdef core.Status status
    cdef int32_t layer = as_int32(offset, "offset")
    handle = ctx.pin()
    with nogil:
        status = cdecode.context_set_nextn_offset(handle, layer)
    check(status)


def set_embeddings_layer_inp(ContextBase ctx not None, layer: int, value: bool) -> None:
    """`Context.set_embeddings_layer_inp`."""
    cdef core.ContextHandle handle
    cdef core.Status status
    cdef int32_t lid = as_int32(layer, "layer")
    cdef bint on = value
    handle = ctx.pin()
    with nogil:
        status = cdecode.context_set_layer_input(handle, lid, on)
    check(status)


def embeddings_layer_inp(ContextBase ctx not None, layer: int, index: int, copy: bool, out: BufferLike | None) -> Any:
    """`Context.embeddings_layer_inp`."""
    return _row(ctx, layer, index, copy, out, True)


def _row(ContextBase ctx not None, layer, index, copy, out, layer_input):
    cdef core.ContextHandle handle
    cdef core.Status status
    cdef cdecode.Output output
    cdef OutputCopy into
    cdef int32_t lid = as_int32(layer, "layer")
    cdef int32_t i = as_int32(index, "index")
    cdef bint from_layer = layer_input
    handle = ctx.pin()
    into = output_copy(cdecode.n_layer_input(handle.get()[0]) if from_layer else cdecode.n_embedding(handle.get()[0]), copy, out)
    with nogil:
        if from_layer:
            status = cdecode.read_layer_input(handle, lid, i, into.start, into.room, output)
        else:
            status = cdecode.read_nextn(handle, i, into.start, into.room, output)
    check(status)
    return wrap_output(handle, output) if into.array is None else into.array
