# cython: language_level=3
"""Samplers: what turns a row of logits into a token.

Each constructor is the llama.h function of the same name. `Sampler.chain` puts several behind each other; the last one
must pick (greedy, dist, mirostat, ...).
"""

from libc.stdint cimport int32_t, uint32_t
from libcpp.memory cimport make_shared

cimport lloyal._cpp.core as core
cimport lloyal.libllama.llama as c
from lloyal.llama.base cimport enter, leave
from lloyal.llama.context cimport Context
from lloyal.llama.status cimport check

from lloyal.errors import Closed, InvalidArgument

__all__ = ["Sampler"]


cdef Sampler _wrap(c.llama_sampler* ptr, core.ModelHandle model):
    if ptr == NULL:
        raise InvalidArgument("llama.cpp could not make the sampler")
    cdef Sampler sampler = Sampler.__new__(Sampler)
    sampler.handle = make_shared[core.SamplerBox](ptr, model)
    return sampler


cdef Sampler _plain(c.llama_sampler* ptr):
    cdef core.ModelHandle none
    return _wrap(ptr, none)


cdef class Sampler:
    """A sampler or a chain of them (``llama_sampler``). Made by its class methods.

    A sampler that reads a vocabulary keeps the model alive. It has one caller at a time.
    """

    def __init__(self):
        raise TypeError("Sampler cannot be made directly: use Sampler.chain, Sampler.greedy, ...")

    cdef core.SamplerHandle pin(self) except *:
        if not self.handle:
            raise Closed("the sampler is closed")
        return self.handle

    @staticmethod
    def chain(*samplers) -> Sampler:
        """Samplers applied one after another. The chain works on clones: the arguments stay yours."""
        cdef c.llama_sampler_chain_params params = c.llama_sampler_chain_default_params()
        cdef c.llama_sampler* chain = c.llama_sampler_chain_init(params)
        cdef core.ModelHandle model
        cdef Sampler sampler
        try:
            for sampler in samplers:
                sampler.pin()
                if sampler.handle.get().model:
                    model = sampler.handle.get().model
                c.llama_sampler_chain_add(chain, c.llama_sampler_clone(sampler.handle.get().ptr))
        except BaseException:
            c.llama_sampler_free(chain)
            raise
        return _wrap(chain, model)

    @staticmethod
    def greedy() -> Sampler:
        """Pick the most probable token."""
        return _plain(c.llama_sampler_init_greedy())

    @staticmethod
    def dist(seed=None) -> Sampler:
        """Draw from the distribution; a random seed without `seed`."""
        return _plain(c.llama_sampler_init_dist(_seed(seed)))

    @staticmethod
    def top_k(int k) -> Sampler:
        """Keep the k most probable (0 or less keeps all)."""
        return _plain(c.llama_sampler_init_top_k(k))

    @staticmethod
    def top_p(float p, size_t min_keep=1) -> Sampler:
        """Nucleus sampling: keep the most probable that together reach `p`."""
        return _plain(c.llama_sampler_init_top_p(p, min_keep))

    @staticmethod
    def min_p(float p, size_t min_keep=1) -> Sampler:
        """Keep tokens at least `p` times as probable as the best one."""
        return _plain(c.llama_sampler_init_min_p(p, min_keep))

    @staticmethod
    def temp(float t) -> Sampler:
        """Divide the logits by `t`; 0 or less keeps only the best."""
        return _plain(c.llama_sampler_init_temp(t))

    def sample(self, Context ctx, int index=-1) -> int:
        """Pick a token from the logits of batch entry `index` (negative: from the end) and accept it.

        Raises
        ------
        NoLogits
            That entry has no logits.

        Notes
        -----
        Releases the GIL.
        """
        cdef core.ContextHandle handle
        cdef core.SamplerHandle sampler = self.pin()
        cdef core.Status status
        cdef c.llama_token token = -1
        enter(ctx, handle)
        with nogil:
            status = core.sample(sampler.get()[0], handle.get()[0], index, token)
            leave(handle)
        check(status)
        return token

    def accept(self, int token) -> None:
        """Tell penalties, grammars and the like that `token` was chosen."""
        cdef core.SamplerHandle sampler = self.pin()
        with nogil:
            c.llama_sampler_accept(sampler.get().ptr, token)

    def reset(self) -> None:
        """Forget what was accepted; seeded samplers start over."""
        cdef core.SamplerHandle sampler = self.pin()
        c.llama_sampler_reset(sampler.get().ptr)

    def clone(self) -> Sampler:
        """A copy with the same state, the random generator included."""
        cdef core.SamplerHandle sampler = self.pin()
        return _wrap(c.llama_sampler_clone(sampler.get().ptr), sampler.get().model)

    @property
    def name(self) -> str:
        cdef core.SamplerHandle sampler = self.pin()
        return c.llama_sampler_name(sampler.get().ptr).decode()

    @property
    def seed(self) -> int | None:
        """The seed in use, or None if it has none."""
        cdef core.SamplerHandle sampler = self.pin()
        seed = c.llama_sampler_get_seed(sampler.get().ptr)
        return None if seed == c.LLAMA_DEFAULT_SEED else seed

    def close(self) -> None:
        """Drop this object's hold on the sampler."""
        cdef core.SamplerHandle handle
        handle.swap(self.handle)
        with nogil:
            handle.reset()

    @property
    def closed(self) -> bool:
        return not self.handle

    def __repr__(self):
        return "<Sampler, closed>" if self.closed else f"<Sampler {self.name}>"


cdef uint32_t _seed(seed) except? 0:
    if seed is None:
        return c.LLAMA_DEFAULT_SEED
    if not 0 <= seed < c.LLAMA_DEFAULT_SEED:
        raise InvalidArgument(f"seed={seed} must be from 0 to {c.LLAMA_DEFAULT_SEED - 1}")
    return seed
