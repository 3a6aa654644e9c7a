# Written by tools/stubs.py from sampler.pyx.
"""Samplers: what turns a row of logits into a token.

Each constructor is the ``llama_sampler_init_*`` function of the same name. `Sampler.chain` puts several behind each
other; one of them, usually the last, must pick (greedy, dist, keyed, mirostat, mirostat_v2, adaptive_p).
"""

from collections.abc import Iterable, Mapping
from lloyal.llama.base import Closing, ContextBase
from lloyal.llama.candidates import Candidates
from lloyal.llama.vocab import Vocab
from numpy.typing import ArrayLike, NDArray
from typing import Any, Self
from typing_extensions import Buffer

BufferLike = Buffer | NDArray[Any]

__all__ = ["Sampler"]

class Sampler(Closing):
    """A sampler or a chain of them (``llama_sampler``). Made by its class methods.

    A sampler that reads a vocabulary keeps the model alive. One caller at a time: a second thread inside gets `Busy`.
    """

    def __init__(self) -> None: ...
    def close(self) -> None:
        """Drop this object's hold on the sampler. A call in another thread, or a context that runs it, keeps it."""
    @property
    def closed(self) -> bool: ...
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
    def chain_add(self, sampler: Sampler) -> None:
        """Put a clone of `sampler` behind the others of this chain (``llama_sampler_chain_add``).

        Raises
        ------
        InvalidArgument
            This is no chain, or a context runs it on its back end.
        """
    def chain_n(self) -> int:
        """How many samplers the chain has (``llama_sampler_chain_n``). Raises `InvalidArgument` if it is no chain."""
    def chain_get(self, i: int) -> Sampler:
        """A clone of the `i`-th sampler of the chain, from 0 (``llama_sampler_chain_get``)."""
    def chain_remove(self, i: int) -> Sampler:
        """Take the `i`-th sampler out of the chain and return it (``llama_sampler_chain_remove``)."""
    def sample(self, ctx: ContextBase, index: int = -1) -> int:
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
    def reset(self) -> None:
        """Forget what was accepted; random generators start over, from a new seed where none was given."""
    def clone(self) -> Sampler:
        """A sampler that goes on exactly as this one would (``llama_sampler_clone``). Releases the GIL."""
    def copy(self, dst: Sampler) -> None:
        """Copy this sampler's state into `dst` (``llama_sampler_copy``), also while a back end runs it.

        Parameters
        ----------
        dst : Sampler
            One with the same samplers and parameters; only seeds may differ.
        """
    def state(self) -> bytes:
        """Everything that decides what it picks next: random generators, penalty windows, mirostat's mu, the position
        in a grammar, of every sampler in the chain.

        The size depends on what the samplers remember, not on how much they have seen; `dist` takes 36 bytes.
        """
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
    def perf(self) -> dict[str, float]:
        """Time in the chain in milliseconds, and tokens accepted (``llama_perf_sampler``; time needs no_perf=False)."""
    def perf_reset(self) -> None:
        """Start `perf` over (``llama_perf_sampler_reset``)."""
    @property
    def name(self) -> str:
        """llama.cpp's name for it: ``"chain"``, ``"top-k"``; with ``?`` in front where its parameters switch it off,
        with ``+`` or ``-`` while a back end runs it or cannot.
        """
    @property
    def seed(self) -> int | None:
        """The seed in use, in a chain that of the last sampler that has one; or None."""
    def __repr__(self) -> str: ...
