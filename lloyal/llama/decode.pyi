# Written by tools/stubs.py from decode.pyx.
"""Computing a batch. `Context` has these as methods."""

from lloyal.llama.base import ContextBase
from lloyal.llama.batch import Batch
from lloyal.llama.batch_ext import BatchExt
from typing import Literal

__all__ = ["decode", "encode", "process"]

def decode(ctx: ContextBase, batch: Batch) -> None:
    """`Context.decode`."""

def encode(ctx: ContextBase, batch: Batch) -> None:
    """`Context.encode`."""

def process(ctx: ContextBase, type: Literal["decode", "encode"], batch: BatchExt) -> None:
    """`Context.process`."""
