# cython: language_level=3
"""Native calls behind `lloyal.Branch` and `lloyal.BranchStore`. Not for direct use."""

from cpython.buffer cimport PyBUF_WRITABLE
from libc.float cimport FLT_MAX
from libc.stdint cimport UINT32_MAX, int32_t, int64_t, uint8_t
from libcpp cimport bool as cppbool
from libcpp.utility cimport move
from libcpp.vector cimport vector

cimport lloyal._cpp.branch as cbranch
cimport lloyal._cpp.core as core
cimport lloyal._cpp.decode as cdecode
cimport lloyal._cpp.sample as csample
cimport lloyal._cpp.state as cstate
cimport lloyal.libllama.llama as c
from lloyal.llama.args cimport as_double, as_int32, as_integer, as_number
from lloyal.llama.base cimport ContextBase
from lloyal.llama.outputs cimport fill_buffer
from lloyal.llama.sampler cimport Sampler
from lloyal.llama.signals cimport raise_signal
from lloyal.llama.status cimport check

from lloyal.errors import Closed

__all__ = ["BranchBase", "LogitsRow"]

cdef object _KEY = object()  # a bare __new__ would make one that points nowhere


cdef class LogitsRow:
    """One row of logits that nobody changes any more, as a read-only buffer of float32."""

    cdef cbranch.RowHandle row
    cdef Py_ssize_t shape[1]

    def __cinit__(self, key=None):
        if key is not _KEY:
            raise TypeError("LogitsRow cannot be made directly: use Branch.logits")

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        if flags & PyBUF_WRITABLE:
            raise BufferError("the logits of a branch are read-only: copy them, and set_logits() the copy")
        self.shape[0] = self.row.get().size()
        fill_buffer(buffer, self, self.row.get().data(), self.shape, flags)

    def __releasebuffer__(self, Py_buffer* buffer):
        pass


