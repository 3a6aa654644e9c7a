"""How the next token is picked, as a value: what users write down, and the chain of samplers it stands for."""

from __future__ import annotations

import dataclasses
import numbers
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from lloyal.errors import InvalidArgument
from lloyal.llama import LLAMA_DEFAULT_SEED, Context, Sampler, Vocab
from lloyal.llama.params import TAKEN_BY, check_names

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LogitsProcessor", "ProcessedSampler", "Sampling", "SupportsSample", "check_sampling"]

#: ``processor(tokens, logits)`` before a token is picked: the tokens so far with the prompt, and float32 logits of
#: shape ``(n_vocab,)``, a copy to change in place; or it returns others of that shape.
LogitsProcessor = Callable[[Sequence[int], "NDArray[np.float32]"], "NDArray[np.float32] | None"]

# The largest number of 32 bits, in which llama.cpp computes.
FLOAT_MAX = 3.4028234e38


class SupportsSample(Protocol):
    """What `lloyal.generate` needs of whatever picks its tokens; a `Sampler` has it, and so may a class of yours."""

    def sample(self, ctx: Context, index: int = -1, /) -> int:
        """The token that comes next.

        Called once for every token, after its logits were computed: ``ctx.logits(index)`` has them. What it returns is
        decoded next, or ends the text if it is an end-of-generation token. What it raises comes out of the generation.
        """
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are picked: a value, from which `build` makes a sampler.

    For what it does not have (mirostat, adaptive_p, another order) chain the samplers of `lloyal.llama.Sampler`.

    Attributes
    ----------
    temperature : float
        Sharpness of the distribution: 1 is the model's own, 0 always picks the most probable token, and then only
        the biases, the penalties and a grammar count besides.
    top_k : int
        Draw from the k most probable tokens only; 0 is off.
    top_p : float
        Draw from the most probable tokens that together reach this probability; 1 is off.
    min_p : float
        Draw from tokens at least this many times as probable as the best one; 0 is off.
    typical_p : float
        Draw from the tokens whose surprise is nearest to the entropy, together this probable; 1 is off.
    top_n_sigma : float
        Draw from tokens whose logits are within so many standard deviations of the best one's; 0 is off.
    xtc_probability, xtc_threshold : float
        With this probability drop all tokens at least as probable as the threshold but the last of them; 0 is off.
    repeat_penalty : float
        Divides the logits of recent tokens (multiplies negative ones); 1 is off.
    frequency_penalty, presence_penalty : float
        Taken from the logits of recent tokens for each time they occurred, and once; 0 is off.
    repeat_last_n : int
        How many tokens are recent; the prompt counts.
    dry_multiplier, dry_base, dry_allowed_length : float, float, int
        Punish tokens that go on with a repetition longer than the allowed length, by
        ``dry_multiplier * dry_base ** (length - dry_allowed_length)``; a multiplier of 0 is off.
    logit_bias : mapping of int to float
        Added to the logits of single tokens; ``-inf`` forbids one.
    logits_processors : sequence of callable
        Called before each token, in turn, as ``processor(tokens, logits)``: the tokens so far with the prompt, and a
        float32 array of shape ``(n_vocab,)`` to change in place, or to return another for. Slow beside the rest: every
        row of logits goes through Python.
    seed : int, optional
        Start of the random generator, from 0 to 2**32 - 2; None draws one at every `build`.
    noise : {"stream", "keyed"}
        Where chance comes from. ``"stream"``: from a generator that goes on with every draw. ``"keyed"``: from seed and
        position alone (`Sampler.keyed`), so that a draw depends neither on those before it nor on who guessed it; texts
        of one seed draw alike at one position. XTC keeps a stream of its own.

    Raises
    ------
    UnknownParameter
        A keyword is no field; the message names the nearest one.
    InvalidArgument
        A value is out of range.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_last_n: int = 64
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict, hash=False)
    logits_processors: Sequence[LogitsProcessor] = ()
    seed: int | None = None
    noise: Literal["stream", "keyed"] = "stream"

    def __new__(cls, **keywords: Any) -> Self:
        check_names(cls, keywords)
        return object.__new__(cls)

    def __post_init__(self) -> None:
        _check_integer("top_k", self.top_k, 0)
        _check_integer("repeat_last_n", self.repeat_last_n, 0, 2**24)
        _check_integer("dry_allowed_length", self.dry_allowed_length, 0)
        if self.seed is not None:
            _check_integer("seed", self.seed, 0, LLAMA_DEFAULT_SEED - 1)
        if self.noise not in ("stream", "keyed"):
            raise InvalidArgument(f"noise={self.noise!r} must be 'stream' or 'keyed'")
        for name in ("temperature", "top_n_sigma", "dry_multiplier"):
            _check_number(name, getattr(self, name), 0.0)
        for name in ("top_p", "min_p", "typical_p", "xtc_probability", "xtc_threshold"):
            _check_number(name, getattr(self, name), 0.0, 1.0)
        for name in ("frequency_penalty", "presence_penalty"):
            _check_number(name, getattr(self, name), -FLOAT_MAX)
        _check_number("repeat_penalty", self.repeat_penalty, 0.0)
        if self.repeat_penalty == 0:
            raise InvalidArgument(f"repeat_penalty={self.repeat_penalty!r} must be above 0; 1 is off")
        _check_number("dry_base", self.dry_base, 1.0)
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))
        processors = () if callable(self.logits_processors) else tuple(self.logits_processors)
        if callable(self.logits_processors) or not all(map(callable, processors)):
            raise InvalidArgument(
                f"logits_processors={self.logits_processors!r} must be a list of functions of (tokens, logits)"
            )
        object.__setattr__(self, "logits_processors", processors)

    def build(
        self,
        vocab: Vocab,
        *,
        grammar: str | Sampler | None = None,
        history: Sequence[int] = (),
        position: int | None = None,
    ) -> Sampler:
        """Make the chain of samplers, in llama.cpp's usual order. `logits_processors` are no part of it.

        Parameters
        ----------
        vocab : Vocab
            The vocabulary of the model that is sampled from.
        grammar : str or Sampler, optional
            Rules in GBNF that the text must follow, or the sampler that knows them.
        history : sequence of int
            Tokens that came before, for the penalties: the prompt.
        position : int, optional
            Of the first token it picks, for keyed noise; without it that behind `history`.

        Returns
        -------
        Sampler
            A new one, yours. Its `seed` is the seed in use.

        Raises
        ------
        InvalidGrammar
            The grammar cannot be parsed.
        InvalidArgument
            A token of `logit_bias` or `history` is outside the vocabulary.
        """
        stages = [*self._constraints(vocab, grammar), *self._penalties(vocab, history)]
        if self.temperature == 0:
            return Sampler.chain(*stages, Sampler.greedy())
        seed = secrets.randbelow(LLAMA_DEFAULT_SEED) if self.seed is None else self.seed
        keyed = self.noise == "keyed"
        draw = Sampler.keyed(seed, len(history) if position is None else position) if keyed else Sampler.dist(seed)
        return Sampler.chain(*stages, *self._filters(seed), Sampler.temp(self.temperature), draw)

    @property
    def n_recent(self) -> int | None:
        """How many of the tokens before it looks back on: 0 for none, None for all."""
        if self.dry_multiplier:
            return None
        on = (self.repeat_penalty, self.frequency_penalty, self.presence_penalty) != (1, 0, 0)
        return self.repeat_last_n if on else 0

    def picker(
        self,
        vocab: Vocab,
        *,
        grammar: str | Sampler | None = None,
        history: Sequence[int] = (),
        position: int | None = None,
    ) -> Sampler | ProcessedSampler:
        """What `build` makes, behind the `logits_processors` if there are any. Arguments and errors are its."""
        chain = self.build(vocab, grammar=grammar, history=history, position=position)
        return ProcessedSampler(chain, self.logits_processors, history) if self.logits_processors else chain

    def _constraints(self, vocab: Vocab, grammar: str | Sampler | None) -> list[Sampler]:
        stages = []
        if self.logit_bias:
            stages.append(Sampler.logit_bias(len(vocab), self.logit_bias))
        if grammar is not None:
            stages.append(Sampler.grammar(vocab, grammar) if isinstance(grammar, str) else grammar)
        return stages

    def _penalties(self, vocab: Vocab, history: Sequence[int]) -> list[Sampler]:
        stages = []
        if self.repeat_last_n and (self.repeat_penalty, self.frequency_penalty, self.presence_penalty) != (1, 0, 0):
            stages.append(
                Sampler.penalties(
                    len(vocab), self.repeat_last_n, self.repeat_penalty, self.frequency_penalty, self.presence_penalty
                )
            )
        if self.dry_multiplier:
            stages.append(Sampler.dry(vocab, self.dry_multiplier, self.dry_base, self.dry_allowed_length))
        for stage in stages:
            for token in history:
                stage.accept(token)
        return stages

    def _filters(self, seed: int) -> list[Sampler]:
        stages = []
        if self.top_n_sigma:
            stages.append(Sampler.top_n_sigma(self.top_n_sigma))
        if self.top_k:
            stages.append(Sampler.top_k(self.top_k))
        if self.typical_p < 1:
            stages.append(Sampler.typical(self.typical_p))
        if self.top_p < 1:
            stages.append(Sampler.top_p(self.top_p))
        if self.min_p:
            stages.append(Sampler.min_p(self.min_p))
        if self.xtc_probability:
            stages.append(Sampler.xtc(self.xtc_probability, self.xtc_threshold, seed=seed))
        return stages


