from lloyal.llama.base cimport ContextBase
from lloyal.llama.batch cimport Batch

# `tenant`: sequences that kv.Tenancy has leased may be written; `ext`: by way of llama_process.
cdef int run(ContextBase ctx, Batch batch, bint encoding, bint tenant, bint ext) except -1
