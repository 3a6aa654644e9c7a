cimport lloyal._cpp.batch_ext as b
cimport lloyal._cpp.core as core
from lloyal.llama.base cimport ContextBase
from lloyal.llama.batch cimport Batch

cdef class BatchExt:
    cdef b.BatchExt box
    cdef core.ContextHandle handle
    cdef Batch flat
    cdef readonly int n_tokens_max
    cdef readonly int n_embd
    cdef readonly int n_embd_enc
    cdef int n_vocab
    cdef int n_seq_max
    cdef int n_sections

    # The entries as one batch of `ctx`; raises if something is missing.
    cdef Batch build(self, ContextBase ctx)
    cdef int index(self, object value) except -1
    cdef int check_seq(self, object value) except? -1
    cdef int add_row(self, int at, object embd) except -1
    cdef int _add(self, object seq_id, int token) except -1
