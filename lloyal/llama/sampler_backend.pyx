# cython: language_level=3
"""Samplers that run in a context's graph, on its device: what a decode brings back is the token, not the logits."""

from libc.stdint cimport int32_t
from libc.string cimport memcpy
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core
cimport lloyal._cpp.decode as cdecode
cimport lloyal._cpp.sample as csample
cimport lloyal.libllama.llama as c
from lloyal.llama.args cimport as_int32
from lloyal.llama.base cimport ContextBase
from lloyal.llama.outputs cimport wrap_output
from lloyal.llama.sampler cimport Sampler
from lloyal.llama.status cimport check

__all__ = ["sampled_candidates", "sampled_logits", "sampled_probs", "sampled_token", "set_sampler"]


cdef cppclass _Sample:
    core.ContextHandle context
    c.llama_token token
    vector[c.llama_token] ids
    cdecode.Output logits
    cdecode.Output probs


def set_sampler(ContextBase ctx not None, seq_id: int, Sampler sampler or None) -> None:
    """`Context.set_sampler`."""
    cdef core.ContextHandle handle
    cdef csample.SamplerHandle chain
    cdef core.Status status
    cdef int32_t seq = as_int32(seq_id, "seq_id")
    if sampler is not None:
        chain = sampler.pin()
    handle = ctx.pin()
    with nogil:
        status = csample.context_set_sampler(handle, seq, chain)
    check(status)


def sampled_token(ContextBase ctx not None, index: int) -> int | None:
    """`Context.sampled_token`."""
    cdef _Sample found
    _read(ctx, index, found)
    return None if found.token == c.LLAMA_TOKEN_NULL else found.token


def sampled_probs(ContextBase ctx not None, index: int) -> Logits | None:
    """`Context.sampled_probs`."""
    cdef _Sample found
    _read(ctx, index, found)
    return wrap_output(found.context, found.probs) if found.probs.data != NULL else None


def sampled_logits(ContextBase ctx not None, index: int) -> Logits | None:
    """`Context.sampled_logits`."""
    cdef _Sample found
    _read(ctx, index, found)
    return wrap_output(found.context, found.logits) if found.logits.data != NULL else None


def sampled_candidates(ContextBase ctx not None, index: int) -> NDArray[int32] | None:
    """`Context.sampled_candidates`."""
    import numpy

    cdef _Sample found
    cdef int32_t[::1] out
    _read(ctx, index, found)
    if found.ids.empty():
        return None
    tokens = numpy.empty(found.ids.size(), dtype=numpy.int32)
    out = tokens
    memcpy(&out[0], found.ids.data(), found.ids.size() * sizeof(int32_t))
    return tokens


cdef int _read(ContextBase ctx, object index, _Sample& found) except -1:
    cdef int32_t i = as_int32(index, "index")
    cdef core.Status status
    (&found.context)[0] = ctx.pin()
    with nogil:
        status = csample.read_sample(found.context, i, found.token, found.ids, found.logits, found.probs)
    check(status)
    return 0
