from libc.float cimport FLT_MAX
from libc.stdint cimport INT32_MAX, uint32_t

cimport lloyal._cpp.sample as csample
cimport lloyal.libllama.llama as c
from lloyal.llama.args cimport as_integer, as_number

cdef class SamplerInit:
    cdef csample.SamplerHandle handle
    cdef object __weakref__

    cdef csample.SamplerHandle pin(self) except *


# What several constructors take, checked.

cdef inline uint32_t as_seed(object seed) except? 0xffffffff:
    if seed is None:
        return c.LLAMA_DEFAULT_SEED
    return <uint32_t>as_integer(seed, "seed", 0, c.LLAMA_DEFAULT_SEED - 1)


cdef inline float as_share(object value, str name) except? -1:
    return <float>as_number(value, name, 0.0, 1.0)


cdef inline float as_real(object value, str name) except? -1:
    return <float>as_number(value, name, -FLT_MAX, FLT_MAX)


cdef inline size_t as_min_keep(object value) except? 0:
    return <size_t>as_integer(value, "min_keep", 0, INT32_MAX)


cdef inline int as_n_vocab(object value) except? -1:
    return <int>as_integer(value, "n_vocab", 1, INT32_MAX)


cdef inline int as_window(object value, str name) except? -1:
    # How many tokens to look back on. They are allocated at once; no context comes near the limit. llama.cpp once read
    # -1 as "the whole context"; it now reads it as 0.
    return <int>as_integer(value, name, 0, 2**24)
