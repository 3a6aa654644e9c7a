cimport lloyal._cpp.core as core
from lloyal.llama.base cimport Closing

cdef class Model(Closing):
    cdef core.ModelHandle handle
    cdef readonly object params  # ModelParams
    cdef readonly object path  # str
    cdef object _vocab
    cdef object _metadata

    cdef core.ModelHandle pin(self) except *
