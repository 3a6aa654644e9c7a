cimport lloyal._cpp.sampler as s
from lloyal.llama.sampler_init cimport SamplerInit

cdef class Sampler(SamplerInit):
    cdef int own(self, s.SamplerHandle& handle) except -1
