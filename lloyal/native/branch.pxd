from libcpp.vector cimport vector

cimport lloyal._cpp.branch as cbranch


cdef class BranchBase:
    cdef cbranch.BranchHandle handle
    cdef object __weakref__
    # Of whoever made it; and whether something in Python is to be done before it picks.
    cdef public object store  # Any
    cdef public bint _steers

    cdef cbranch.BranchHandle pin(self) except *
    cdef cbranch.BranchInfo info(self) except *

cdef int pin_all(object branches, vector[cbranch.BranchHandle]& out) except -1
