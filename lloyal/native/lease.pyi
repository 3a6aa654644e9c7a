# Written by tools/stubs.py from lease.pyx.
"""Native calls behind `lloyal.kv.Tenancy`: sequence ids that raw calls may not write. Not for direct use."""

from lloyal.llama.base import ContextBase
from lloyal.llama.batch import Batch
from lloyal.llama.batch_ext import BatchExt

__all__ = ["decode_as_tenant", "lease_acquire", "lease_available", "lease_release", "process_as_tenant"]

def lease_acquire(ctx: ContextBase) -> int:
    """Lease a free sequence id, from the top. Releases the GIL."""

def lease_release(ctx: ContextBase, seq_id: int) -> None:
    """Give a leased id back; its sequence is emptied before anything else happens in the context. Releases the GIL."""

def lease_available(ctx: ContextBase) -> int:
    """Ids that could be leased now."""

def decode_as_tenant(ctx: ContextBase, batch: Batch) -> None:
    """`Context.decode`, where the batch may write leased sequences. Releases the GIL."""

def process_as_tenant(ctx: ContextBase, batch: BatchExt) -> None:
    """``Context.process("decode", batch)``, where the batch may write leased sequences. Releases the GIL."""
