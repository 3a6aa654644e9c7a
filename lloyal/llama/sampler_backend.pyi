# Written by tools/stubs.py from sampler_backend.pyx.
"""Samplers that run in a context's graph, on its device: what a decode brings back is the token, not the logits."""

from lloyal.llama.base import ContextBase
from lloyal.llama.outputs import Logits
from lloyal.llama.sampler import Sampler
from numpy import int32
from numpy.typing import NDArray

__all__ = ["sampled_candidates", "sampled_logits", "sampled_probs", "sampled_token", "set_sampler"]

def set_sampler(ctx: ContextBase, seq_id: int, sampler: Sampler | None) -> None:
    """`Context.set_sampler`."""

def sampled_token(ctx: ContextBase, index: int) -> int | None:
    """`Context.sampled_token`."""

def sampled_probs(ctx: ContextBase, index: int) -> Logits | None:
    """`Context.sampled_probs`."""

def sampled_logits(ctx: ContextBase, index: int) -> Logits | None:
    """`Context.sampled_logits`."""

def sampled_candidates(ctx: ContextBase, index: int) -> NDArray[int32] | None:
    """`Context.sampled_candidates`."""
