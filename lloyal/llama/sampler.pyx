# cython: language_level=3
"""Samplers: what turns a row of logits into a token.

Each constructor is the ``llama_sampler_init_*`` function of the same name. `Sampler.chain` puts several behind each
other; one of them, usually the last, must pick (greedy, dist, keyed, mirostat, mirostat_v2, adaptive_p).
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport INT32_MAX, int32_t, uint8_t, uint32_t
from libcpp cimport bool as cbool
from libcpp.string cimport string
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core
cimport lloyal._cpp.sample as csample
cimport lloyal.libllama.llama as c
from lloyal.llama.args cimport as_int32
from lloyal.llama.base cimport Closing, ContextBase
cimport lloyal.llama.sampler_init as init
from lloyal.llama.status cimport check
from lloyal.llama.vocab cimport Vocab

from lloyal.errors import Closed, InvalidArgument
from lloyal.llama.candidates import Candidates

__all__ = ["Sampler"]


cdef object _made(type cls, csample.SamplerHandle handle):
    cdef Sampler sampler = cls.__new__(cls)
    sampler.handle = handle
    return sampler


cdef Sampler _wrap(csample.SamplerHandle& handle):
    cdef Sampler sampler = Sampler.__new__(Sampler)
    sampler.handle = handle
    return sampler


cdef object _array(str name, values, dtype):
    import numpy

    try:
        return numpy.ascontiguousarray(values, dtype=dtype)
    except OverflowError as error:
        raise InvalidArgument(f"{name}: {error}") from None


cdef class Sampler(Closing):
    """A sampler or a chain of them (``llama_sampler``). Made by its class methods.

    A sampler that reads a vocabulary keeps the model alive. One caller at a time: a second thread inside gets `Busy`.
    """

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

    # Constructors (sampler_init.pyx)

    @classmethod
    def greedy(cls) -> Self:
        """Pick the most probable token, the first of equals."""
        return _made(cls, init.greedy())

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
        return _made(cls, init.dist(seed))

    @classmethod
    def keyed(cls, seed: int | None = None, position: int = 0) -> Self:
        """Draw from the distribution by noise that depends on seed, position and token alone. This one is ours.

        The largest of log-probability and Gumbel noise (Philox4x64-10, Salmon et al. 2011; the bit generator of NumPy's
        ``Philox``, with the seed as its key and token and position as its counter). Picking moves nothing: what is
        picked again at a position is the same, whatever was drawn before. Every token accepted moves it on by one.

        Parameters
        ----------
        seed : int, optional
            As for `dist`.
        position : int
            Of the token that it picks first; `reset` goes to 0.
        """
        return _made(cls, init.keyed(seed, position))

    @classmethod
    def llama_dist(cls, seed: int | None = None) -> Self:
        """Draw from the distribution with llama.cpp's own sampler (``llama_sampler_init_dist``).

        Its state is the 2.5 kB of a Mersenne twister, in the layout of the C++ library. It can run on a back end.
        """
        return _made(cls, init.llama_dist(seed))

    @classmethod
    def top_k(cls, k: int) -> Self:
        """Keep the k most probable; 0 or less keeps all."""
        return _made(cls, init.top_k(k))

    @classmethod
    def top_p(cls, p: float, min_keep: int = 1) -> Self:
        """Nucleus sampling: keep the most probable that together reach `p`, and at least `min_keep`; 1 keeps all.

        On a back end `min_keep` does not count.
        """
        return _made(cls, init.top_p(p, min_keep))

    @classmethod
    def min_p(cls, p: float, min_keep: int = 1) -> Self:
        """Keep tokens at least `p` times as probable as the best one, and at least `min_keep`; 0 keeps all.

        On a back end `min_keep` does not count.
        """
        return _made(cls, init.min_p(p, min_keep))

    @classmethod
    def typical(cls, p: float, min_keep: int = 1) -> Self:
        """Locally typical sampling: keep the tokens whose surprise is nearest to the entropy, together above `p`.

        Put it before samplers that rule tokens out (grammar, top_n_sigma): with a probability of zero among the
        candidates the entropy is NaN, and llama.cpp then keeps the most probable instead.
        """
        return _made(cls, init.typical(p, min_keep))

    @classmethod
    def temp(cls, t: float) -> Self:
        """Divide the logits by `t`; 0 or less keeps only the best."""
        return _made(cls, init.temp(t))

    @classmethod
    def temp_ext(cls, t: float, delta: float, exponent: float) -> Self:
        """Dynamic temperature: from ``t - delta`` where the model is sure to ``t + delta`` where it is not.

        The temperature grows with the entropy of the candidates, as a share of the largest possible, to the power of
        `exponent` (0 or more). A `delta` of 0 or less is a plain `temp`.
        """
        return _made(cls, init.temp_ext(t, delta, exponent))

    @classmethod
    def xtc(cls, p: float, t: float, min_keep: int = 1, seed: int | None = None) -> Self:
        """Exclude top choices: with probability `p` drop all tokens of probability `t` and more but the last of them.

        `p` of 0 or `t` above 0.5 switches it off.
        """
        return _made(cls, init.xtc(p, t, min_keep, seed))

    @classmethod
    def top_n_sigma(cls, n: float) -> Self:
        """Keep logits within `n` standard deviations of the largest one; 0 or less keeps all."""
        return _made(cls, init.top_n_sigma(n))

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
        return _made(cls, init.mirostat(n_vocab, seed, tau, eta, m))

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
        return _made(cls, init.mirostat_v2(seed, tau, eta))

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
        return _made(cls, init.grammar(vocab, grammar, root))

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
        return _made(cls, init.grammar_lazy_patterns(vocab, grammar, root, trigger_patterns, trigger_tokens))

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
        return _made(cls, init.penalties(n_vocab, penalty_last_n, penalty_repeat, penalty_freq, penalty_present))

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
        return _made(cls, init.dry(vocab, dry_multiplier, dry_base, dry_allowed_length, dry_penalty_last_n, seq_breakers))

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
        return _made(cls, init.adaptive_p(target, decay, seed))

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
        return _made(cls, init.logit_bias(n_vocab, logit_bias))

    @classmethod
    def infill(cls, Vocab vocab not None) -> Self:
        """For filling in the middle, after top_k and top_p: ends the text if that is likely, and merges candidates of
        which one begins like the other.

        Raises
        ------
        Unsupported
            The model has no tokenizer, or neither an EOT nor an EOS token.
        """
        return _made(cls, init.infill(vocab))

    # Chains

    @staticmethod
    def chain(*samplers: Sampler, no_perf: bool = True) -> Sampler:
        """Samplers applied one after another (``llama_sampler_chain_init``). The chain works on clones.

        Parameters
        ----------
        *samplers : Sampler
            They stay yours. More can be added by `chain_add`.
        no_perf : bool
            Do not measure the time spent in it; see `perf`.
        """
        cdef csample.SamplerHandle handle
        cdef core.Status status = csample.chain_init(no_perf, handle)
        check(status)
        chain = _wrap(handle)
        for sampler in samplers:
            chain.chain_add(sampler)
        return chain

    def chain_add(self, Sampler sampler not None) -> None:
        """Put a clone of `sampler` behind the others of this chain (``llama_sampler_chain_add``).

        Raises
        ------
        InvalidArgument
            This is no chain, or a context runs it on its back end.
        """
        cdef csample.SamplerHandle handle
        cdef Sampler link = sampler.clone()
        cdef core.Status status
        handle = self.pin()
        status = csample.chain_add(handle, link.handle)
        check(status)

    def chain_n(self) -> int:
        """How many samplers the chain has (``llama_sampler_chain_n``). Raises `InvalidArgument` if it is no chain."""
        cdef csample.SamplerHandle handle
        cdef int32_t n = 0
        cdef core.Status status
        handle = self.pin()
        status = csample.chain_n(handle, n)
        check(status)
        return n

    def chain_get(self, i: int) -> Sampler:
        """A clone of the `i`-th sampler of the chain, from 0 (``llama_sampler_chain_get``)."""
        return self._link(i, False)

    def chain_remove(self, i: int) -> Sampler:
        """Take the `i`-th sampler out of the chain and return it (``llama_sampler_chain_remove``)."""
        return self._link(i, True)

    cdef Sampler _link(self, object i, bint remove):
        cdef csample.SamplerHandle handle
        cdef csample.SamplerHandle link
        cdef int32_t index = as_int32(i, "i")
        cdef core.Status status
        handle = self.pin()
        if remove:
            status = csample.chain_remove(handle, index, link)
        else:
            status = csample.chain_get(handle, index, link)
        check(status)
        return _wrap(link)

    def sample(self, ContextBase ctx not None, index: int = -1) -> int:
        """Pick a token from an output of the last decode and accept it (``llama_sampler_sample``).

        Parameters
        ----------
        ctx : Context
        index : int
            Index in the batch; negative counts back from the last entry with an output.

        Returns
        -------
        int
            The token.

        Raises
        ------
        NoLogits
            Nothing was decoded, or that entry has no output.
        InvalidArgument
            The chain picks no token, every token is ruled out, or it was made for a smaller vocabulary.
        DecodeFailed
            The logits hold NaN.

        Notes
        -----
        Releases the GIL.
        """
        cdef core.ContextHandle context
        cdef csample.SamplerHandle handle
        cdef core.Status status
        cdef c.llama_token token = -1
        cdef int32_t i = as_int32(index, "index")
        handle = self.pin()
        context = ctx.pin()
        with nogil:
            status = csample.sample(handle, context, i, token)
        check(status)
        return token

    def apply(self, logits: ArrayLike, ids: ArrayLike | None = None) -> Candidates:
        """Let the sampler work on candidates (``llama_sampler_apply``). Nothing is accepted.

        Parameters
        ----------
        logits : array_like of float32, shape (n,)
            Finite, or ``-inf`` for candidates that are ruled out.
        ids : array_like of int32, shape (n,), optional
            Their tokens; without them candidate `i` is token `i`.

        Returns
        -------
        Candidates
            What is left of them, in arrays of their own.

        Notes
        -----
        Random generators move on as in `sample`. Releases the GIL.
        """
        import numpy

        cdef csample.SamplerHandle handle
        cdef core.Status status
        cdef vector[c.llama_token_data] data
        cdef c.llama_token_data_array array
        cdef const float[::1] row = _array("logits", logits, numpy.float32)
        cdef const int32_t[::1] tokens = None
        cdef float[::1] out_logits
        cdef float[::1] out_probs
        cdef int32_t[::1] out_ids
        cdef size_t i
        if ids is not None:
            tokens = _array("ids", ids, numpy.int32)
            if tokens.shape[0] != row.shape[0]:
                raise InvalidArgument(f"{tokens.shape[0]} ids for {row.shape[0]} logits")
        if row.shape[0] > INT32_MAX:
            raise InvalidArgument(f"{row.shape[0]} candidates are more than there are token ids")
        data.resize(row.shape[0])
        for i in range(data.size()):
            data[i].id = <c.llama_token>i if tokens is None else tokens[i]
            data[i].logit = row[i]
            data[i].p = 0.0
        array.data = data.data()
        array.size = data.size()
        array.selected = -1
        array.sorted = False
        handle = self.pin()
        with nogil:
            status = csample.sampler_apply(handle, array)
        check(status)
        result = Candidates(
            numpy.empty(array.size, numpy.int32), numpy.empty(array.size, numpy.float32),
            numpy.empty(array.size, numpy.float32), array.selected if array.selected >= 0 else None, array.sorted)
        out_ids, out_logits, out_probs = result.ids, result.logits, result.probs
        for i in range(array.size):
            out_ids[i] = array.data[i].id
            out_logits[i] = array.data[i].logit
            out_probs[i] = array.data[i].p
        return result

    def accept(self, token: int) -> None:
        """Tell penalties, grammars and the like that `token` was chosen (``llama_sampler_accept``).

        Raises
        ------
        InvalidArgument
            The token is negative, outside the vocabulary, or the grammar does not allow it here. Nothing was changed.

        Notes
        -----
        Releases the GIL.
        """
        cdef csample.SamplerHandle handle
        cdef core.Status status
        cdef c.llama_token accepted = as_int32(token, "token")
        handle = self.pin()
        with nogil:
            status = csample.sampler_accept(handle, accepted)
        check(status)

    def reset(self) -> None:
        """Forget what was accepted; random generators start over, from a new seed where none was given."""
        cdef csample.SamplerHandle handle
        cdef core.Status status
        handle = self.pin()
        with nogil:
            status = csample.sampler_reset(handle)
        check(status)

    def clone(self) -> Sampler:
        """A sampler that goes on exactly as this one would (``llama_sampler_clone``). Releases the GIL."""
        cdef csample.SamplerHandle handle
        cdef csample.SamplerHandle copy
        cdef core.Status status
        handle = self.pin()
        with nogil:
            status = csample.sampler_clone(handle, copy)
        check(status)
        return _wrap(copy)

    def copy(self, Sampler dst not None) -> None:
        """Copy this sampler's state into `dst` (``llama_sampler_copy``), also while a back end runs it.

        Parameters
        ----------
        dst : Sampler
            One with the same samplers and parameters; only seeds may differ.
        """
        cdef csample.SamplerHandle handle
        cdef csample.SamplerHandle target
        cdef core.Status status
        if dst is self:
            return
        handle = self.pin()
        target = dst.pin()
        with nogil:
            status = csample.sampler_copy(handle, target)
        check(status)

    def state(self) -> bytes:
        """Everything that decides what it picks next: random generators, penalty windows, mirostat's mu, the position
        in a grammar, of every sampler in the chain.

        The size depends on what the samplers remember, not on how much they have seen; `dist` takes 36 bytes.
        """
        cdef csample.SamplerHandle handle
        cdef core.Status status
        cdef vector[uint8_t] data
        handle = self.pin()
        with nogil:
            status = csample.sampler_get_state(handle, data)
        check(status)
        return PyBytes_FromStringAndSize(<const char*>data.data(), data.size())

    def set_state(self, data: BufferLike) -> None:
        """Go on from a state that `state` gave, of a sampler with the same samplers and parameters; seeds may differ.

        Parameters
        ----------
        data : bytes-like

        Raises
        ------
        StateMismatch
            The state is of other samplers or parameters, or damaged. Nothing was changed.

        Notes
        -----
        Releases the GIL.
        """
        cdef csample.SamplerHandle handle
        cdef core.Status status
        cdef const uint8_t[::1] view = data
        cdef const uint8_t* start = NULL
        cdef size_t size = view.shape[0]
        if size > 0:
            start = &view[0]
        handle = self.pin()
        with nogil:
            status = csample.sampler_set_state(handle, start, size)
        check(status)

    def perf(self) -> dict[str, float]:
        """Time in the chain in milliseconds, and tokens accepted (``llama_perf_sampler``; time needs no_perf=False)."""
        return _perf(self, False)

    def perf_reset(self) -> None:
        """Start `perf` over (``llama_perf_sampler_reset``)."""
        _perf(self, True)

    @property
    def name(self) -> str:
        """llama.cpp's name for it: ``"chain"``, ``"top-k"``; with ``?`` in front where its parameters switch it off,
        with ``+`` or ``-`` while a back end runs it or cannot.
        """
        cdef csample.SamplerHandle handle
        cdef core.Status status
        cdef string text
        handle = self.pin()
        status = csample.sampler_name(handle, text)
        check(status)
        return text.decode()

    @property
    def seed(self) -> int | None:
        """The seed in use, in a chain that of the last sampler that has one; or None."""
        cdef csample.SamplerHandle handle
        cdef uint32_t seed = 0
        cdef cbool found = False
        cdef core.Status status
        handle = self.pin()
        status = csample.sampler_seed_used(handle, found, seed)
        check(status)
        return seed if found else None

    def __repr__(self):
        if self.closed:
            return "<Sampler, closed>"
        try:
            return f"<Sampler {', '.join(self.chain_get(i).name for i in range(self.chain_n()))}>"
        except InvalidArgument:
            return f"<Sampler {self.name}>"


cdef object _perf(Sampler sampler, bint reset):
    cdef csample.SamplerHandle handle
    cdef core.Status status
    cdef c.llama_perf_sampler_data data
    handle = sampler.pin()
    status = csample.chain_perf(handle, reset, data)
    check(status)
    return {"t_sample_ms": data.t_sample_ms, "n_sample": data.n_sample}
