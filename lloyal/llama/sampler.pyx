# cython: language_level=3
"""Samplers: what turns a row of logits into a token.

Each constructor is the ``llama_sampler_init_*`` function of the same name. `Sampler.chain` puts several behind each
other; one of them, usually the last, must pick (greedy, dist, mirostat, mirostat_v2, adaptive_p).
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport INT32_MAX, int32_t, uint8_t, uint32_t
from libcpp cimport bool as cbool
from libcpp.string cimport string
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core
cimport lloyal._cpp.sample as csample
cimport lloyal.libllama.llama as c
from lloyal.llama.args cimport as_int32
from lloyal.llama.base cimport ContextBase
from lloyal.llama.sampler_init cimport SamplerInit
from lloyal.llama.status cimport check

from lloyal.errors import InvalidArgument
from lloyal.llama.candidates import Candidates

__all__ = ["Sampler"]


cdef Sampler _wrap(csample.SamplerHandle& handle):
    cdef Sampler sampler = Sampler.__new__(Sampler)
    sampler.handle = handle
    return sampler


cdef class Sampler(SamplerInit):
    """A sampler or a chain of them (``llama_sampler``). Made by its class methods.

    A sampler that reads a vocabulary keeps the model alive. One caller at a time: a second thread inside gets `Busy`.
    """

    @staticmethod
    def chain(*samplers: Sampler, no_perf: bool = True) -> Sampler:
        """Samplers applied one after another (``llama_sampler_chain_init``). The chain works on clones.

        Parameters
        ----------
        *samplers : Sampler
            They stay yours. More can be added by `chain_add`.
        no_perf : bool
            Do not measure the time spent in it; see `perf`.
        """
        cdef csample.SamplerHandle handle
        cdef core.Status status = csample.chain_init(no_perf, handle)
        check(status)
        chain = _wrap(handle)
        for sampler in samplers:
            chain.chain_add(sampler)
        return chain

    def chain_add(self, Sampler sampler not None) -> None:
        """Put a clone of `sampler` behind the others of this chain (``llama_sampler_chain_add``).

        Raises
        ------
        InvalidArgument
            This is no chain, or a context runs it on its back end.
        """
        cdef csample.SamplerHandle handle
        cdef Sampler link = sampler.clone()
        cdef core.Status status
        handle = self.pin()
        status = csample.chain_add(handle, link.handle)
        check(status)

    def chain_n(self) -> int:
        """How many samplers the chain has (``llama_sampler_chain_n``). Raises `InvalidArgument` if it is no chain."""
        cdef csample.SamplerHandle handle
        cdef int32_t n = 0
        cdef core.Status status
        handle = self.pin()
        status = csample.chain_n(handle, n)
        check(status)
        return n

    def chain_get(self, i: int) -> Sampler:
        """A clone of the `i`-th sampler of the chain, from 0 (``llama_sampler_chain_get``)."""
        cdef csample.SamplerHandle handle
        cdef csample.SamplerHandle link
        cdef int32_t index = as_int32(i, "i")
        cdef core.Status status
        handle = self.pin()
        status = csample.chain_get(handle, index, link)
        check(status)
        return _wrap(link)

    def chain_remove(self, i: int) -> Sampler:
        """Take the `i`-th sampler out of the chain and return it (``llama_sampler_chain_remove``)."""
        cdef csample.SamplerHandle handle
        cdef csample.SamplerHandle link
        cdef int32_t index = as_int32(i, "i")
        cdef core.Status status
        handle = self.pin()
        status = csample.chain_remove(handle, index, link)
        check(status)
        return _wrap(link)

    def sample(self, ContextBase ctx not None, index: int = -1) -> int:
        """Pick a token from an output of the last decode and accept it (``llama_sampler_sample``).

        Parameters
        ----------
        ctx : Context
        index : int
            Index in the batch; negative counts back from the last entry with an output.

        Returns
        -------
        int
            The token.

        Raises
        ------
        NoLogits
            Nothing was decoded, or that entry has no output.
        InvalidArgument
            The chain picks no token, every token is ruled out, or it was made for a smaller vocabulary.
        DecodeFailed
            The logits hold NaN.

        Notes
        -----
        Releases the GIL.
        """
        cdef core.ContextHandle context
        cdef csample.SamplerHandle handle
        cdef core.Status status
        cdef c.llama_token token = -1
        cdef int32_t i = as_int32(index, "index")
        handle = self.pin()
        context = ctx.pin()
        with nogil:
            status = csample.sample(handle, context, i, token)
        check(status)
        return token

    def apply(self, logits: ArrayLike, ids: ArrayLike | None = None) -> Candidates:
        """Let the sampler work on candidates (``llama_sampler_apply``). Nothing is accepted.

        Parameters
        ----------
        logits : array_like of float32, shape (n,)
            Finite, or ``-inf`` for candidates that are ruled out.
        ids : array_like of int32, shape (n,), optional
            Their tokens; without them candidate `i` is token `i`.

        Returns
        -------
        Candidates
            What is left of them, in arrays of their own.

        Notes
        -----
        Random generators move on as in `sample`. Releases the GIL.
        """
        import numpy

        cdef csample.SamplerHandle handle
        cdef core.Status status
        cdef vector[c.llama_token_data] data
        cdef c.llama_token_data_array array
        cdef const float[::1] row = numpy.ascontiguousarray(logits, dtype=numpy.float32)
        cdef const int32_t[::1] tokens = None
        cdef float[::1] out_logits
        cdef float[::1] out_probs
        cdef int32_t[::1] out_ids
        cdef size_t i
        if ids is not None:
            tokens = numpy.ascontiguousarray(ids, dtype=numpy.int32)
            if tokens.shape[0] != row.shape[0]:
                raise InvalidArgument(f"{tokens.shape[0]} ids for {row.shape[0]} logits")
        if row.shape[0] > INT32_MAX:
            raise InvalidArgument(f"{row.shape[0]} candidates are more than there are token ids")
        data.resize(row.shape[0])
        for i in range(data.size()):
            data[i].id = <c.llama_token>i if tokens is None else tokens[i]
            data[i].logit = row[i]
            data[i].p = 0.0
        array.data = data.data()
        array.size = data.size()
        array.selected = -1
        array.sorted = False
        handle = self.pin()
        with nogil:
            status = csample.sampler_apply(handle, array)
        check(status)
        result = Candidates(
            numpy.empty(array.size, numpy.int32), numpy.empty(array.size, numpy.float32),
            numpy.empty(array.size, numpy.float32), array.selected if array.selected >= 0 else None, array.sorted)
        out_ids, out_logits, out_probs = result.ids, result.logits, result.probs
        for i in range(array.size):
            out_ids[i] = array.data[i].id
            out_logits[i] = array.data[i].logit
            out_probs[i] = array.data[i].p
        return result

    def accept(self, token: int) -> None:
        """Tell penalties, grammars and the like that `token` was chosen (``llama_sampler_accept``).

        Raises
        ------
        InvalidArgument
            The token is negative, outside the vocabulary, or the grammar does not allow it here. Nothing was changed.

        Notes
        -----
        Releases the GIL.
        """
        cdef csample.SamplerHandle handle
        cdef core.Status status
        cdef c.llama_token accepted = as_int32(token, "token")
        handle = self.pin()
        with nogil:
            status = csample.sampler_accept(handle, accepted)
        check(status)

    def reset(self) -> None:
        """Forget what was accepted; random generators start over, from a new seed where none was given."""
        cdef csample.SamplerHandle handle
        cdef core.Status status
        handle = self.pin()
        with nogil:
            status = csample.sampler_reset(handle)
        check(status)

    def clone(self) -> Sampler:
        """A sampler that goes on exactly as this one would (``llama_sampler_clone``). Releases the GIL."""
        cdef csample.SamplerHandle handle
        cdef csample.SamplerHandle copy
        cdef core.Status status
        handle = self.pin()
        with nogil:
            status = csample.sampler_clone(handle, copy)
        check(status)
        return _wrap(copy)

    def copy(self, Sampler dst not None) -> None:
        """Copy this sampler's state into `dst` (``llama_sampler_copy``), also while a back end runs it.

        Parameters
        ----------
        dst : Sampler
            One with the same samplers and parameters; only seeds may differ.
        """
        cdef csample.SamplerHandle handle
        cdef csample.SamplerHandle target
        cdef core.Status status
        if dst is self:
            return
        handle = self.pin()
        target = dst.pin()
        with nogil:
            status = csample.sampler_copy(handle, target)
        check(status)

    def state(self) -> bytes:
        """Everything that decides what it picks next: random generators, penalty windows, mirostat's mu, the position
        in a grammar, of every sampler in the chain.

        The size depends on what the samplers remember, not on how much they have seen; `dist` takes 36 bytes.
        """
        cdef csample.SamplerHandle handle
        cdef core.Status status
        cdef vector[uint8_t] data
        handle = self.pin()
        with nogil:
            status = csample.sampler_get_state(handle, data)
        check(status)
        return PyBytes_FromStringAndSize(<const char*>data.data(), data.size())

    def set_state(self, data: BufferLike) -> None:
        """Go on from a state that `state` gave, of a sampler with the same samplers and parameters; seeds may differ.

        Parameters
        ----------
        data : bytes-like

        Raises
        ------
        StateMismatch
            The state is of other samplers or parameters, or damaged. Nothing was changed.

        Notes
        -----
        Releases the GIL.
        """
        cdef csample.SamplerHandle handle
        cdef core.Status status
        cdef const uint8_t[::1] view = data
        cdef const uint8_t* start = NULL
        cdef size_t size = view.shape[0]
        if size > 0:
            start = &view[0]
        handle = self.pin()
        with nogil:
            status = csample.sampler_set_state(handle, start, size)
        check(status)

    def perf(self) -> dict[str, float]:
        """Time in the chain in milliseconds, and tokens accepted (``llama_perf_sampler``; time needs no_perf=False)."""
        return _perf(self, False)

    def perf_reset(self) -> None:
        """Start `perf` over (``llama_perf_sampler_reset``)."""
        _perf(self, True)

    @property
    def name(self) -> str:
        """llama.cpp's name for it: ``"chain"``, ``"top-k"``; with ``?`` in front where its parameters switch it off,
        with ``+`` or ``-`` while a back end runs it or cannot.
        """
        cdef csample.SamplerHandle handle
        cdef core.Status status
        cdef string text
        handle = self.pin()
        status = csample.sampler_name(handle, text)
        check(status)
        return text.decode()

    @property
    def seed(self) -> int | None:
        """The seed in use, in a chain that of the last sampler that has one; or None."""
        cdef csample.SamplerHandle handle
        cdef uint32_t seed = 0
        cdef cbool found = False
        cdef core.Status status
        handle = self.pin()
        status = csample.sampler_seed_used(handle, found, seed)
        check(status)
        return seed if found else None

    def __repr__(self):
        if self.closed:
            return "<Sampler, closed>"
        try:
            return f"<Sampler {', '.join(self.chain_get(i).name for i in range(self.chain_n()))}>"
        except InvalidArgument:
            return f"<Sampler {self.name}>"


cdef object _perf(Sampler sampler, bint reset):
    cdef csample.SamplerHandle handle
    cdef core.Status status
    cdef c.llama_perf_sampler_data data
    handle = sampler.pin()
    status = csample.chain_perf(handle, reset, data)
    check(status)
    return {"t_sample_ms": data.t_sample_ms, "n_sample": data.n_sample}
