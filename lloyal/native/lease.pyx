# cython: language_level=3
"""Native calls behind `lloyal.kv.Tenancy`: sequence ids that raw calls may not write. Not for direct use."""

from libc.stdint cimport int32_t

cimport lloyal._cpp.core as core
from lloyal.llama.args cimport as_int32
from lloyal.llama.base cimport ContextBase
from lloyal.llama.batch cimport Batch
from lloyal.llama.batch_ext cimport BatchExt
from lloyal.llama.decode cimport run
from lloyal.llama.status cimport check

__all__ = ["decode_as_tenant", "lease_acquire", "lease_available", "lease_release", "process_as_tenant"]


def lease_acquire(ContextBase ctx not None) -> int:
    """Lease a free sequence id, from the top. Releases the GIL."""
    cdef core.ContextHandle handle
    cdef core.Status status
    cdef int32_t seq = -1
    handle = ctx.pin()
    with nogil:
        status = core.lease_acquire(handle, core.lease_tenant, seq)
    check(status)
    return seq


def lease_release(ContextBase ctx not None, seq_id: int) -> None:
    """Give a leased id back; its sequence is emptied before anything else happens in the context. Releases the GIL."""
    cdef core.ContextHandle handle = ctx.pin()
    cdef int32_t seq = as_int32(seq_id, "seq_id")
    with nogil:
        core.lease_release(handle.get()[0], seq)


def lease_available(ContextBase ctx not None) -> int:
    """Ids that could be leased now."""
    cdef core.ContextHandle handle
    cdef core.Status status
    cdef int32_t n = 0
    handle = ctx.pin()
    status = core.count_available_leases(handle, n)
    check(status)
    return n


def decode_as_tenant(ContextBase ctx not None, Batch batch not None) -> None:
    """`Context.decode`, where the batch may write leased sequences. Releases the GIL."""
    run(ctx, batch, False, True, False)


def process_as_tenant(ContextBase ctx not None, BatchExt batch not None) -> None:
    """``Context.process("decode", batch)``, where the batch may write leased sequences. Releases the GIL."""
    run(ctx, batch.build(ctx), False, True, True)
