cimport lloyal._cpp.model as cmodel
from lloyal.llama.base cimport Closing

cdef class LoraAdapter(Closing):
    cdef cmodel.AdapterHandle handle
    cdef readonly object path  # str

    cdef cmodel.AdapterHandle pin(self) except *
