cimport lloyal._cpp.model as cmodel

cdef class LoraAdapter:
    cdef cmodel.AdapterHandle handle
    cdef readonly object path  # str

    cdef cmodel.AdapterHandle pin(self) except *
