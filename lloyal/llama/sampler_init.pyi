# Written by tools/stubs.py from sampler_init.pyx.
"""The constructors of samplers: every ``llama_sampler_init_*`` of llama.h under its own name."""

from collections.abc import Iterable, Mapping
from lloyal.llama.vocab import Vocab
from typing import Self

__all__ = ["SamplerInit"]

class SamplerInit:
    """The handle of a sampler and what makes it. Not for direct use: see `Sampler`."""

    def __init__(self) -> None: ...
    def close(self) -> None:
        """Drop this object's hold on the sampler. A call in another thread, or a context that runs it, keeps it."""
    @property
    def closed(self) -> bool: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc_info: object) -> None: ...
    @classmethod
    def greedy(cls) -> Self:
        """Pick the most probable token, the first of equals."""
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
    @classmethod
    def llama_dist(cls, seed: int | None = None) -> Self:
        """Draw from the distribution with llama.cpp's own sampler (``llama_sampler_init_dist``).

        Its state is the 2.5 kB of a Mersenne twister, in the layout of the C++ library. It can run on a back end.
        """
    @classmethod
    def top_k(cls, k: int) -> Self:
        """Keep the k most probable; 0 or less keeps all."""
    @classmethod
    def top_p(cls, p: float, min_keep: int = 1) -> Self:
        """Nucleus sampling: keep the most probable that together reach `p`, and at least `min_keep`; 1 keeps all.

        On a back end `min_keep` does not count.
        """
    @classmethod
    def min_p(cls, p: float, min_keep: int = 1) -> Self:
        """Keep tokens at least `p` times as probable as the best one, and at least `min_keep`; 0 keeps all.

        On a back end `min_keep` does not count.
        """
    @classmethod
    def typical(cls, p: float, min_keep: int = 1) -> Self:
        """Locally typical sampling: keep the tokens whose surprise is nearest to the entropy, together above `p`.

        Put it before samplers that rule tokens out (grammar, top_n_sigma): with a probability of zero among the
        candidates the entropy is NaN, and llama.cpp then keeps the most probable instead.
        """
    @classmethod
    def temp(cls, t: float) -> Self:
        """Divide the logits by `t`; 0 or less keeps only the best."""
    @classmethod
    def temp_ext(cls, t: float, delta: float, exponent: float) -> Self:
        """Dynamic temperature: from ``t - delta`` where the model is sure to ``t + delta`` where it is not.

        The temperature grows with the entropy of the candidates, as a share of the largest possible, to the power of
        `exponent` (0 or more). A `delta` of 0 or less is a plain `temp`.
        """
    @classmethod
    def xtc(cls, p: float, t: float, min_keep: int = 1, seed: int | None = None) -> Self:
        """Exclude top choices: with probability `p` drop all tokens of probability `t` and more but the last of them.

        `p` of 0 or `t` above 0.5 switches it off.
        """
    @classmethod
    def top_n_sigma(cls, n: float) -> Self:
        """Keep logits within `n` standard deviations of the largest one; 0 or less keeps all."""
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
    @classmethod
    def grammar(cls, vocab: Vocab, grammar: str, root: str = "root") -> Self:
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
    @classmethod
    def grammar_lazy_patterns(cls, vocab: Vocab, grammar: str, root: str = "root", trigger_patterns: Iterable[str] = (), trigger_tokens: Iterable[int] = ()) -> Self:
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
    @classmethod
    def penalties(cls, n_vocab: int, penalty_last_n: int, penalty_repeat: float = 1.0, penalty_freq: float = 0.0, penalty_present: float = 0.0) -> Self:
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
    @classmethod
    def dry(cls, vocab: Vocab, dry_multiplier: float, dry_base: float = 1.75, dry_allowed_length: int = 2, dry_penalty_last_n: int = 4096, seq_breakers: Iterable[str] = ("\n", ":", '"', "*")) -> Self:
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
    @classmethod
    def infill(cls, vocab: Vocab) -> Self:
        """For filling in the middle, after top_k and top_p: ends the text if that is likely, and merges candidates of
        which one begins like the other.

        Raises
        ------
        Unsupported
            The model has no tokenizer, or neither an EOT nor an EOS token.
        """
