cimport lloyal._cpp.state as cstate
from lloyal.llama.base cimport ContextBase

cdef class CheckpointBase:
    cdef cstate.CheckpointHandle handle
    cdef object __weakref__

    cdef cstate.CheckpointHandle pin(self) except *
    cdef int _take(self, ContextBase ctx, int seq, cstate.Where where, bint partial) except -1
