"""Generating from a prompt: tokens as they are picked, or text as it becomes certain."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Never, cast, overload

from lloyal import undecoded
from lloyal.decoding import Progress, decode_tokens, next_position, next_tokens
from lloyal.errors import InvalidArgument
from lloyal.generation_many import Generations
from lloyal.llama import Batch, Context, Sampler
from lloyal.llama.params import unknown_parameter
from lloyal.prompt import as_chat, check_count, check_max_tokens, one_grammar
from lloyal.sampling import Sampling, SupportsSample
from lloyal.scheduler import StopReason as StopReason
from lloyal.speculative import Drafter, Speculator
from lloyal.tokenization import StopStrings, StreamDecoder, stop_strings

if TYPE_CHECKING:
    from lloyal.context import Context as WithCheckpoints
    from lloyal.llama.common import ChatPrompt

__all__ = ["Generation", "generate"]


@overload
def generate(
    ctx: Context,
    prompt: str | bytes | Sequence[int] | ChatPrompt,
    *,
    n: None = None,
    max_tokens: int | None = None,
    sampling: Sampling | SupportsSample | None = None,
    grammar: str | Sampler | None = None,
    json_schema: Mapping[str, Any] | bool | str | None = None,
    stop: str | Iterable[str] = (),
    seq_id: int = 0,
    pos0: int | None = None,
    history: Sequence[int] = (),
    progress: Progress | None = None,
    draft: Drafter | Speculator | None = None,
) -> Generation: ...
@overload
def generate(
    ctx: Context,
    prompt: str | bytes | Sequence[int] | ChatPrompt,
    *,
    n: int,
    max_tokens: int | None = None,
    sampling: Sampling | None = None,
    grammar: str | Sampler | None = None,
    json_schema: Mapping[str, Any] | bool | str | None = None,
    stop: str | Iterable[str] = (),
    progress: Progress | None = None,
    draft: Drafter | Speculator | None = None,
) -> Generations: ...
def generate(
    ctx: Context,
    prompt: str | bytes | Sequence[int] | ChatPrompt,
    *,
    n: int | None = None,
    max_tokens: int | None = None,
    sampling: Sampling | SupportsSample | None = None,
    grammar: str | Sampler | None = None,
    json_schema: Mapping[str, Any] | bool | str | None = None,
    stop: str | Iterable[str] = (),
    seq_id: int = 0,
    pos0: int | None = None,
    history: Sequence[int] = (),
    progress: Progress | None = None,
    draft: Drafter | Speculator | None = None,
    **unknown: Never,
) -> Generation | Generations:
    """Go on from a prompt until the model ends the text: tokens by iteration, text by `Generation.text`.

    Parameters
    ----------
    ctx : Context
    prompt : str, bytes, sequence of int or ChatPrompt
        What comes next in the sequence, at least one token: all of a new text, or after a restore the token that was
        not decoded yet. Text is tokenized as in `prefill`, and goes on behind the last token of an earlier generation.
        A chat brings its grammar and its stop strings along.
    n : int, optional
        So many texts side by side, which all begin with the prompt: it is a new text then, read once, and the texts
        take free sequences of the context. Text ``i`` draws from ``seed + i``.
    max_tokens : int, optional
        Most tokens to generate; None leaves the end to the model.
    sampling : Sampling, Sampler or SupportsSample, optional
        How tokens are picked, by default ``Sampling()``. A `Sampler` is used as it is and stays yours: its random
        generator and its penalties go on where they stand.
    grammar : str or Sampler, optional
        Rules in GBNF that the text must follow from here on.
    json_schema : mapping, bool or str, optional
        The text is JSON that this schema admits: ``json.loads("".join(generation.text()))``. The model may still be cut
        off by `max_tokens`; give strings and arrays a longest length.
    stop : str or iterable of str
        Strings that end the generation.
    seq_id : int
        Not with `n` or `draft`, as `pos0` and `history`. Generations in different sequences may take turns.
    pos0 : int, optional
        As in `prefill`.
    history : sequence of int
        Tokens before the prompt, for the penalties.
    progress : callable, optional
        As in `prefill`, while the prompt is read.
    draft : Drafter or Speculator, optional
        Guesses what comes, so that a step gives several tokens: the same ones, sooner where it guesses well (see
        `lloyal.speculative`). As with `n`, the prompt is a new text, in a free sequence that is given back at the end.

    Returns
    -------
    Generation, or Generations with `n`
        Nothing is computed before the first token is asked for. With `n` tokens come as ``(index, token)``, a batch
        for each step.

    Raises
    ------
    InvalidArgument
        The prompt is empty or leaves out the token that an earlier generation has not decoded; `max_tokens` is not
        positive; a grammar beside a sampler of your own, which should have it.
    TypeError
        A draft or `n` beside a sampler of your own: they want a Sampling.
    InvalidGrammar
        The grammar or the schema cannot be used.
    UnknownParameter
        There is no such keyword; the message says where it belongs.
    NoLease
        With `n` or `draft`: no sequence is free.
    Unsupported
        The model keeps no memory: an encoder, or a diffusion model.
    """
    for name in unknown:
        raise unknown_parameter("generate", list(inspect.signature(generate).parameters)[:-1], name)
    if n is None and draft is None:
        return Generation(
            ctx, prompt, max_tokens, Sampling() if sampling is None else sampling, seq_id, progress,
            grammar=grammar, json_schema=json_schema, stop=stop, pos0=pos0, history=history,
        )  # fmt: skip
    if seq_id != 0 or pos0 is not None or history:
        raise InvalidArgument(f"{'n' if n is not None else 'a draft'} takes sequences of its own: leave seq_id, pos0 "
                              "and history out")  # fmt: skip
    many = 1 if n is None else check_count("n", n)
    stops = stop_strings(stop)
    generations = Generations(
        cast("WithCheckpoints", ctx), [prompt], n=many, max_tokens=[max_tokens] * many,
        sampling=Sampling() if sampling is None else cast("Sampling", sampling), grammar=grammar,
        json_schema=json_schema, stops=[stops] * many, progress=progress, draft=draft,
    )  # fmt: skip
    if n is not None:
        return generations
    chat = as_chat(prompt)
    return Drafted(ctx, generations, sampling, stops + (() if chat is None else tuple(chat.stops)))


class Generation(Iterator[int]):
    """Tokens as they are generated, made by `generate`. It keeps its context alive.

    A token that ends the generation is not among them. Asking for a token raises what `Context.decode` raises; after
    an error the generation is over.

    Attributes
    ----------
    prompt : list of int
        The tokens it began with.
    tokens : list of int
        The tokens generated so far. The last one is not decoded until another is asked for, or the sequence goes on:
        what changes it in between (a trim, a shift, another state) forgets that token.
    sampler : Sampler or SupportsSample
        What picks them; ``sampler.seed`` is the seed in use.
    stop_reason : {None, "end", "length", "stop"}
        Why it is over: the model ended it, `max_tokens`, or a stop string. None while it is not.
    stop : tuple of str
        The strings that end it.
    version : int or None
        `Memory.version` of the sequence since the last decode; None before the first.
    """

    def __init__(
        self,
        ctx: Context,
        prompt: str | bytes | Sequence[int] | ChatPrompt,
        max_tokens: int | None,
        sampling: Sampling | SupportsSample,
        seq_id: int,
        progress: Progress | None,
        *,
        grammar: str | Sampler | None = None,
        json_schema: Mapping[str, Any] | bool | str | None = None,
        stop: str | Iterable[str] = (),
        pos0: int | None = None,
        history: Sequence[int] = (),
    ) -> None:
        check_max_tokens(max_tokens)
        if not (isinstance(sampling, Sampling) or hasattr(sampling, "sample")):
            raise TypeError(f"sampling={sampling!r} must be a Sampling, a Sampler or have a method sample(ctx)")
        self._ctx = ctx
        self._vocab = ctx.vocab
        self._pos = next_position(ctx, seq_id) if pos0 is None else pos0
        self._seq_id = seq_id
        self._max_tokens = max_tokens
        self._progress = progress
        self._batch = Batch()
        self._over = False
        self.stop = stop_strings(stop)
        self.version: int | None = None
        chat = as_chat(prompt)
        if chat is not None:
            self.prompt = next_tokens(ctx, chat.prompt, seq_id, pos0, parse_special=True)
            self.stop += tuple(chat.stops)
        else:
            self.prompt = next_tokens(ctx, cast("str | Sequence[int]", prompt), seq_id, pos0)
        self._watch = StopStrings(self.stop)
        self._watched = StreamDecoder(self._vocab)
        self.tokens: list[int] = []
        self.stop_reason: StopReason | None = None
        rules = one_grammar(self._vocab, chat, grammar, json_schema)
        self.sampler: SupportsSample
        if isinstance(sampling, Sampling):
            self.sampler = sampling.picker(
                self._vocab,
                grammar=rules,
                history=[*history, *self.prompt],
                position=self._pos + len(self.prompt),
            )
        elif rules is not None:
            raise InvalidArgument(
                "a sampler of your own has to follow the grammar itself: put Sampler.grammar (for a chat, "
                "lloyal.chat.grammar_sampler) first in its chain, or give a Sampling"
            )
        else:
            self.sampler = sampling

    def __next__(self) -> int:
        if self._over:
            raise StopIteration
        self._over = True  # and stays so if anything below raises
        self._decode_pending()
        self.version = self._ctx.memory.version(self._seq_id)
        token = self.sampler.sample(self._ctx)
        if self._vocab.is_eog(token):
            self.stop_reason = "end"
            raise StopIteration
        self.tokens.append(token)
        undecoded.remember(self._ctx, self.version, token)
        if self.stop:
            self._watch.feed(self._watched.feed(token))
        if self._watch.found is not None:
            self.stop_reason = "stop"
        elif len(self.tokens) == self._max_tokens:
            self.stop_reason = "length"
        self._over = self.stop_reason is not None
        return token

    def text(self, stop: str | Iterable[str] = ()) -> Iterator[str]:
        """The rest of the generation as text, in pieces that hold whole characters. Control tokens give no text.

        Parameters
        ----------
        stop : str or iterable of str
            More strings that end it. The text ends before the string; `tokens` has what was generated, the string
            included.
        """
        decoder = StreamDecoder(self._vocab)
        stops = StopStrings((*self.stop, *stop_strings(stop)))
        for token in self:
            if piece := stops.feed(decoder.feed(token)):
                yield piece
            if stops.found is not None:
                self.stop_reason, self._over = "stop", True
                return
        if piece := stops.feed(decoder.flush()) + stops.flush():
            yield piece

    def __repr__(self) -> str:
        most = f" of at most {self._max_tokens}" if self._max_tokens is not None else ""
        why = f", over: {self.stop_reason}" if self.stop_reason else ""
        return f"<Generation in sequence {self._seq_id}: {len(self.tokens)}{most} tokens{why}>"

    def _decode_pending(self) -> None:
        if self.tokens:
            self._batch.clear()
            self._batch.add(self.tokens[-1], self._pos, self._seq_id, True)
            self._ctx.decode(self._batch)
            self._pos += 1
        else:
            self._pos = decode_tokens(
                self._ctx, self._batch, self.prompt, self._seq_id, self._pos, True, self._progress
            )


class Drafted(Generation):
    """A `Generation` in a sequence of its own, of which a drafter guesses the tokens.

    The sequence is free again when it is over, is closed, or is garbage. `sampler` is how it began: the one that goes
    on is the text's own.

    Attributes
    ----------
    speculator : Speculator
        Its `stats` say how well the guesses were.
    """

    def __init__(
        self,
        ctx: Context,
        generations: Generations,
        sampling: Sampling | SupportsSample | None,
        stop: tuple[str, ...],
    ) -> None:
        self._ctx, self._vocab = ctx, ctx.vocab
        self._generations = generations
        self._over = False
        self.prompt, self.tokens = generations.prompts[0], []
        self.stop, self.stop_reason, self.version = stop, None, None
        began = Sampling() if sampling is None else cast("Sampling", sampling)
        self.sampler = dataclasses.replace(began, seed=generations.seed).picker(ctx.vocab)
        self.speculator = cast("Speculator", generations.speculator)

    def __next__(self) -> int:
        if self._over:
            raise StopIteration
        self._over = True  # and stays so if anything below raises
        token = next(self._generations, None)
        if token is None or not self._generations.n_ready:
            self.stop_reason = self._generations.stop_reasons[0]
        if token is None:
            raise StopIteration
        self.tokens.append(token[1])
        self._over = self.stop_reason is not None
        return token[1]

    def text(self, stop: str | Iterable[str] = ()) -> Iterator[str]:
        """As `Generation.text`."""
        yield from super().text(stop)
        self.close()

    def close(self) -> None:
        """End it and free its sequence. May be called twice."""
        self._over = True
        self._generations.close()

    def __repr__(self) -> str:
        why = f", over: {self.stop_reason}" if self.stop_reason else ""
        return f"<Generation with a draft: {len(self.tokens)} tokens{why}>"
