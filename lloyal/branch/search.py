"""Searching among the texts a model could write: the most probable ones, by beams."""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING

from lloyal.branch.rows import log_softmax
from lloyal.branch.store import BranchStore
from lloyal.errors import InvalidArgument
from lloyal.llama import Sampler
from lloyal.prompt import check_count
from lloyal.sampling import Sampling
from lloyal.tokenization import StreamDecoder

if TYPE_CHECKING:
    from lloyal.branch.branch import Branch
    from lloyal.context import Context
    from lloyal.llama.common import ChatPrompt

__all__ = ["Beam", "beam_search"]


@dataclasses.dataclass(frozen=True, slots=True)
class Beam:
    """One text that a beam search found.

    Attributes
    ----------
    tokens : list of int
        Behind the prompt, without the token that ended it.
    text : str
    log_prob : float
        Of the tokens, and of the one that ended it, by the model.
    score : float
        What the beams were ordered by: `log_prob`, divided by a power of the length.
    ended : bool
        The model ended it; otherwise it was cut off.
    """

    tokens: list[int]
    text: str
    log_prob: float
    score: float
    ended: bool


def beam_search(
    ctx: Context,
    prompt: str | bytes | Sequence[int] | ChatPrompt,
    *,
    width: int = 4,
    max_tokens: int = 64,
    length_penalty: float = 0.0,
    grammar: str | Sampler | None = None,
) -> list[Beam]:
    """The most probable texts behind a prompt, the best first: at most `width`.

    Each step keeps the `width` most probable of all continuations of the texts it has. A text that ends takes its place
    among the results, and the search is over once no unfinished text can still be better than the worst of them.

    Parameters
    ----------
    ctx : Context
        With a free sequence for each beam, or fewer: the others wait in checkpoints.
    prompt : str, bytes, sequence of int or ChatPrompt
    width : int
    max_tokens : int
        Longest text, in tokens.
    length_penalty : float
        A text's score is its log-probability divided by ``length ** length_penalty``: 0 prefers short texts, 1 is the
        mean of its tokens. At most 10.
    grammar : str or Sampler, optional
        Rules in GBNF that every text follows; the probabilities are those among what they allow.

    Returns
    -------
    list of Beam

    Raises
    ------
    InvalidArgument
        `width` or `max_tokens` is not positive; `length_penalty` is out of range.
    NoLease, CacheFull, Unsupported
        As `BranchStore.create`.
    """
    import numpy

    width = check_count("width", width)
    if max_tokens < 1:
        raise InvalidArgument(f"max_tokens={max_tokens} must be from 1")
    if not isinstance(length_penalty, Real) or not 0 <= length_penalty <= 10:
        raise InvalidArgument(f"length_penalty={length_penalty!r} must be a number from 0 to 10")
    vocab = ctx.vocab

    def score(log_prob: float, length: int) -> float:
        return log_prob / math.pow(max(1, length), length_penalty)

    done: list[Beam] = []

    def finish(tokens: list[int], log_prob: float, ended: bool) -> None:
        decoder = StreamDecoder(vocab)
        text = "".join(map(decoder.feed, tokens)) + decoder.flush()
        done.append(Beam(tokens, text, log_prob, score(log_prob, len(tokens) + ended), ended))
        done.sort(key=lambda beam: -beam.score)
        del done[width:]

    with BranchStore(ctx, auto_park=True) as store:
        live: list[tuple[Branch, float]] = [
            (store.create(prompt, sampling=Sampling(temperature=0), grammar=grammar), 0.0)
        ]
        for length in range(max_tokens):
            candidates: list[tuple[float, int, int]] = []  # log-probability, beam, token
            for i, (branch, log_prob) in enumerate(live):
                row = log_softmax(branch.legal_logits())
                # As many as could all end, and still leave `width` that go on.
                for token in numpy.argsort(-row, kind="stable")[: 2 * width]:
                    if row[token] > -numpy.inf:
                        candidates.append((log_prob + float(row[token]), i, int(token)))
            best = heapq.nlargest(2 * width, candidates, key=lambda found: (found[0], -found[1], -found[2]))
            going: list[tuple[float, int, int]] = []
            for log_prob, i, token in best:
                if len(going) == width:
                    break
                if vocab.is_eog(token):
                    finish(live[i][0].generated, log_prob, True)
                else:
                    going.append((log_prob, i, token))
            forks = [(live[i][0].fork(), token, log_prob) for log_prob, i, token in going]
            for fork, _, _ in forks:
                fork.detach()
            for branch, _ in live:
                branch.prune()  # so that the last of its forks takes its rows over
            store.commit([(fork, token) for fork, token, _ in forks])
            live = [(fork, log_prob) for fork, _, log_prob in forks]
            hopes = [score(log_prob, max_tokens if length_penalty > 0 else length + 1) for _, log_prob in live]
            if not live or (len(done) == width and max(hopes) <= done[-1].score):
                break
        else:
            for branch, log_prob in live:
                finish(branch.generated, log_prob, False)
    return done
