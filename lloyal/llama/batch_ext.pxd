from libc.stdint cimport int32_t

cimport lloyal._cpp.core as core
cimport lloyal._cpp.decode as cdecode
from lloyal.llama.base cimport ContextBase
from lloyal.llama.batch cimport Batch

cdef class BatchExt:
    cdef cdecode.BatchExt box
    cdef core.ContextHandle handle
    cdef Batch flat
    cdef readonly int n_tokens_max
    cdef readonly int n_embd
    cdef readonly int n_embd_enc
    cdef int n_vocab

    # The entries as one batch of `ctx`; raises if something is missing.
    cdef Batch build(self, ContextBase ctx)
    cdef int _add(self, int32_t seq, int32_t token, const float* row, size_t n) except -1
