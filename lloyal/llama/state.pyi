# Written by tools/stubs.py from state.pyx.
"""llama.cpp's own state calls on a context, same names and argument order, guarded. `Context` has them as methods.

A state holds the memory of a sequence or of the whole context: no logits, no sampler, no tokens, no model identity.
`Context.checkpoint` is the safe value on top of the same mechanism.
"""

from collections.abc import Iterable
from lloyal.llama.base import ContextBase
from numpy.typing import NDArray
from os import PathLike
from typing import Any
from typing_extensions import Buffer

StrPath = str | PathLike[str]
BufferLike = Buffer | NDArray[Any]

__all__ = ["state_get_data", "state_get_size", "state_load_file", "state_save_file", "state_seq_get_data_ext", "state_seq_get_size_ext", "state_seq_load_file", "state_seq_save_file", "state_seq_set_data_ext", "state_set_data"]

def state_seq_get_size_ext(ctx: ContextBase, seq_id: int, flags: int) -> int:
    """`Context.state_seq_get_size_ext`."""

def state_seq_get_data_ext(ctx: ContextBase, seq_id: int, flags: int, out: BufferLike | None) -> bytes | int:
    """`Context.state_seq_get_data_ext`."""

def state_seq_set_data_ext(ctx: ContextBase, data: BufferLike, dest_seq_id: int, flags: int) -> int:
    """`Context.state_seq_set_data_ext`."""

def state_get_size(ctx: ContextBase) -> int:
    """`Context.state_get_size`."""

def state_get_data(ctx: ContextBase, out: BufferLike | None) -> bytes | int:
    """`Context.state_get_data`."""

def state_set_data(ctx: ContextBase, data: BufferLike) -> int:
    """`Context.state_set_data`."""

def state_seq_save_file(ctx: ContextBase, path: StrPath, seq_id: int, tokens: Iterable[int]) -> int:
    """`Context.state_seq_save_file`."""

def state_seq_load_file(ctx: ContextBase, path: StrPath, dest_seq_id: int) -> list[int]:
    """`Context.state_seq_load_file`."""

def state_save_file(ctx: ContextBase, path: StrPath, tokens: Iterable[int]) -> int:
    """`Context.state_save_file`."""

def state_load_file(ctx: ContextBase, path: StrPath) -> list[int]:
    """`Context.state_load_file`."""
