cimport lloyal._cpp.model as cmodel
from lloyal.llama.ext cimport ContextExt

cdef class LoraAdapter:
    cdef cmodel.AdapterHandle handle
    cdef readonly object path  # str

    cdef cmodel.AdapterHandle pin(self) except *

cdef class ContextAdapters(ContextExt):
    cdef object _adapters
