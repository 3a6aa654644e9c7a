from lloyal.llama.batch cimport Batch
from lloyal.llama.model cimport Model
from lloyal.llama.sampling_backend cimport ContextSampling

cdef class Context(ContextSampling):
    cdef readonly object params  # ContextParams
    cdef readonly object model  # Model
    cdef int n_vocab

    cdef int _run(self, Batch batch, bint encoding, bint tenant, bint ext) except -1
