cimport lloyal._cpp.adapter as a
from lloyal.llama.ext cimport ContextExt

cdef class LoraAdapter:
    cdef a.AdapterHandle handle
    cdef readonly object path  # str

    cdef a.AdapterHandle pin(self) except *

cdef class ContextAdapters(ContextExt):
    cdef object _adapters
