# cython: language_level=3
"""Native calls that many branches take together. Not for direct use: see `lloyal.BranchStore`."""

from libc.stdint cimport int64_t, uint32_t
from libcpp.vector cimport vector

cimport lloyal._cpp.branch as cbranch
cimport lloyal._cpp.core as core
cimport lloyal._cpp.sample as csample
cimport lloyal.libllama.llama as c
from lloyal.llama.args cimport as_index, as_int32, as_integer
from lloyal.llama.base cimport ContextBase
from lloyal.llama.signals cimport raise_signal
from lloyal.llama.status cimport check
from lloyal.native.branch cimport BranchBase, pin_all

__all__ = ["Draws", "draw", "read", "step", "steps_alone", "unseated"]

cdef object _KEY = object()  # a bare __new__ would hold nothing


def steps_alone(branches: Sequence[BranchBase], store: object) -> bool:
    """Whether these are branches of that store, and none has anything to do in Python before it picks."""
    cdef BranchBase branch
    for item in branches:
        if not isinstance(item, BranchBase):
            return False
        branch = item
        if branch._steers or branch.store is not store:
            return False
    return True


def step(ContextBase ctx not None, branches: Sequence[BranchBase]) -> list[int]:
    """Pick, accept and read one token in each branch: all or none. Releases the GIL."""
    cdef core.ContextHandle handle
    cdef vector[cbranch.BranchHandle] list
    cdef vector[c.llama_token] tokens
    cdef core.Status status
    pin_all(branches, list)
    handle = ctx.pin()
    with nogil:
        status = cbranch.branches_step(handle, list, tokens)
    raise_signal()
    check(status)
    return tokens


cdef class Draws:
    """What branches have picked and not read yet. No branch has changed, nor will it if this is dropped."""

    cdef vector[cbranch.Draw] list
    cdef ContextBase ctx

    def __cinit__(self, key=None):
        if key is not _KEY:
            raise TypeError("Draws cannot be made directly: use draw()")

    @property
    def tokens(self) -> list[int]:
        """The token of each branch."""
        cdef size_t i
        return [self.list[i].picked.token for i in range(self.list.size())]

    @property
    def ends(self) -> list[bool]:
        """Whether it ends the text."""
        cdef size_t i
        return [self.list[i].ends for i in range(self.list.size())]

    def forced(self, index: int, after: str = "", most: int = 256) -> tuple[str, list[str]]:
        """What the grammar of the branch at `index` leaves no choice about, behind its token and `after`.

        Returns the text, `most` characters at most, and those that may stand behind it if they are few: none where anything
        may, or the text may end there, or nothing is known: without a grammar, or with one that waits or does not allow
        `after`.
        """
        cdef vector[uint32_t] before
        cdef csample.Forced found
        cdef core.Status status
        cdef size_t place = as_index(index, self.list.size())
        cdef int64_t n = as_integer(most, "most", 0, 1 << 16)
        cdef core.ContextHandle handle
        for character in after:
            before.push_back(ord(character))
        handle = self.ctx.pin()
        with nogil:
            status = cbranch.draw_forced(handle, self.list[place], before, n, found)
        check(status)
        choices = [] if found.may_end else [chr(character) for character in found.choices]
        return "".join([chr(character) for character in found.text]), choices

    def verify(self, guesses: Sequence[Sequence[int]]) -> list[list[int]]:
        """Read the tokens, and of the guesses behind each those that its branch would pick itself: all or none.

        Releases the GIL. Returns what each branch has read, or the token that ends it.
        """
        cdef vector[vector[c.llama_token]] list
        cdef vector[c.llama_token] one
        cdef vector[vector[c.llama_token]] out
        cdef core.Status status
        for tokens in guesses:
            one.clear()
            for token in tokens:
                one.push_back(as_int32(token, "guess"))
            list.push_back(one)
        cdef core.ContextHandle handle = self.ctx.pin()
        with nogil:
            status = cbranch.branches_verify(handle, self.list, list, out)
        raise_signal()
        check(status)
        return out


def draw(ContextBase ctx not None, branches: Sequence[BranchBase]) -> Draws:
    """Pick a token in each branch, and change none."""
    cdef core.ContextHandle handle
    cdef vector[cbranch.BranchHandle] list
    cdef core.Status status
    cdef Draws draws = Draws.__new__(Draws, _KEY)
    pin_all(branches, list)
    handle = ctx.pin()
    with nogil:
        status = cbranch.branches_draw(handle, list, draws.list)
    check(status)
    draws.ctx = ctx
    return draws


def read(ContextBase ctx not None, items: Sequence[tuple[BranchBase, Sequence[int]]], accept: bool) -> None:
    """Read tokens into branches: all or none. Releases the GIL."""
    cdef core.ContextHandle handle
    cdef vector[cbranch.Reading] readings
    cdef cbranch.Reading reading
    cdef BranchBase branch
    cdef core.Status status
    cdef bint accepting = accept
    for item, tokens in items:
        branch = <BranchBase?>item
        reading.tokens.clear()
        for token in tokens:
            reading.tokens.push_back(as_int32(token, "token"))
        reading.branch = branch.pin()
        readings.push_back(reading)
    handle = ctx.pin()
    with nogil:
        status = cbranch.branches_read(handle, readings, accepting)
    raise_signal()
    check(status)


def unseated(ContextBase ctx not None, branches: Sequence[BranchBase]) -> list[int]:
    """Indices of the branches that a step would have to find a sequence for."""
    cdef core.ContextHandle handle
    cdef vector[cbranch.BranchHandle] list
    cdef vector[size_t] found
    cdef core.Status status
    pin_all(branches, list)
    handle = ctx.pin()
    with nogil:
        status = cbranch.branches_unseated(handle, list, found)
    check(status)
    return found
