cimport lloyal._cpp.sample as csample

cdef class Sampler:
    cdef csample.SamplerHandle handle
    cdef object __weakref__

    cdef csample.SamplerHandle pin(self) except *
