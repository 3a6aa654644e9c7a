from lloyal.llama.batch cimport Batch
from lloyal.llama.model cimport Model
from lloyal.llama.state cimport ContextState

cdef class Context(ContextState):
    cdef readonly object params
    cdef readonly object model
    cdef object _memory
    cdef int n_vocab

    cdef int _run(self, Batch batch, bint encoding) except -1