cdef class BranchBase:
    """The handle of a branch. See `lloyal.Branch`."""

    cdef cbranch.BranchHandle pin(self) except *:
        if not self.handle:
            raise Closed("the branch was pruned")
        return self.handle

    cdef cbranch.BranchInfo info(self) except *:
        cdef cbranch.BranchHandle handle = self.pin()
        cdef cbranch.BranchInfo info
        cdef core.Status status = cbranch.branch_info(handle.get().context, handle.get()[0], info)
        check(status)
        return info

    def _create_native(self, ContextBase ctx not None, Sampler sampler or None) -> None:
        cdef core.ContextHandle context
        cdef csample.SamplerHandle chain
        cdef cbranch.BranchHandle handle
        cdef core.Status status
        if sampler is not None:
            chain = sampler.pin()
        context = ctx.pin()
        with nogil:
            status = cbranch.branch_create(context, chain, handle)
        check(status)
        self.handle = handle

    def _fork_native(self, BranchBase source not None, int64_t seed) -> None:
        cdef cbranch.BranchHandle handle = source.pin()
        cdef cbranch.BranchHandle made
        cdef core.Status status = cbranch.branch_fork(handle.get().context, handle.get()[0], seed, made)
        check(status)
        self.handle = move(made)

    def _keep_native(self, BranchBase source not None, str where) -> None:
        cdef cbranch.BranchHandle handle = source.pin()
        cdef cbranch.BranchHandle made
        cdef core.Status status
        cdef cstate.Where place = (cstate.where_host if where == "host" else cstate.where_cells if where == "cells"
                                   else cstate.where_device)
        with nogil:
            status = cbranch.branch_keep(handle.get().context, handle.get()[0], place, made)
        check(status)
        self.handle = move(made)

    def _note_native(self, BranchBase source not None) -> None:
        cdef cbranch.BranchHandle handle = source.pin()
        cdef cbranch.BranchHandle made
        cdef core.Status status = cbranch.branch_note(handle.get().context, handle.get()[0], made)
        check(status)
        self.handle = move(made)

    def _assign_native(self, BranchBase source not None) -> None:
        cdef cbranch.BranchHandle handle = self.pin()
        cdef cbranch.BranchHandle other = source.pin()
        cdef core.Status status
        with nogil:
            status = cbranch.branch_assign(handle.get().context, handle.get()[0], other.get()[0])
        check(status)

    def _release_native(self) -> None:
        cdef cbranch.BranchHandle handle
        handle.swap(self.handle)
        with nogil:
            handle.reset()

    def _seat_native(self) -> None:
        cdef cbranch.BranchHandle handle = self.pin()
        cdef core.Status status
        with nogil:
            status = cbranch.branch_seat(handle.get().context, handle.get()[0])
        raise_signal()
        check(status)

    def _park_native(self, bint host) -> None:
        cdef cbranch.BranchHandle handle = self.pin()
        cdef core.Status status
        with nogil:
            status = cbranch.branch_park(handle.get().context, handle.get()[0],
                                         cstate.where_host if host else cstate.where_device)
        check(status)

    def _sample_native(self) -> int:
        cdef cbranch.BranchHandle handle = self.pin()
        cdef core.Status status
        cdef c.llama_token token = -1
        with nogil:
            status = cbranch.branch_sample(handle.get().context, handle.get()[0], token)
        check(status)
        return token

    def _accept_native(self, token: int) -> None:
        cdef cbranch.BranchHandle handle = self.pin()
        cdef core.Status status
        cdef int32_t accepted = as_int32(token, "token")
        with nogil:
            status = cbranch.branch_accept(handle.get().context, handle.get()[0], accepted)
        check(status)

    def _rewind_native(self, n: int, first_at: int) -> None:
        cdef cbranch.BranchHandle handle = self.pin()
        cdef core.Status status
        cdef int32_t count = as_int32(n, "n")
        cdef int32_t first = as_int32(first_at, "first_at")
        with nogil:
            status = cbranch.branch_rewind(handle.get().context, handle.get()[0], count, first)
        raise_signal()
        check(status)

    def _set_sampler_native(self, Sampler sampler not None, Sampler first not None, bint generators,
                            bint grammars) -> None:
        cdef cbranch.BranchHandle handle = self.pin()
        cdef csample.SamplerHandle chain = sampler.pin()
        cdef csample.SamplerHandle begin = first.pin()
        cdef core.Status status
        with nogil:
            status = cbranch.branch_set_sampler(handle.get().context, handle.get()[0], chain, begin,
                                                generators, grammars)
        check(status)

    def _set_biases_native(self, biases: dict[int, float]) -> None:
        cdef cbranch.BranchHandle handle
        cdef vector[c.llama_logit_bias] list
        cdef c.llama_logit_bias bias
        cdef core.Status status
        for token, value in biases.items():
            bias.token = as_int32(token, "token")
            bias.bias = as_double(value, "bias")
            list.push_back(bias)
        handle = self.pin()
        with nogil:
            status = cbranch.branch_set_biases(handle.get().context, handle.get()[0], list)
        check(status)

    def _set_row_native(self, const float[::1] row, bint show) -> None:
        cdef cbranch.BranchHandle handle = self.pin()
        cdef core.Status status
        cdef size_t n = row.shape[0]
        cdef const float* start = NULL
        if n:
            start = &row[0]
        with nogil:
            status = cbranch.branch_set_row(handle.get().context, handle.get()[0], start, n, show)
        check(status)

    def _merge_native(self, experts: Sequence[BranchBase], alpha: float) -> None:
        cdef cbranch.BranchHandle handle
        cdef vector[cbranch.BranchHandle] list
        cdef core.Status status
        cdef double factor = as_number(alpha, "alpha", -FLT_MAX, FLT_MAX)
        pin_all(experts, list)
        handle = self.pin()
        with nogil:
            status = cbranch.branch_merge(handle.get().context, handle.get()[0], list, factor)
        check(status)

    def _legal_native(self) -> NDArray[float32]:
        import numpy

        cdef cbranch.BranchHandle handle = self.pin()
        cdef vector[float] row
        cdef core.Status status
        cdef float[::1] view
        cdef size_t i
        with nogil:
            status = cbranch.branch_legal(handle.get().context, handle.get()[0], row)
        check(status)
        array = numpy.empty(row.size(), dtype=numpy.float32)
        view = array
        for i in range(row.size()):
            view[i] = row[i]
        return array

    def _is_legal_native(self, token: int) -> bool:
        cdef cbranch.BranchHandle handle = self.pin()
        cdef core.Status status
        cdef int32_t asked = as_int32(token, "token")
        cdef cppbool legal = False
        with nogil:
            status = cbranch.branch_is_legal(handle.get().context, handle.get()[0], asked, legal)
        check(status)
        return legal

    def _top_native(self, n: int) -> list[tuple[float, int]]:
        cdef size_t count = as_integer(n, "n", 0, UINT32_MAX)
        cdef cbranch.BranchHandle handle = self.pin()
        cdef vector[cdecode.LogProb] best
        cdef core.Status status
        with nogil:
            status = cbranch.branch_top(handle.get().context, handle.get()[0], count, best)
        check(status)
        return [(found.value, found.index) for found in best]

    def _row_native(self) -> LogitsRow:
        cdef cbranch.BranchHandle handle = self.pin()
        cdef LogitsRow row = LogitsRow.__new__(LogitsRow, _KEY)
        cdef core.Status status = cbranch.branch_row(handle.get().context, handle.get()[0], row.row)
        check(status)
        return row

    def _tokens_native(self, begin: int = 0) -> list[tuple[int, bool, float, float]]:
        """From `begin` on: id, accepted, probability (negative: not picked by the sampler), log-probability."""
        cdef size_t first = as_integer(begin, "begin", 0, UINT32_MAX)
        cdef cbranch.BranchHandle handle = self.pin()
        cdef vector[cbranch.Token] tokens
        cdef core.Status status
        with nogil:
            status = cbranch.branch_tokens(handle.get().context, handle.get()[0], first, tokens)
        check(status)
        return [(token.id, token.accepted, token.probability, token.log_prob) for token in tokens]

    def _token_ids_native(self, begin: int = 0) -> list[int]:
        cdef size_t first = as_integer(begin, "begin", 0, UINT32_MAX)
        cdef cbranch.BranchHandle handle = self.pin()
        cdef vector[c.llama_token] tokens
        cdef core.Status status
        with nogil:
            status = cbranch.branch_token_ids(handle.get().context, handle.get()[0], first, tokens)
        check(status)
        return tokens

    def _sampler_state_native(self) -> bytes:
        cdef cbranch.BranchHandle handle = self.pin()
        cdef vector[uint8_t] data
        cdef core.Status status
        with nogil:
            status = cbranch.branch_sampler_state(handle.get().context, handle.get()[0], data)
        check(status)
        return bytes(data)

    def _info_native(self) -> dict[str, Any]:
        cdef cbranch.BranchInfo info = self.info()
        return {
            "position": info.position, "seq": info.seq, "own": info.own, "parked": info.parked,
            "has_logits": info.has_logits, "ended": info.ended, "used_at": info.used_at, "seat": info.seat,
            "picked": info.picked.token, "probability": info.picked.probability,
            "nll": info.model.nll, "n": info.model.n, "sampling_nll": info.sampling.nll, "sampling_n": info.sampling.n,
        }

    @property
    def pruned(self) -> bool:
        """True once it was given up: nothing can be done with it any more."""
        return not self.handle

    @property
    def position(self) -> int:
        """Tokens read into it, the prompt included; the position of the next one."""
        return self.info().position

    @property
    def ended(self) -> bool:
        """The last step picked a token that ends the text. It was not read."""
        return self.info().ended


cdef int pin_all(object branches, vector[cbranch.BranchHandle]& out) except -1:
    cdef BranchBase branch
    out.clear()
    for item in branches:
        branch = <BranchBase?>item
        out.push_back(branch.pin())
    return 0
