cimport lloyal._cpp.adapter as a
from lloyal.llama.state cimport ContextState

cdef class LoraAdapter:
    cdef a.AdapterHandle handle
    cdef readonly object path  # str

    cdef a.AdapterHandle pin(self) except *

cdef class ContextAdapters(ContextState):
    cdef object _adapters
