cimport lloyal._cpp.sampler as s

cdef class SamplerInit:
    cdef s.SamplerHandle handle
    cdef object __weakref__

    cdef s.SamplerHandle pin(self) except *
