from lloyal.llama.base cimport ContextBase
from lloyal.llama.batch cimport Batch
from lloyal.llama.batch_ext cimport BatchExt

# `tenant`: sequences that kv.Tenancy has leased may be written; `ext`: by way of llama_process.
cdef int run(ContextBase ctx, Batch batch, bint encoding, bint tenant, bint ext) except -1
cdef int process(ContextBase ctx, object type, BatchExt batch) except -1
