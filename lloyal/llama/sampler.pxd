cimport lloyal._cpp.core as core
cimport lloyal.libllama.llama as c

cdef class Sampler:
    cdef core.SamplerHandle handle
    cdef bint chained

    cdef core.SamplerHandle pin(self) except *
