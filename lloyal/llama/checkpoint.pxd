cimport lloyal._cpp.checkpoint as native
cimport lloyal._cpp.core as core
from lloyal.llama.base cimport ContextBase

cdef class CheckpointBase:
    cdef native.CheckpointHandle handle
    cdef object __weakref__

    cdef native.CheckpointHandle pin(self) except *
    cdef int _take(self, ContextBase ctx, int seq, native.Where where, bint partial) except -1
