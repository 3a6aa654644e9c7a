cimport lloyal._cpp.sample as csample
from lloyal.llama.base cimport Closing

cdef class Sampler(Closing):
    cdef csample.SamplerHandle handle
    cdef object __weakref__

    cdef csample.SamplerHandle pin(self) except *
    cdef Sampler _link(self, object i, bint remove)
