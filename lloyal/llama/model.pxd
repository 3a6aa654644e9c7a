cimport lloyal._cpp.core as core

cdef class Model:
    cdef core.ModelHandle handle
    cdef readonly object params
    cdef readonly object path
    cdef object _vocab
    cdef object _metadata

    cdef core.ModelHandle pin(self) except *
    cdef int _load(self, list paths, params) except -1