class ProcessedSampler:
    """A chain of samplers that sees logits only after some functions have changed them.

    Parameters
    ----------
    sampler : Sampler
        It has to pick; it stays yours, and goes on where it stands.
    processors : sequence of callable
    history : sequence of int
        The tokens so far, which the functions are told.
    """

    def __init__(self, sampler: Sampler, processors: Sequence[LogitsProcessor], history: Sequence[int] = ()) -> None:
        self.sampler = sampler
        self.processors = tuple(processors)
        self.tokens = list(history)

    @property
    def seed(self) -> int | None:
        """The seed in use; see `Sampler.seed`."""
        return self.sampler.seed

    def sample(self, ctx: Context, index: int = -1) -> int:
        """Pick a token from an output of the last decode and accept it.

        Raises
        ------
        InvalidArgument
            A processor returned something of another shape, or everything was ruled out.
        NoLogits
            As `Sampler.sample`.
        """
        logits = ctx.logits(index, copy=True)
        shape = logits.shape
        for processor in self.processors:
            changed = processor(self.tokens, logits)
            logits = logits if changed is None else changed
            if getattr(logits, "shape", None) != shape:
                raise InvalidArgument(f"{processor!r} must return logits of shape {shape}, or None")
        token = self.sampler.apply(logits).token
        if token is None:
            raise InvalidArgument("the chain picks no token: end it with one that does, such as Sampler.greedy()")
        self.sampler.accept(token)
        self.tokens.append(token)
        return token


def check_sampling(sampling: object) -> None:
    """`TypeError` unless it is a `Sampling`."""
    if not isinstance(sampling, Sampling):
        raise TypeError(f"sampling={sampling!r} must be a lloyal.Sampling, such as Sampling(temperature=0.8)")


def _check_integer(name: str, value: Any, low: int, high: int = 2**31 - 1) -> None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or not low <= int(value) <= high:
        raise InvalidArgument(f"{name}={value!r} must be an integer from {low} to {high}")


def _check_number(name: str, value: Any, low: float, high: float = FLOAT_MAX) -> None:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    # The comparison also refuses NaN, infinities and integers beyond any float.
    if not number or not low <= value <= high:
        bounds = "" if low == -FLOAT_MAX else f" of at least {low}" if high == FLOAT_MAX else f" from {low} to {high}"
        raise InvalidArgument(f"{name}={value!r} must be a number{bounds}")


TAKEN_BY |= {field.name: "a parameter of Sampling" for field in dataclasses.fields(Sampling)}
