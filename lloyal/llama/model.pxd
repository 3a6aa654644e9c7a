cimport lloyal._cpp.core as core

cdef class Model:
    cdef core.ModelHandle handle
    cdef readonly object params  # ModelParams
    cdef readonly object path  # str
    cdef object _vocab
    cdef object _metadata

    cdef core.ModelHandle pin(self) except *
