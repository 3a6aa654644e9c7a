# cython: language_level=3
"""Samplers that run in a context's graph, on its device: what a decode brings back is the token, not the logits."""

from libc.stdint cimport int32_t
from libc.string cimport memcpy
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core
cimport lloyal._cpp.decode as cdecode
cimport lloyal._cpp.sample as csample
cimport lloyal.libllama.llama as c
from lloyal.llama.adapter cimport ContextAdapters
from lloyal.llama.args cimport as_int32
from lloyal.llama.outputs cimport wrap_output
from lloyal.llama.sampler cimport Sampler
from lloyal.llama.status cimport check

__all__ = ["ContextSampling"]


cdef cppclass _Sample:
    core.ContextHandle context
    c.llama_token token
    vector[c.llama_token] ids
    cdecode.Output logits
    cdecode.Output probs


cdef class ContextSampling(ContextAdapters):
    """What a context's back end samples. Not for direct use: see `Context`."""

    def set_sampler(self, seq_id: int, Sampler sampler or None) -> None:
        """Let a chain run on the back end for the outputs of a sequence (``llama_set_sampler``), or none any more.

        The first samplers of the chain that llama.cpp can put into the graph run there: greedy, llama_dist, top_k,
        top_p, min_p, temp, temp_ext, logit_bias, penalties (with at most one output per sequence and decode,
        ``n_outputs_max_per_seq=1``). From the first other one on the rest runs in `Sampler.sample`, on what is left of
        the candidates. Go on as without: ``sampler.sample(ctx, i)``.

        Parameters
        ----------
        seq_id : int
        sampler : Sampler or None
            A chain, which belongs to the sequence until another is set or the context is freed; the context keeps it
            alive. None goes back to logits.

        Raises
        ------
        InvalidArgument
            It is no chain, runs in a context already, or llama.cpp would abort or sample something else on it.
        Unsupported
            This model's back end cannot sample.

        Notes
        -----
        Invalidates logits: outputs of the sequence have none from the next decode on. Releases the GIL.
        """
        cdef core.ContextHandle handle
        cdef csample.SamplerHandle chain
        cdef core.Status status
        cdef int32_t seq = as_int32(seq_id, "seq_id")
        if sampler is not None:
            chain = sampler.pin()
        handle = self.pin()
        with nogil:
            status = csample.context_set_sampler(handle, seq, chain)
        check(status)

    def sampled_token(self, index: int = -1) -> int | None:
        """The token that the back end picked for one output (``llama_get_sampled_token_ith``), or None.

        `Sampler.sample` returns the same one and accepts it. Raises `NoLogits` for an entry without output.
        """
        cdef _Sample found
        _read(self, index, found)
        return None if found.token == c.LLAMA_TOKEN_NULL else found.token

    def sampled_probs(self, index: int = -1) -> Logits | None:
        """The probabilities of the candidates, if the back end computed them (``llama_get_sampled_probs_ith``).

        Returns
        -------
        Logits or None
            A view as of `Context.logits`, float32, shape (n,), in the order of `sampled_candidates`.
        """
        cdef _Sample found
        _read(self, index, found)
        return wrap_output(found.context, found.probs) if found.probs.data != NULL else None

    def sampled_logits(self, index: int = -1) -> Logits | None:
        """The logits of the candidates as the back end left them (``llama_get_sampled_logits_ith``).

        Returns
        -------
        Logits or None
            A view as of `Context.logits`, float32, shape (n,), in the order of `sampled_candidates`.
        """
        cdef _Sample found
        _read(self, index, found)
        return wrap_output(found.context, found.logits) if found.logits.data != NULL else None

    def sampled_candidates(self, index: int = -1) -> NDArray[int32] | None:
        """The tokens that were left on the back end (``llama_get_sampled_candidates_ith``).

        Returns
        -------
        ndarray of int32, shape (n,), or None
            An array of its own.
        """
        import numpy

        cdef _Sample found
        cdef int32_t[::1] out
        _read(self, index, found)
        if found.ids.empty():
            return None
        tokens = numpy.empty(found.ids.size(), dtype=numpy.int32)
        out = tokens
        memcpy(&out[0], found.ids.data(), found.ids.size() * sizeof(int32_t))
        return tokens


cdef int _read(ContextSampling ctx, object index, _Sample& found) except -1:
    cdef int32_t i = as_int32(index, "index")
    cdef core.Status status
    (&found.context)[0] = ctx.pin()
    with nogil:
        status = csample.read_sample(found.context, i, found.token, found.ids, found.logits, found.probs)
    check(status)
    return 0
