"""Many generations in one context, side by side: one batch per step, as many at once as there are sequences."""

from __future__ import annotations

import dataclasses
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from lloyal.branch import Branch
from lloyal.decoding import Progress
from lloyal.errors import InvalidArgument
from lloyal.llama import LLAMA_DEFAULT_SEED, Sampler, Vocab
from lloyal.prompt import as_chat, check_max_tokens, one_grammar, tokens_of
from lloyal.sampling import Sampling, check_sampling
from lloyal.scheduler import Scheduler, StopReason, Text, log_probs_of
from lloyal.speculative import Drafter, Speculator, speculator_for
from lloyal.tokenization import StreamDecoder, stop_strings

if TYPE_CHECKING:
    from lloyal.context import Context
    from lloyal.llama.common import ChatPrompt

__all__ = ["Generations", "generate_many"]


class Generations(Iterator[tuple[int, int]]):
    """Tokens of many texts as they are generated, ``(index, token)``; made by `generate_many` and ``generate(n=...)``.

    Each step of all texts is one batch; tokens come in the order of the texts. A token that ends a text is not among
    them. Asking for one raises what `BranchStore.step` raises; after an error all is over. Its sequences are leased
    while texts go on in them, and free again once it is over, is closed, or is garbage.

    Attributes
    ----------
    seed : int or None
        Text ``i`` draws from ``seed + i``; None if nothing is drawn.
    speculator : Speculator or None
        What lets a drafter guess; its `stats` say how well.
    """

    def __init__(
        self,
        ctx: Context,
        prompts: Sequence[str | bytes | Sequence[int] | ChatPrompt],
        *,
        n: int | None = None,
        max_tokens: Sequence[int | None],
        sampling: Sampling,
        grammar: str | Sampler | None,
        json_schema: Mapping[str, Any] | bool | str | None,
        stops: Sequence[tuple[str, ...]],
        progress: Progress | None,
        draft: Drafter | Speculator | None = None,
    ) -> None:
        self._ready: deque[tuple[int, int]] = deque()
        self._over = True  # until everything has been checked: there is nothing to close
        check_sampling(sampling)
        for most in max_tokens:
            check_max_tokens(most)
        seed = secrets.randbelow(LLAMA_DEFAULT_SEED) if sampling.seed is None else sampling.seed
        self.seed = None if sampling.temperature == 0 else seed
        self._ctx, self._progress, self._n_told = ctx, progress, 0
        self.speculator = speculator_for(ctx, draft)
        self._scheduler = Scheduler(ctx, self.speculator)
        store, vocab = self._scheduler.store, ctx.vocab
        self._texts: list[Text] = []
        self._root: Callable[[], Branch] | None = None  # of texts with one prompt, which is read once
        common = _parsed(vocab, one_grammar(vocab, None, grammar, json_schema))
        for prompt in prompts:
            chat = as_chat(prompt)
            tokens = tokens_of(vocab, prompt, beginning=True)
            if not tokens:
                raise InvalidArgument("a prompt has no tokens: give at least one")
            rules = common
            if chat is not None and chat.grammar:
                rules = _parsed(vocab, one_grammar(vocab, chat, grammar, json_schema))
            for _ in range(1 if n is None else n):
                i = len(self._texts)
                own = _seeded(sampling, seed, i)
                stop = stops[i] + (tuple(chat.stops) if chat is not None else ())
                make = partial(store.create, tokens, sampling=own, grammar=rules, read=False)
                text = Text(tokens, make, max_tokens[i], stop, i)
                if stop:
                    text.listen(StreamDecoder(vocab))
                self._texts.append(text)
        if self._texts:
            self._texts[0].make().prune()  # what is wrong with the sampling is said now
        if n is not None and n > 1:
            self._root = self._texts[0].make
        else:
            for text in self._texts:
                self._scheduler.add(text)
        self._over = not self._texts

    def __iter__(self) -> Iterator[tuple[int, int]]:  # a loop over a generator costs less than calls of __next__
        ready = self._ready
        while self._more():
            while ready:
                yield ready.popleft()

    def __next__(self) -> tuple[int, int]:
        if not self._more():
            raise StopIteration
        return self._ready.popleft()

    def _more(self) -> bool:
        """Whether there is another token; then it is ready."""
        while not self._ready:
            if self._over:
                return False
            try:
                self._step()
            except BaseException:
                self.close()
                raise
        return True

    @property
    def n_ready(self) -> int:
        """Tokens that the last step has given and nobody has taken yet."""
        return len(self._ready)

    def _step(self) -> None:
        if self._root is not None:
            self._fork(self._root())
            self._root = None
        texts, tokens, over = self._scheduler.step()
        for text in over:
            if text.error is not None:
                raise text.error
        self._ready.extend(zip([text.index for text in texts], tokens, strict=True))
        if self._progress is not None:
            self._tell(self._progress)
        if self._scheduler.idle:
            self.close()

    def _tell(self, progress: Progress) -> None:
        n_read = sum(text.n_read for text in self._texts)
        if n_read > self._n_told:
            self._n_told = n_read
            progress(n_read, sum(len(text.prompt) for text in self._texts))

    def _fork(self, root: Branch) -> None:
        prompt, store = self._texts[0].prompt, self._scheduler.store
        step = self._ctx.n_batch if self._progress is None else min(self._ctx.n_batch, self._ctx.n_ubatch)
        for begin in range(0, len(prompt), step):
            store.decode_scatter([(root, prompt[begin : begin + step])])
            if self._progress is not None:
                self._progress(min(begin + step, len(prompt)), len(prompt))
        self._n_told = len(prompt) * len(self._texts)
        for text in self._texts:
            text.branch = root if text.index == 0 else root.fork(seed=self._seed_of(text.index))
            text.branch.detach()
            text.n_read = len(prompt)
            self._scheduler.add(text)

    def _seed_of(self, index: int) -> int | None:
        return None if self.seed is None else (self.seed + index) % LLAMA_DEFAULT_SEED

    def pieces(self) -> Iterator[tuple[int, str]]:
        """The rest as text, ``(index, piece)``: pieces hold whole characters, and end before a stop string."""
        for text in self._texts:
            text.listen(StreamDecoder(self._ctx.vocab))
        given = [0] * len(self._texts)
        for index, _ in self:
            said = self._texts[index].said
            if given[index] < len(said):
                yield index, "".join(said[given[index] :])
                given[index] = len(said)
        for text in self._texts:
            if given[text.index] < len(text.said):
                yield text.index, "".join(text.said[given[text.index] :])

    @property
    def prompts(self) -> list[list[int]]:
        """The tokens each text began with."""
        return [text.prompt for text in self._texts]

    @property
    def tokens(self) -> list[list[int]]:
        """The tokens each text has so far, those of a stop string included."""
        return [text.tokens for text in self._texts]

    @property
    def texts(self) -> list[str]:
        """What each says so far, without the stop string, and without a character that is not finished."""
        return [self._said(text) for text in self._texts]

    def _said(self, text: Text) -> str:
        if text.decoder is not None:
            return "".join(text.said)
        decoder = StreamDecoder(self._ctx.vocab)
        return "".join(map(decoder.feed, text.tokens)) + (decoder.flush() if text.over else "")

    @property
    def stop_reasons(self) -> list[StopReason | None]:
        """Why each is over: the model ended it ("end"), `max_tokens` ("length"), or a stop string; None while not."""
        return [text.stop_reason for text in self._texts]

    @property
    def log_probs(self) -> list[list[float]]:
        """Natural log-probabilities of `tokens`, by the model, before biases and samplers."""
        return [log_probs_of(text) for text in self._texts]

    def close(self) -> None:
        """End all texts and free their sequences. May be called twice."""
        if self._over:
            return
        self._over = True
        try:
            for text in self._texts:
                text.log_probs = log_probs_of(text)
                text.branch = None
        finally:
            self._scheduler.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_over", True):
            self._scheduler.close()

    def __len__(self) -> int:
        return len(self._texts)

    def __repr__(self) -> str:
        n = sum(text.over for text in self._texts)
        return f"<Generations: {len(self)} texts, {n} over, {sum(map(len, self.tokens))} tokens>"


