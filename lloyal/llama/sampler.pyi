# Written by tools/stubs.py from sampler.pyx.
"""Samplers: what turns a row of logits into a token.

Each constructor is the ``llama_sampler_init_*`` function of the same name. `Sampler.chain` puts several behind each
other; one of them, usually the last, must pick (greedy, dist, mirostat, mirostat_v2, adaptive_p).
"""

from lloyal.llama.base import ContextBase
from lloyal.llama.candidates import Candidates
from lloyal.llama.sampler_init import SamplerInit
from numpy.typing import ArrayLike, NDArray
from typing import Any
from typing_extensions import Buffer

BufferLike = Buffer | NDArray[Any]

__all__ = ["Sampler"]

class Sampler(SamplerInit):
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
    def chain_add(self, sampler: Sampler) -> None:
        """Put a clone of `sampler` behind the others of this chain (``llama_sampler_chain_add``).

        Raises
        ------
        InvalidArgument
            This is no chain, or a context runs it on its back end.
        """
    def chain_n(self) -> int:
        """How many samplers the chain has (``llama_sampler_chain_n``). Raises `InvalidArgument` if it is no chain."""
    def chain_get(self, i: int) -> Sampler:
        """A clone of the `i`-th sampler of the chain, from 0 (``llama_sampler_chain_get``)."""
    def chain_remove(self, i: int) -> Sampler:
        """Take the `i`-th sampler out of the chain and return it (``llama_sampler_chain_remove``)."""
    def sample(self, ctx: ContextBase, index: int = -1) -> int:
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
    def reset(self) -> None:
        """Forget what was accepted; random generators start over, from a new seed where none was given."""
    def clone(self) -> Sampler:
        """A sampler that goes on exactly as this one would (``llama_sampler_clone``). Releases the GIL."""
    def copy(self, dst: Sampler) -> None:
        """Copy this sampler's state into `dst` (``llama_sampler_copy``), also while a back end runs it.

        Parameters
        ----------
        dst : Sampler
            One with the same samplers and parameters; only seeds may differ.
        """
    def state(self) -> bytes:
        """Everything that decides what it picks next: random generators, penalty windows, mirostat's mu, the position
        in a grammar, of every sampler in the chain.

        The size depends on what the samplers remember, not on how much they have seen; `dist` takes 36 bytes.
        """
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
    def perf(self) -> dict[str, float]:
        """Time in the chain in milliseconds, and tokens accepted (``llama_perf_sampler``; time needs no_perf=False)."""
    def perf_reset(self) -> None:
        """Start `perf` over (``llama_perf_sampler_reset``)."""
    @property
    def name(self) -> str:
        """llama.cpp's name for it: ``"chain"``, ``"top-k"``; with ``?`` in front where its parameters switch it off,
        with ``+`` or ``-`` while a back end runs it or cannot.
        """
    @property
    def seed(self) -> int | None:
        """The seed in use, in a chain that of the last sampler that has one; or None."""
    def __repr__(self) -> str: ...
