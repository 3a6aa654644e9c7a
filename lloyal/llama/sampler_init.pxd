from libc.float cimport FLT_MAX
from libc.stdint cimport INT32_MAX, uint32_t

cimport lloyal._cpp.sample as csample
cimport lloyal.libllama.llama as c
from lloyal.llama.args cimport as_integer, as_number
from lloyal.llama.vocab cimport Vocab

cdef csample.SamplerHandle greedy() except *
cdef csample.SamplerHandle dist(object seed) except *
cdef csample.SamplerHandle keyed(object seed, object position) except *
cdef csample.SamplerHandle llama_dist(object seed) except *
cdef csample.SamplerHandle top_k(object k) except *
cdef csample.SamplerHandle top_p(object p, object min_keep) except *
cdef csample.SamplerHandle min_p(object p, object min_keep) except *
cdef csample.SamplerHandle typical(object p, object min_keep) except *
cdef csample.SamplerHandle temp(object t) except *
cdef csample.SamplerHandle temp_ext(object t, object delta, object exponent) except *
cdef csample.SamplerHandle xtc(object p, object t, object min_keep, object seed) except *
cdef csample.SamplerHandle top_n_sigma(object n) except *
cdef csample.SamplerHandle mirostat(object n_vocab, object seed, object tau, object eta, object m) except *
cdef csample.SamplerHandle mirostat_v2(object seed, object tau, object eta) except *
cdef csample.SamplerHandle grammar(Vocab vocab, object grammar, object root) except *
cdef csample.SamplerHandle grammar_lazy_patterns(Vocab vocab, object grammar, object root, object trigger_patterns, object trigger_tokens) except *
cdef csample.SamplerHandle penalties(object n_vocab, object penalty_last_n, object penalty_repeat, object penalty_freq, object penalty_present) except *
cdef csample.SamplerHandle dry(Vocab vocab, object dry_multiplier, object dry_base, object dry_allowed_length, object dry_penalty_last_n, object seq_breakers) except *
cdef csample.SamplerHandle adaptive_p(object target, object decay, object seed) except *
cdef csample.SamplerHandle logit_bias(object n_vocab, object logit_bias) except *
cdef csample.SamplerHandle infill(Vocab vocab) except *


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
