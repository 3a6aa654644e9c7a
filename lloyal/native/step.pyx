# cython: language_level=3
"""Native calls that many branches take together. Not for direct use: see `lloyal.BranchStore`."""

from libc.float cimport DBL_MAX
from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t, uint32_t
from libcpp.vector cimport vector

cimport lloyal._cpp.branch as cbranch
cimport lloyal._cpp.core as core
cimport lloyal._cpp.sample as csample
cimport lloyal.libllama.llama as c
from lloyal.llama.args cimport as_index, as_int32, as_integer, as_number
from lloyal.llama.base cimport ContextBase
from lloyal.llama.signals cimport raise_signal
from lloyal.llama.status cimport check
from lloyal.native.branch cimport BranchBase, pin_all

from lloyal.errors import Busy, InvalidArgument

__all__ = ["DraftSampler", "Draws", "draw", "ratio", "read", "step", "steps_alone", "unseated"]

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


cdef class DraftSampler:
    """Draws guesses as a branch would: with a copy of its sampler, behind the token that it has just picked.

    Penalties, grammar, biases and temperature are the branch's, and so is its noise.
    """

    cdef cbranch.DraftHandle handle
    cdef bint busy  # a thread draws

    def __cinit__(self, key=None):
        if key is not _KEY:
            raise TypeError("DraftSampler cannot be made directly: a Speculator gives it to its drafter")

    def sample(self, ContextBase ctx not None, index: int = -1) -> int:
        """Draw the next guess from an output of the last decode, and accept it.

        Raises
        ------
        InvalidArgument
            Nothing is left to draw.
        NoLogits
            That entry has no output.
        """
        cdef core.ContextHandle handle = ctx.pin()
        cdef int32_t i = as_int32(index, "index")
        cdef c.llama_token token = -1
        cdef core.Status status
        self.claim()
        self.busy = True
        try:
            status = cbranch.draft_sample(handle, self.handle.get()[0], i, token)
        finally:
            self.busy = False
        check(status)
        return token

    cdef int claim(self) except -1:
        if self.busy:
            raise Busy("another thread draws with this sampler")
        return 0


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
        cdef int64_t n = as_integer(most, "most", 0, 1 << 16)
        cdef core.ContextHandle handle
        for character in after:
            before.push_back(ord(character))
        handle = self.ctx.pin()
        cdef cbranch.Draw one = self.list[self.place(index)]  # another thread may read them meanwhile
        with nogil:
            status = cbranch.draw_forced(handle, one, before, n, found)
        check(status)
        choices = [] if found.may_end else [chr(character) for character in found.choices]
        return "".join([chr(character) for character in found.text]), choices

    def sampler(self, i: int, ratio: bool = False) -> DraftSampler:
        """Of the `i`-th branch, to draw guesses with; with `ratio` for rejection sampling."""
        cdef DraftSampler sampler = DraftSampler.__new__(DraftSampler, _KEY)
        cdef bint rejects = ratio
        cdef core.ContextHandle handle = self.ctx.pin()
        cdef cbranch.Draw one = self.list[self.place(i)]
        cdef core.Status status = cbranch.draft_make(handle, one, rejects, sampler.handle)
        check(status)
        return sampler

    cdef size_t place(self, object index) except *:
        if self.list.empty():
            raise InvalidArgument("this has been read: it is of use before its step has ended")
        return as_index(index, self.list.size())

    def drop(self) -> None:
        """Forget them: they would keep their branches alive."""
        self.list.clear()

    def verify(self, guesses: Sequence[Sequence[int]], ratio: bool = False,
               samplers: Mapping[int, DraftSampler] = {}) -> list[list[int]]:
        """Read the tokens, and of the guesses behind each those that its branch would pick itself: all or none.

        With `ratio` those that rejection sampling keeps: `samplers`, by the number of the branch, know what guesses were
        drawn from. Releases the GIL. Returns what each branch has read, or the token that ends it.
        """
        cdef vector[cbranch.Guesses] list
        cdef cbranch.Guesses one
        cdef vector[vector[c.llama_token]] out
        cdef core.Status status
        cdef DraftSampler sampler
        one.ratio = ratio
        for i, tokens in enumerate(guesses):
            one.tokens.clear()
            one.from_.clear()
            for token in tokens:
                one.tokens.push_back(as_int32(token, "guess"))
            if i in samplers:
                sampler = <DraftSampler?>samplers[i]
                sampler.claim()
                for k in range(min(one.tokens.size(), sampler.handle.get().from_.size())):
                    if one.tokens[k] != sampler.handle.get().tokens[k]:
                        break  # it comes from somewhere else
                    one.from_.push_back(sampler.handle.get().from_[k])
            list.push_back(one)
        cdef core.ContextHandle handle = self.ctx.pin()
        cdef vector[cbranch.Draw] draws
        draws.swap(self.list)  # whoever asks for one from now on comes too late
        with nogil:
            status = cbranch.branches_verify(handle, draws, list, out)
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


cdef csample.Chances _chances(object pairs, str name) except *:
    cdef csample.Chances list
    cdef csample.Chance one
    cdef double total = 0.0
    for token, p in pairs:
        one.id = as_int32(token, "token")
        one.p = as_number(p, f"{name}({one.id})", 0.0, DBL_MAX)
        total += one.p
        list.push_back(one)
    if not 0.0 < total < INFINITY and (name == "p" or list.size()):
        raise InvalidArgument(f"{name} has a sum of {total}: there is nothing to draw")
    return list


def ratio(p: Sequence[tuple[int, float]], q: Sequence[tuple[int, float]], guesses: Sequence[int],
          uniforms: Sequence[tuple[float, float]]) -> list[int]:
    """Rejection sampling by itself: draws from `p`, made of guesses that were drawn from `q`.

    Parameters
    ----------
    p, q : sequence of (int, float)
        Token and probability, each token once. Without `q` guesses are certain.
    guesses : sequence of int
    uniforms : sequence of (float, float)
        For each guess a number in [0, 1) by which it is kept or not, and one to draw another by.

    Raises
    ------
    InvalidArgument
        A probability is negative or no number, or they are all 0.
    """
    cdef csample.Chances target = _chances(p, "p")
    cdef csample.Chances draft = _chances(q, "q")
    cdef csample.Chances rest
    cdef int32_t guess
    made = []
    for token, (u, v) in zip(guesses, uniforms, strict=True):
        guess = as_int32(token, "guess")
        made.append(guess if csample.ratio_keeps(target, draft, guess, u, rest) else csample.draw_one(rest, v).id)
    return made


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
