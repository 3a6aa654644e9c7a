# Written by tools/stubs.py from sampling_backend.pyx.
"""Samplers that run in a context's graph, on its device: what a decode brings back is the token, not the logits."""

from lloyal.llama.adapter import ContextAdapters
from lloyal.llama.outputs import Logits
from lloyal.llama.sampler import Sampler
from numpy import int32
from numpy.typing import NDArray

__all__ = ["ContextSampling"]

class ContextSampling(ContextAdapters):
    """What a context's back end samples. Not for direct use: see `Context`."""

    def set_sampler(self, seq_id: int, sampler: Sampler | None) -> None:
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
    def sampled_token(self, index: int = -1) -> int | None:
        """The token that the back end picked for one output (``llama_get_sampled_token_ith``), or None.

        `Sampler.sample` returns the same one and accepts it. Raises `NoLogits` for an entry without output.
        """
    def sampled_probs(self, index: int = -1) -> Logits | None:
        """The probabilities of the candidates, if the back end computed them (``llama_get_sampled_probs_ith``).

        Returns
        -------
        Logits or None
            A view as of `Context.logits`, float32, shape (n,), in the order of `sampled_candidates`.
        """
    def sampled_logits(self, index: int = -1) -> Logits | None:
        """The logits of the candidates as the back end left them (``llama_get_sampled_logits_ith``).

        Returns
        -------
        Logits or None
            A view as of `Context.logits`, float32, shape (n,), in the order of `sampled_candidates`.
        """
    def sampled_candidates(self, index: int = -1) -> NDArray[int32] | None:
        """The tokens that were left on the back end (``llama_get_sampled_candidates_ith``).

        Returns
        -------
        ndarray of int32, shape (n,), or None
            An array of its own.
        """
