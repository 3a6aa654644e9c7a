from lloyal.llama.sampler_init cimport SamplerInit

cdef class Sampler(SamplerInit):
    pass
