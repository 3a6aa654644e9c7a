# cython: language_level=3
"""The constructors of samplers: every ``llama_sampler_init_*`` of llama.h under its own name."""

from libc.float cimport FLT_MAX
from libc.math cimport INFINITY
from libc.stdint cimport INT32_MAX
from libcpp.memory cimport make_shared
from libcpp.string cimport string
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core
cimport lloyal._cpp.sample as csample
cimport lloyal.libllama.llama as c
from lloyal.llama.args cimport as_integer, as_number
from lloyal.llama.status cimport check
from lloyal.llama.vocab cimport Vocab

from lloyal.errors import Closed, InvalidArgument, InvalidGrammar

__all__ = ["SamplerInit"]

cdef int _MAX_BREAKER = 40  # bytes; llama.cpp cuts longer ones off


cdef object _plain(type cls, c.llama_sampler* ptr):
    cdef vector[core.ModelHandle] none
    cdef SamplerInit sampler = cls.__new__(cls)
    sampler.handle = make_shared[csample.SamplerBox](ptr, none)
    return sampler


cdef object _made(type cls, core.Status& status, csample.SamplerHandle& handle):
    check(status)
    cdef SamplerInit sampler = cls.__new__(cls)
    sampler.handle = handle
    return sampler


cdef class SamplerInit:
    """The handle of a sampler and what makes it. Not for direct use: see `Sampler`."""

    def __init__(self):
        raise TypeError(f"{type(self).__name__} cannot be made directly: use its class methods")

    cdef csample.SamplerHandle pin(self) except *:
        if not self.handle:
            raise Closed("the sampler is closed")
        return self.handle

    def close(self) -> None:
        """Drop this object's hold on the sampler. A call in another thread, or a context that runs it, keeps it."""
        cdef csample.SamplerHandle handle
        handle.swap(self.handle)
        with nogil:
            handle.reset()

    @property
    def closed(self) -> bool:
        return not self.handle

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    @classmethod
    def greedy(cls) -> Self:
        """Pick the most probable token, the first of equals."""
        return _plain(cls, c.llama_sampler_init_greedy())

    @classmethod
    def dist(cls, seed: int | None = None) -> Self:
        """Draw from the distribution. This one is ours: see `llama_dist` for llama.cpp's.

        The same distribution, with a PCG64 generator (XSL-RR 128/64, O'Neill 2014; the bit generator of NumPy's
        ``default_rng``) seeded by SplitMix64. One draw per token, 53 bits wide. Its state is 32 bytes, and a seed gives
        the same draws on every platform.

        Parameters
        ----------
        seed : int, optional
            From 0 to 2**32 - 2; without one a random seed is drawn, and a new one at every `reset`.
        """
        return _plain(cls, csample.dist_init(as_seed(seed)))

    @classmethod
    def llama_dist(cls, seed: int | None = None) -> Self:
        """Draw from the distribution with llama.cpp's own sampler (``llama_sampler_init_dist``).

        Its state is the 2.5 kB of a Mersenne twister, in the layout of the C++ library. It can run on a back end.
        """
        return _plain(cls, c.llama_sampler_init_dist(as_seed(seed)))

    @classmethod
    def top_k(cls, k: int) -> Self:
        """Keep the k most probable; 0 or less keeps all."""
        return _plain(cls, c.llama_sampler_init_top_k(<int>as_integer(k, "k", -INT32_MAX, INT32_MAX)))

    @classmethod
    def top_p(cls, p: float, min_keep: int = 1) -> Self:
        """Nucleus sampling: keep the most probable that together reach `p`, and at least `min_keep`; 1 keeps all.

        On a back end `min_keep` does not count.
        """
        return _plain(cls, c.llama_sampler_init_top_p(as_share(p, "p"), as_min_keep(min_keep)))

    @classmethod
    def min_p(cls, p: float, min_keep: int = 1) -> Self:
        """Keep tokens at least `p` times as probable as the best one, and at least `min_keep`; 0 keeps all.

        On a back end `min_keep` does not count.
        """
        return _plain(cls, c.llama_sampler_init_min_p(as_share(p, "p"), as_min_keep(min_keep)))

    @classmethod
    def typical(cls, p: float, min_keep: int = 1) -> Self:
        """Locally typical sampling: keep the tokens whose surprise is nearest to the entropy, together above `p`.

        Put it before samplers that rule tokens out (grammar, top_n_sigma): with a probability of zero among the
        candidates the entropy is NaN, and llama.cpp then keeps the most probable instead.
        """
        return _plain(cls, c.llama_sampler_init_typical(as_share(p, "p"), as_min_keep(min_keep)))

    @classmethod
    def temp(cls, t: float) -> Self:
        """Divide the logits by `t`; 0 or less keeps only the best."""
        return _plain(cls, c.llama_sampler_init_temp(as_real(t, "t")))

    @classmethod
    def temp_ext(cls, t: float, delta: float, exponent: float) -> Self:
        """Dynamic temperature: from ``t - delta`` where the model is sure to ``t + delta`` where it is not.

        The temperature grows with the entropy of the candidates, as a share of the largest possible, to the power of
        `exponent` (0 or more). A `delta` of 0 or less is a plain `temp`.
        """
        return _plain(cls, c.llama_sampler_init_temp_ext(
            as_real(t, "t"), as_real(delta, "delta"), <float>as_number(exponent, "exponent", 0.0, FLT_MAX)))

    @classmethod
    def xtc(cls, p: float, t: float, min_keep: int = 1, seed: int | None = None) -> Self:
        """Exclude top choices: with probability `p` drop all tokens of probability `t` and more but the last of them.

        `p` of 0 or `t` above 0.5 switches it off.
        """
        return _plain(cls, c.llama_sampler_init_xtc(as_share(p, "p"), as_share(t, "t"), as_min_keep(min_keep), as_seed(seed)))

    @classmethod
    def top_n_sigma(cls, n: float) -> Self:
        """Keep logits within `n` standard deviations of the largest one; 0 or less keeps all."""
        return _plain(cls, c.llama_sampler_init_top_n_sigma(as_real(n, "n")))

    @classmethod
    def mirostat(cls, n_vocab: int, seed: int | None, tau: float, eta: float, m: int = 100) -> Self:
        """Mirostat: pick so that the surprise of the tokens stays near `tau` bits.

        Parameters
        ----------
        n_vocab : int
            Tokens in the vocabulary.
        seed : int or None
            As for `dist`.
        tau : float
            Surprise to aim at, in bits.
        eta : float
            Learning rate.
        m : int
            Candidates from which the distribution's exponent is estimated, 2 or more.
        """
        return _plain(cls, c.llama_sampler_init_mirostat(
            as_n_vocab(n_vocab), as_seed(seed), as_real(tau, "tau"), as_real(eta, "eta"), <int>as_integer(m, "m", 2, INT32_MAX)))

    @classmethod
    def mirostat_v2(cls, seed: int | None, tau: float, eta: float) -> Self:
        """Mirostat 2.0: drop the tokens more surprising than a bound, which follows the surprise of what was picked.

        Parameters
        ----------
        seed : int or None
            As for `dist`.
        tau : float
            Surprise to aim at, in bits.
        eta : float
            Learning rate.
        """
        return _plain(cls, c.llama_sampler_init_mirostat_v2(as_seed(seed), as_real(tau, "tau"), as_real(eta, "eta")))

    @classmethod
    def grammar(cls, Vocab vocab not None, grammar: str, root: str = "root") -> Self:
        """Rule out every token that the grammar does not allow next.

        Parameters
        ----------
        vocab : Vocab
            It keeps the model alive.
        grammar : str
            The rules, in GBNF.
        root : str
            The rule to start from.

        Raises
        ------
        InvalidGrammar
            It cannot be parsed, a rule is missing, or one can begin with itself; the message names the line or rule.
        Unsupported
            The model has no tokenizer.

        Notes
        -----
        Releases the GIL.
        """
        return _grammar(cls, vocab, grammar, root, False, (), ())

    @classmethod
    def grammar_lazy_patterns(cls, Vocab vocab not None, grammar: str, root: str = "root",
                              trigger_patterns: Iterable[str] = (), trigger_tokens: Iterable[int] = ()) -> Self:
        """A grammar that allows everything until a trigger shows up in the accepted text.

        Parameters
        ----------
        vocab, grammar, root
            As for `grammar`.
        trigger_patterns : iterable of str
            Regular expressions (ECMAScript, as in ``std::regex``), searched in all text since the last `reset` at every
            token. The grammar starts at the first group that matched, or at the match.
        trigger_tokens : iterable of int
            Tokens that start it, themselves included.

        Raises
        ------
        InvalidArgument
            There is no trigger, a pattern is no regular expression, or a token is outside the vocabulary.
        InvalidGrammar, Unsupported
            As for `grammar`.

        Notes
        -----
        Releases the GIL.
        """
        patterns, tokens = list(trigger_patterns), list(trigger_tokens)
        if not patterns and not tokens:
            raise InvalidArgument("a lazy grammar without trigger_patterns or trigger_tokens would never start")
        return _grammar(cls, vocab, grammar, root, True, patterns, tokens)

    @classmethod
    def penalties(cls, n_vocab: int, penalty_last_n: int, penalty_repeat: float = 1.0, penalty_freq: float = 0.0,
                  penalty_present: float = 0.0) -> Self:
        """Make tokens that were accepted lately less likely.

        Parameters
        ----------
        n_vocab : int
            Tokens in the vocabulary; only a back end uses it.
        penalty_last_n : int
            How many of the last tokens count; 0 switches it off.
        penalty_repeat : float
            Divides positive and multiplies negative logits; above 0, 1 is off.
        penalty_freq, penalty_present : float
            Subtracted for every occurrence, and once for any.

        Notes
        -----
        It looks every candidate up: put top_k before it for large vocabularies.
        """
        cdef csample.SamplerHandle handle
        cdef core.Status status
        cdef float repeat = <float>as_number(penalty_repeat, "penalty_repeat", 0.0, FLT_MAX)
        if not 0.0 < repeat:
            raise InvalidArgument(f"penalty_repeat={repeat:g} must be above 0; 1 is off")
        status = csample.penalties_init(as_n_vocab(n_vocab), as_window(penalty_last_n, "penalty_last_n"), repeat,
                                  as_real(penalty_freq, "penalty_freq"), as_real(penalty_present, "penalty_present"), handle)
        return _made(cls, status, handle)

    @classmethod
    def dry(cls, Vocab vocab not None, dry_multiplier: float, dry_base: float = 1.75, dry_allowed_length: int = 2,
            dry_penalty_last_n: int = 4096, seq_breakers: Iterable[str] = ("\n", ":", '"', "*")) -> Self:
        """DRY: punish tokens that would go on with a sequence that has occurred before.

        The punishment is ``dry_multiplier * dry_base ** (length - dry_allowed_length)`` for a repetition of `length`.

        Parameters
        ----------
        vocab : Vocab
            It keeps the model alive.
        dry_multiplier : float
            0 switches it off.
        dry_base : float
            1 or more.
        dry_allowed_length : int
            Repetitions up to this long are free.
        dry_penalty_last_n : int
            How many of the last tokens are searched; 0 switches it off.
        seq_breakers : iterable of str
            Texts that no repetition reaches across, each of 1 to 40 bytes.

        Notes
        -----
        Releases the GIL; with breakers it looks at every token of the vocabulary.
        """
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
        return _made(cls, status, handle)

    @classmethod
    def adaptive_p(cls, target: float, decay: float = 0.9, seed: int | None = None) -> Self:
        """Pick tokens near a probability of `target`, adapted to what was picked before.

        Parameters
        ----------
        target : float
            Up to 1; below 0 it just draws from the distribution.
        decay : float
            How slowly it forgets, from 0 to 0.99.
        seed : int, optional
            As for `dist`.
        """
        return _plain(cls, c.llama_sampler_init_adaptive_p(
            <float>as_number(target, "target", -FLT_MAX, 1.0), <float>as_number(decay, "decay", 0.0, 0.99), as_seed(seed)))

    @classmethod
    def logit_bias(cls, n_vocab: int, logit_bias: Mapping[int, float]) -> Self:
        """Add to the logits of single tokens; ``-inf`` forbids one.

        Parameters
        ----------
        n_vocab : int
            Tokens in the vocabulary.
        logit_bias : mapping of int to float
            Bias by token.

        Raises
        ------
        InvalidArgument
            A token is outside the vocabulary, or a bias is NaN or ``+inf``.
        """
        cdef vector[c.llama_logit_bias] biases
        cdef c.llama_logit_bias entry
        cdef int size = as_n_vocab(n_vocab)
        for token, bias in logit_bias.items():
            entry.token = <int>as_integer(token, "token", 0, size - 1)
            entry.bias = <float>as_number(bias, f"the bias of token {entry.token}", -INFINITY, FLT_MAX)
            biases.push_back(entry)
        return _plain(cls, c.llama_sampler_init_logit_bias(size, <int>biases.size(), biases.data()))

    @classmethod
    def infill(cls, Vocab vocab not None) -> Self:
        """For filling in the middle, after top_k and top_p: ends the text if that is likely, and merges candidates of
        which one begins like the other.

        Raises
        ------
        Unsupported
            The model has no tokenizer, or neither an EOT nor an EOS token.
        """
        cdef core.ModelHandle model = vocab.handle
        cdef csample.SamplerHandle handle
        cdef core.Status status
        with nogil:
            status = csample.infill_init(model, handle)
        return _made(cls, status, handle)


cdef object _grammar(type cls, Vocab vocab, object grammar, object root, bint lazy, object patterns, object tokens):
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
    return _made(cls, status, handle)
