# cython: language_level=3
"""What makes samplers: every ``llama_sampler_init_*`` of llama.h under its own name, as `Sampler` has them."""

from libc.float cimport FLT_MAX
from libc.math cimport INFINITY
from libc.stdint cimport INT32_MAX, INT64_MAX
from libcpp.memory cimport make_shared
from libcpp.string cimport string
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core
cimport lloyal._cpp.sample as csample
cimport lloyal.libllama.llama as c
from lloyal.llama.args cimport as_integer, as_number
from lloyal.llama.status cimport check
from lloyal.llama.vocab cimport Vocab

from lloyal.errors import InvalidArgument, InvalidGrammar

__all__ = []

cdef int _MAX_BREAKER = 40  # bytes; llama.cpp cuts longer ones off


cdef csample.SamplerHandle own(c.llama_sampler* ptr) except *:
    cdef vector[core.ModelHandle] none
    return make_shared[csample.SamplerBox](ptr, none)


cdef csample.SamplerHandle greedy() except *:
    return own(c.llama_sampler_init_greedy())


cdef csample.SamplerHandle dist(seed: int | None) except *:
    return own(csample.dist_init(as_seed(seed)))


cdef csample.SamplerHandle keyed(seed: int | None, position: int) except *:
    return own(csample.keyed_init(as_seed(seed), as_integer(position, "position", 0, INT64_MAX)))


cdef csample.SamplerHandle llama_dist(seed: int | None) except *:
    return own(c.llama_sampler_init_dist(as_seed(seed)))


cdef csample.SamplerHandle top_k(k: int) except *:
    return own(c.llama_sampler_init_top_k(<int>as_integer(k, "k", -INT32_MAX, INT32_MAX)))


cdef csample.SamplerHandle top_p(p: float, min_keep: int) except *:
    return own(c.llama_sampler_init_top_p(as_share(p, "p"), as_min_keep(min_keep)))


cdef csample.SamplerHandle min_p(p: float, min_keep: int) except *:
    return own(c.llama_sampler_init_min_p(as_share(p, "p"), as_min_keep(min_keep)))


cdef csample.SamplerHandle typical(p: float, min_keep: int) except *:
    return own(c.llama_sampler_init_typical(as_share(p, "p"), as_min_keep(min_keep)))


cdef csample.SamplerHandle temp(t: float) except *:
    return own(c.llama_sampler_init_temp(as_real(t, "t")))


cdef csample.SamplerHandle temp_ext(t: float, delta: float, exponent: float) except *:
    return own(c.llama_sampler_init_temp_ext(
        as_real(t, "t"), as_real(delta, "delta"), <float>as_number(exponent, "exponent", 0.0, FLT_MAX)))


cdef csample.SamplerHandle xtc(p: float, t: float, min_keep: int, seed: int | None) except *:
    return own(c.llama_sampler_init_xtc(as_share(p, "p"), as_share(t, "t"), as_min_keep(min_keep), as_seed(seed)))


cdef csample.SamplerHandle top_n_sigma(n: float) except *:
    return own(c.llama_sampler_init_top_n_sigma(as_real(n, "n")))


cdef csample.SamplerHandle mirostat(n_vocab: int, seed: int | None, tau: float, eta: float, m: int) except *:
    return own(c.llama_sampler_init_mirostat(
        as_n_vocab(n_vocab), as_seed(seed), as_real(tau, "tau"), as_real(eta, "eta"), <int>as_integer(m, "m", 2, INT32_MAX)))


cdef csample.SamplerHandle mirostat_v2(seed: int | None, tau: float, eta: float) except *:
    return own(c.llama_sampler_init_mirostat_v2(as_seed(seed), as_real(tau, "tau"), as_real(eta, "eta")))


cdef csample.SamplerHandle grammar(Vocab vocab, grammar: str, root: str) except *:
    return _grammar(vocab, grammar, root, False, (), ())


cdef csample.SamplerHandle grammar_lazy_patterns(Vocab vocab, grammar: str, root: str,
                                                 trigger_patterns: Iterable[str],
                                                 trigger_tokens: Iterable[int]) except *:
    patterns, tokens = list(trigger_patterns), list(trigger_tokens)
    if not patterns and not tokens:
        raise InvalidArgument("a lazy grammar without trigger_patterns or trigger_tokens would never start")
    return _grammar(vocab, grammar, root, True, patterns, tokens)


