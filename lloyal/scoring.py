"""How probable a model finds a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import index

from lloyal.decoding import next_position
from lloyal.errors import InvalidArgument
from lloyal.llama import Batch, Context, Vocab
from lloyal.tokenization import tokens_behind

__all__ = ["Score", "score"]

# Logits are kept for every token of a batch: so many values, 64 MiB.
MOST_LOGITS = 1 << 24


@dataclass(frozen=True, slots=True)
class Score:
    """What a model makes of a text. Log-probabilities are natural logarithms.

    Attributes
    ----------
    tokens : list of int
        The tokens that were scored: all but the first of a text that begins with no BOS token, which nothing predicts.
    logprobs : list of float
        The log-probability of each, given everything before it.
    top : list of list of (float, int)
        The most probable tokens in the place of each, as (log-probability, token), the best first.
    """

    tokens: list[int] = field(repr=False)
    logprobs: list[float] = field(repr=False)
    top: list[list[tuple[float, int]]] = field(repr=False)

    @property
    def total(self) -> float:
        """The log-probability of the whole text."""
        return math.fsum(self.logprobs)

    @property
    def perplexity(self) -> float:
        """``exp(-total / len(tokens))``: inf where that is too large, NaN without tokens."""
        if not self.tokens:
            return math.nan
        try:
            return math.exp(-self.total / len(self.tokens))
        except OverflowError:
            return math.inf

    def __repr__(self) -> str:
        return f"<Score of {len(self.tokens)} tokens: total {self.total:.3f}, perplexity {self.perplexity:.3f}>"


def score(
    ctx: Context,
    text: str | bytes | Sequence[int],
    *,
    prompt: str | bytes | Sequence[int] = (),
    top: int = 0,
    seq_id: int = 0,
) -> Score:
    """The log-probability of every token of a text, as the model would read it.

    Parameters
    ----------
    ctx : Context
    text : str, bytes or sequence of int
        Text is tokenized, with the special tokens the model asks for where nothing comes before it.
    prompt : str, bytes or sequence of int
        What comes before the text and is not scored.
    top : int
        Most probable tokens to name for each place.
    seq_id : int
        An empty sequence to compute in; it is empty again afterwards.

    Raises
    ------
    InvalidArgument
        There is nothing to score, or the sequence is not empty.
    Unsupported
        The model keeps no memory.
    CacheFull, Aborted, InvalidBatch, DecodeFailed
        As `Context.decode`.

    Notes
    -----
    Invalidates logits. The softmax is computed in float64. Releases the GIL. Ctrl-C stops it.
    """
    if next_position(ctx, seq_id) != 0:
        raise InvalidArgument(f"sequence {seq_id} is not empty: name one that is (seq_id=), or clear it")
    if top < 0:
        raise InvalidArgument(f"top={top} must not be negative")
    before = _beginning(ctx.vocab, prompt)
    if isinstance(prompt, (str, bytes)) and ctx.vocab.add_eos and before[-1:] == [ctx.vocab.eos]:
        before.pop()  # the text goes on
    tokens = before + (_behind(ctx.vocab, text) if before else _beginning(ctx.vocab, text))
    if any(not 0 <= token < len(ctx.vocab) for token in tokens):
        raise InvalidArgument(
            f"tokens must be from 0 to {len(ctx.vocab) - 1}, these go from {min(tokens)} to {max(tokens)}"
        )
    first = max(len(before), 1)
    if first >= len(tokens):
        raise InvalidArgument(
            "there is nothing to score: the text has no tokens, or only a first one, which nothing predicts"
        )
    found = Score([], [], [])
    # The last token predicts what comes after the text: it need not be computed.
    step = max(1, min(ctx.n_batch, ctx.params.n_outputs_max or ctx.n_batch, MOST_LOGITS // len(ctx.vocab)))
    batch = Batch()
    try:
        for begin in range(0, len(tokens) - 1, step):
            end = min(begin + step, len(tokens) - 1)
            batch.clear()
            for at in range(begin, end):
                batch.add(tokens[at], at, [seq_id], logits=at + 1 >= first)
            ctx.decode(batch)
            for at in range(max(begin, first - 1), end):
                row = ctx.logits(at - begin)
                found.tokens.append(tokens[at + 1])
                found.logprobs.append(row.logprob(tokens[at + 1]))
                found.top.append(row.top(top) if top else [])
    finally:
        ctx.memory.seq_rm(seq_id, -1, -1)
    return found


def _beginning(vocab: Vocab, text: str | bytes | Sequence[int]) -> list[int]:
    if not isinstance(text, (str, bytes)):
        return [index(token) for token in text]
    return list(vocab.tokenize(text, add_special=True, parse_special=False)) if text else []


def _behind(vocab: Vocab, text: str | bytes | Sequence[int]) -> list[int]:
    if not isinstance(text, (str, bytes)):
        return [index(token) for token in text]
    return tokens_behind(vocab, text)
