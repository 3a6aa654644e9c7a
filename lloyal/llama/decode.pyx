# cython: language_level=3
"""Computing a batch. `Context` has these as methods."""

cimport lloyal._cpp.core as core
cimport lloyal._cpp.decode as cdecode
from lloyal.llama.base cimport ContextBase
from lloyal.llama.batch cimport Batch
from lloyal.llama.batch_ext cimport BatchExt
from lloyal.llama.signals cimport raise_signal
from lloyal.llama.status cimport check

from lloyal.errors import InvalidArgument

__all__ = []


cdef int run(ContextBase ctx, Batch batch, bint encoding, bint tenant, bint ext) except -1:
    cdef core.ContextHandle handle
    cdef core.Status status
    handle = ctx.pin()
    batch.lock()
    try:
        with nogil:
            if ext:
                if encoding:
                    status = cdecode.process_encode(handle, batch.box)
                else:
                    status = cdecode.process_decode(handle, batch.box, tenant)
            elif encoding:
                status = cdecode.encode(handle, batch.box)
            else:
                status = cdecode.decode(handle, batch.box, tenant)
    finally:
        batch.unlock()
    raise_signal()
    check(status)
    return 0


cdef int process(ContextBase ctx, object type, BatchExt batch) except -1:
    if type not in ("decode", "encode"):
        raise InvalidArgument(f"type={type!r} must be 'decode' or 'encode'")
    return run(ctx, batch.build(ctx), type == "encode", False, True)