cdef csample.SamplerHandle penalties(n_vocab: int, penalty_last_n: int, penalty_repeat: float, penalty_freq: float,
                                     penalty_present: float) except *:
    cdef csample.SamplerHandle handle
    cdef core.Status status
    cdef float repeat = <float>as_number(penalty_repeat, "penalty_repeat", 0.0, FLT_MAX)
    if not 0.0 < repeat:
        raise InvalidArgument(f"penalty_repeat={repeat:g} must be above 0; 1 is off")
    status = csample.penalties_init(as_n_vocab(n_vocab), as_window(penalty_last_n, "penalty_last_n"), repeat,
                                    as_real(penalty_freq, "penalty_freq"), as_real(penalty_present, "penalty_present"), handle)
    check(status)
    return handle


cdef csample.SamplerHandle dry(Vocab vocab, dry_multiplier: float, dry_base: float, dry_allowed_length: int,
                               dry_penalty_last_n: int, seq_breakers: Iterable[str]) except *:
    cdef vector[string] breakers
    cdef csample.SamplerHandle handle
    cdef core.Status status
    cdef core.ModelHandle model = vocab.handle
    cdef float multiplier = as_real(dry_multiplier, "dry_multiplier")
    cdef float base = <float>as_number(dry_base, "dry_base", 1.0, FLT_MAX)
    cdef int allowed = <int>as_integer(dry_allowed_length, "dry_allowed_length", 0, INT32_MAX)
    cdef int last_n = as_window(dry_penalty_last_n, "dry_penalty_last_n")
    for breaker in seq_breakers:
        encoded = breaker.encode()
        if not 1 <= len(encoded) <= _MAX_BREAKER or b"\0" in encoded:
            raise InvalidArgument(f"sequence breaker {breaker!r} must have 1 to {_MAX_BREAKER} bytes and no NUL")
        breakers.push_back(encoded)
    with nogil:
        status = csample.dry_init(model, multiplier, base, allowed, last_n, breakers, handle)
    check(status)
    return handle


cdef csample.SamplerHandle adaptive_p(target: float, decay: float, seed: int | None) except *:
    return own(c.llama_sampler_init_adaptive_p(
        <float>as_number(target, "target", -FLT_MAX, 1.0), <float>as_number(decay, "decay", 0.0, 0.99), as_seed(seed)))


cdef csample.SamplerHandle logit_bias(n_vocab: int, logit_bias: Mapping[int, float]) except *:
    cdef vector[c.llama_logit_bias] biases
    cdef c.llama_logit_bias entry
    cdef int size = as_n_vocab(n_vocab)
    for token, bias in logit_bias.items():
        entry.token = <int>as_integer(token, "token", 0, size - 1)
        entry.bias = <float>as_number(bias, f"the bias of token {entry.token}", -INFINITY, FLT_MAX)
        biases.push_back(entry)
    return own(c.llama_sampler_init_logit_bias(size, <int>biases.size(), biases.data()))


cdef csample.SamplerHandle infill(Vocab vocab) except *:
    cdef core.ModelHandle model = vocab.handle
    cdef csample.SamplerHandle handle
    cdef core.Status status
    with nogil:
        status = csample.infill_init(model, handle)
    check(status)
    return handle


cdef csample.SamplerHandle _grammar(Vocab vocab, object grammar, object root, bint lazy, object patterns,
                                    object tokens) except *:
    cdef core.ModelHandle model = vocab.handle
    cdef csample.SamplerHandle handle
    cdef core.Status status
    cdef vector[string] pattern_list
    cdef vector[c.llama_token] token_list
    cdef string text
    cdef string start
    try:
        text = grammar.encode()
        start = root.encode()
    except UnicodeEncodeError as error:
        raise InvalidGrammar(f"the grammar is no valid text: {error}") from None
    for pattern in patterns:
        if not pattern or "\0" in pattern:
            raise InvalidArgument(f"trigger pattern {pattern!r} must not be empty or hold NUL")
        pattern_list.push_back(pattern.encode())
    for token in tokens:
        token_list.push_back(vocab.check_token(token))
    with nogil:
        status = csample.grammar_init(model, text, start, lazy, pattern_list, token_list, handle)
    check(status)
    return handle