def generate_many(
    ctx: Context,
    prompts: Iterable[str | bytes | Sequence[int] | ChatPrompt],
    *,
    max_tokens: int | Sequence[int | None] | None = None,
    sampling: Sampling | None = None,
    grammar: str | Sampler | None = None,
    json_schema: Mapping[str, Any] | bool | str | None = None,
    stop: str | Iterable[str] | Iterable[Iterable[str]] = (),
    progress: Progress | None = None,
    draft: Drafter | Speculator | None = None,
) -> Generations:
    """Go on from many prompts side by side: all that find a sequence at once, the others as sequences become free.

    Parameters
    ----------
    ctx : Context
        Texts take its free sequences, `n_seq_max` at most.
    prompts : iterable of str, bytes, sequence of int or ChatPrompt
        Each is a new text. A chat brings its grammar and its stop strings along.
    max_tokens : int or sequence of int, optional
        Most tokens of each text, or a number for every prompt.
    sampling : Sampling, optional
        How tokens are picked, by default ``Sampling()``; text ``i`` draws from ``seed + i``.
    grammar, json_schema
        As in `generate`, for all of them.
    stop : str or iterable of str
        Strings that end a text; or for every prompt its own, as tuples.
    progress : callable, optional
        Called with the tokens of the prompts read so far and their total.
    draft : Drafter or Speculator, optional
        Guesses what comes, so that a step gives several tokens: the same ones, sooner where it guesses well.

    Returns
    -------
    Generations
        ``(index, token)`` by iteration, and everything so far by index. Nothing is computed before it is asked for.

    Raises
    ------
    InvalidArgument
        A prompt is empty, a number is not positive, there are not as many of something as prompts.
    InvalidGrammar
        The grammar or the schema cannot be used.
    Unsupported
        The model keeps no memory.
    """
    given = list(prompts)
    most = list(max_tokens) if isinstance(max_tokens, Sequence) else [max_tokens] * len(given)
    stops = _stops_of_each(stop, len(given))
    if len(most) != len(given) or len(stops) != len(given):
        raise InvalidArgument(f"{len(most)} max_tokens and {len(stops)} stops were given for {len(given)} prompts")
    return Generations(
        ctx, given, max_tokens=most, sampling=Sampling() if sampling is None else sampling,
        grammar=grammar, json_schema=json_schema, stops=stops, progress=progress, draft=draft,
    )  # fmt: skip


def _parsed(vocab: Vocab, rules: str | Sampler | None) -> Sampler | None:
    """Rules that many samplers are made of: parsed once."""
    return Sampler.grammar(vocab, rules) if isinstance(rules, str) else rules


def _seeded(sampling: Sampling, seed: int, index: int) -> Sampling:
    """The same, drawing from ``seed + index``."""
    return dataclasses.replace(sampling, seed=(seed + index) % LLAMA_DEFAULT_SEED)


def _stops_of_each(stop: str | Iterable[str] | Iterable[Iterable[str]], n: int) -> list[tuple[str, ...]]:
    if not isinstance(stop, str):
        listed = list(stop)
        if listed and not any(isinstance(one, str) for one in listed):
            return [stop_strings(one) for one in listed]
        stop = cast("list[str]", listed)
    return [stop_strings(stop)] * n
