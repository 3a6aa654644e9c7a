# Written by tools/stubs.py from ext.pyx.
"""What a context computes besides logits, and where its bytes are. `Context` has these as methods."""

from lloyal.llama.base import ContextBase
from lloyal.llama.buffers import BufferUse
from numpy import float32
from numpy.typing import NDArray
from typing import Any
from typing_extensions import Buffer

BufferLike = Buffer | NDArray[Any]

__all__ = ["embeddings_layer_inp", "embeddings_nextn", "get_causal_attn", "get_embeddings", "get_logits", "memory_breakdown", "set_causal_attn", "set_embeddings", "set_embeddings_layer_inp", "set_embeddings_nextn", "set_nextn_layer_offset"]

def memory_breakdown(ctx: ContextBase) -> list[BufferUse]:
    """`Context.memory_breakdown`."""

def set_embeddings(ctx: ContextBase, value: bool) -> None:
    """`Context.set_embeddings`."""

def get_causal_attn(ctx: ContextBase) -> bool:
    """`Context.causal_attn`."""

def set_causal_attn(ctx: ContextBase, value: bool) -> None:
    """`Context.set_causal_attn`."""

def get_logits(ctx: ContextBase) -> NDArray[float32]:
    """`Context.get_logits`."""

def get_embeddings(ctx: ContextBase) -> NDArray[float32]:
    """`Context.get_embeddings`."""

def set_embeddings_nextn(ctx: ContextBase, value: bool, masked: bool) -> None:
    """`Context.set_embeddings_nextn`."""

def embeddings_nextn(ctx: ContextBase, index: int, copy: bool, out: BufferLike | None) -> Any:
    """`Context.embeddings_nextn`."""

def set_nextn_layer_offset(ctx: ContextBase, offset: int) -> None:
    """`Context.set_nextn_layer_offset`."""

def set_embeddings_layer_inp(ctx: ContextBase, layer: int, value: bool) -> None:
    """`Context.set_embeddings_layer_inp`."""

def embeddings_layer_inp(ctx: ContextBase, layer: int, index: int, copy: bool, out: BufferLike | None) -> Any:
    """`Context.embeddings_layer_inp`."""
