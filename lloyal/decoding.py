"""Reading a prompt and generating from it, one sequence at a time.

The cache is always one token behind what was generated: a token is decoded when the next one is asked for. So does a
checkpoint go with it: save before the last token of a prompt, restore, and generate from that token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral

from lloyal.errors import InvalidArgument, Unsupported
from lloyal.llama import Batch, Context, Sampler
from lloyal.sampling import Sampling
from lloyal.tokenization import StopStrings, StreamDecoder

__all__ = ["Generation", "generate", "prefill"]

Progress = Callable[[int, int], object]


def prefill(
    ctx: Context,
    prompt: str | bytes | Sequence[int],
    *,
    seq_id: int = 0,
    pos0: int | None = None,
    logits: bool = True,
    progress: Progress | None = None,
) -> int:
    """Decode a prompt into a sequence, at most ``n_batch`` tokens at a time.

    Parameters
    ----------
    ctx : Context
    prompt : str, bytes or sequence of int
        Text is tokenized, with the special tokens the model asks for if it begins the sequence.
    seq_id : int
    pos0 : int, optional
        Position of the first token; None goes on where the sequence ends.
    logits : bool
        Compute the logits of the last token.
    progress : callable, optional
        Called with the tokens decoded so far and their total after each batch.

    Returns
    -------
    int
        The position after the prompt.

    Raises
    ------
    InvalidArgument
        The prompt is empty.
    Unsupported
        The model keeps no memory: an encoder, or a diffusion model.
    CacheFull, Aborted, InvalidBatch, DecodeFailed
        As `Context.decode`; the batches before the failing one stay in the cache.

    Notes
    -----
    Invalidates logits. Releases the GIL. Ctrl-C stops it.
    """
    end = _next_position(ctx, seq_id)
    pos = end if pos0 is None else pos0
    return _decode(ctx, Batch(), _tokens(ctx, prompt, pos), seq_id, pos, logits, progress)


def generate(
    ctx: Context,
    prompt: str | bytes | Sequence[int],
    *,
    max_tokens: int | None = None,
    sampling: Sampling | Sampler | None = None,
    seq_id: int = 0,
    progress: Progress | None = None,
) -> Generation:
    """Go on from a prompt until the model ends the text: tokens by iteration, text by `Generation.text`.

    Parameters
    ----------
    ctx : Context
    prompt : str, bytes or sequence of int
        What comes next in the sequence, at least one token: all of a new text, or after a restore or an earlier
        generation the token that was not decoded yet. Text is tokenized as in `prefill`.
    max_tokens : int, optional
        Most tokens to generate; None leaves the end to the model.
    sampling : Sampling or Sampler, optional
        How tokens are picked, by default ``Sampling()``. A `Sampler` is used as it is and stays yours: its random
        generator and its penalties go on where they stand.
    seq_id : int
        Generations in different sequences of one context may take turns.
    progress : callable, optional
        As in `prefill`, while the prompt is read.

    Returns
    -------
    Generation
        Nothing is computed before its first token is asked for.

    Raises
    ------
    InvalidArgument
        The prompt is empty, or `max_tokens` is not positive.
    Unsupported
        The model keeps no memory: an encoder, or a diffusion model.
    """
    return Generation(ctx, prompt, max_tokens, Sampling() if sampling is None else sampling, seq_id, progress)


class Generation(Iterator[int]):
    """Tokens as they are generated, made by `generate`. It keeps its context alive.

    A token that ends the generation is not among them. Asking for a token raises what `Context.decode` raises; after
    an error the generation is over.

    Attributes
    ----------
    prompt : list of int
        The tokens it began with.
    tokens : list of int
        The tokens generated so far.
    sampler : Sampler
        What picks them; ``sampler.seed`` is the seed in use.
    stop_reason : {None, "end", "length", "stop"}
        Why it is over: the model ended it, `max_tokens`, or a stop string. None while it is not.
    """

    def __init__(
        self,
        ctx: Context,
        prompt: str | bytes | Sequence[int],
        max_tokens: int | None,
        sampling: Sampling | Sampler,
        seq_id: int,
        progress: Progress | None,
    ) -> None:
        if max_tokens is not None and (not isinstance(max_tokens, Integral) or max_tokens < 1):
            raise InvalidArgument(f"max_tokens={max_tokens!r} must be an integer from 1, or None for no limit")
        if not (isinstance(sampling, Sampling) or hasattr(sampling, "sample")):
            raise TypeError(f"sampling={sampling!r} must be a Sampling or a Sampler")
        self._ctx = ctx
        self._vocab = ctx.vocab
        self._pos = _next_position(ctx, seq_id)
        self._seq_id = seq_id
        self._max_tokens = max_tokens
        self._progress = progress
        self._batch = Batch()
        self._over = False
        self.prompt = list(_tokens(ctx, prompt, self._pos))
        self.tokens: list[int] = []
        self.stop_reason: str | None = None
        if isinstance(sampling, Sampling):
            self.sampler = sampling.build(self._vocab, history=self.prompt)
        else:
            self.sampler = sampling

    def __next__(self) -> int:
        if self._over:
            raise StopIteration
        self._over = True  # and stays so if anything below raises
        self._decode_pending()
        token = self.sampler.sample(self._ctx)
        if self._vocab.is_eog(token):
            self.stop_reason = "end"
            raise StopIteration
        self.tokens.append(token)
        if len(self.tokens) == self._max_tokens:
            self.stop_reason = "length"
        self._over = self.stop_reason is not None
        return token

    def text(self, stop: str | Iterable[str] = ()) -> Iterator[str]:
        """The rest of the generation as text, in pieces that hold whole characters. Control tokens give no text.

        Parameters
        ----------
        stop : str or iterable of str
            Strings that end it. The text ends before the string; `tokens` has what was generated, the string included.
        """
        decoder = StreamDecoder(self._vocab)
        stops = StopStrings(stop)
        for token in self:
            if piece := stops.feed(decoder.feed(token)):
                yield piece
            if stops.found is not None:
                self.stop_reason, self._over = "stop", True
                return
        if piece := stops.feed(decoder.flush()) + stops.flush():
            yield piece

    def _decode_pending(self) -> None:
        if self.tokens:
            self._batch.clear()
            self._batch.add(self.tokens[-1], self._pos, self._seq_id, True)
            self._ctx.decode(self._batch)
            self._pos += 1
        else:
            self._pos = _decode(self._ctx, self._batch, self.prompt, self._seq_id, self._pos, True, self._progress)


def _next_position(ctx: Context, seq_id: int) -> int:
    if ctx.memory.kind == "none":
        # Every decode would see its own tokens only: a plausible text that has nothing to do with the prompt.
        raise Unsupported(
            "this model keeps no memory from one decode to the next (an encoder, or a diffusion model): "
            "it cannot go on token by token"
        )
    return ctx.memory.seq_pos_max(seq_id) + 1


def _tokens(ctx: Context, prompt: str | bytes | Sequence[int], pos: int) -> Sequence[int]:
    if isinstance(prompt, (str, bytes)):
        tokens: Sequence[int] = ctx.vocab.tokenize(prompt, add_special=pos == 0)
    else:
        tokens = prompt
    if len(tokens) == 0:
        raise InvalidArgument(
            "the prompt has no tokens: give at least one (after a restore, the one that was not decoded yet)"
        )
    return tokens


def _decode(
    ctx: Context,
    batch: Batch,
    tokens: Sequence[int],
    seq_id: int,
    pos: int,
    logits: bool,
    progress: Progress | None,
) -> int:
    n_batch = ctx.n_batch
    for begin in range(0, len(tokens), n_batch):
        end = min(begin + n_batch, len(tokens))
        batch.clear()
        batch.extend(tokens[begin:end], pos + begin, seq_id, "last" if logits and end == len(tokens) else False)
        ctx.decode(batch)
        if progress is not None:
            progress(end, len(tokens))
    return pos + len(tokens)
