"""Vectors that stand for texts, and how well texts answer a query."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from lloyal.context import Context
from lloyal.errors import InvalidArgument, Unsupported
from lloyal.llama import Batch
from lloyal.llama.params import Pooling
from lloyal.model import Model

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

__all__ = ["embed", "rerank"]

MOST_SEQUENCES = 64
SMALLEST_BATCH = 512  # tokens: texts are put together up to this, or to the longest of them


def embed(
    model: Model,
    texts: str | bytes | Iterable[str | bytes],
    *,
    pooling: Literal["mean", "cls", "last"] | None = None,
    normalize: bool = True,
    n_threads: int | None = None,
) -> NDArray[numpy.float32]:
    """One vector for each text.

    Parameters
    ----------
    model : Model
        One that was trained for it gives useful vectors; any gives some.
    texts : str, bytes or iterable of them
        Tokenized with the special tokens that the model asks for. A single text is a list of one.
    pooling : {"mean", "cls", "last"}, optional
        How the tokens' embeddings become one; by default as the model asks, and "mean" if it does not.
    normalize : bool
        Scale vectors to length 1, so that a dot product is the cosine of the angle between two.
    n_threads : int, optional
        As for `Context`.

    Returns
    -------
    numpy.ndarray
        float32, shape (number of texts, n_embd_out of the model).

    Raises
    ------
    InvalidArgument
        A text has no tokens, or more than the model was trained for; the model ranks (see `rerank`).

    Notes
    -----
    Makes a context for the call; several texts are computed at once, 512 tokens or the longest text. llama.cpp keeps
    logits for them too where a model has any: 4 bytes for each entry of the vocabulary a token. Releases the GIL.
    """
    import numpy

    given = [texts] if isinstance(texts, (str, bytes)) else list(texts)
    tokens = [model.vocab.tokenize(text, add_special=True, parse_special=False) for text in given]
    rows = _pooled(model, tokens, pooling, n_threads)
    if not normalize:
        return rows
    lengths = numpy.linalg.norm(rows, axis=1, keepdims=True)
    return numpy.asarray(rows / numpy.where(lengths > 0, lengths, 1), dtype=numpy.float32)


def rerank(
    model: Model, query: str, texts: str | Iterable[str], *, n_threads: int | None = None
) -> NDArray[numpy.float32]:
    """How well each text answers a query: the higher, the better.

    Parameters
    ----------
    model : Model
        One that was made for ranking (its file asks for the pooling "rank").
    query : str
    texts : str or iterable of str
        With the query put into the model's template "rerank", or behind it with the tokens that separate the two.
    n_threads : int, optional
        As for `Context`.

    Returns
    -------
    numpy.ndarray
        float32, shape (number of texts,): the model's first output, as it is.

    Raises
    ------
    Unsupported
        The model does not rank.
    InvalidArgument
        A pair has more tokens than the model was trained for.

    Notes
    -----
    Makes a context for the call; several texts are computed at once. Releases the GIL.
    """
    pairs = [_pair(model, query, text) for text in ([texts] if isinstance(texts, str) else texts)]
    return _pooled(model, pairs, "rank", n_threads)[:, 0]


def _pair(model: Model, query: str, text: str) -> list[int]:
    vocab = model.vocab
    template = model.chat_template("rerank")
    if template is not None:
        given = {"query": query, "document": text}
        whole = re.sub(r"\{(query|document)\}", lambda match: given[match[1]], template)
        return list(vocab.tokenize(whole, add_special=False, parse_special=True))
    end = vocab.eos if vocab.eos is not None else vocab.sep
    parts: list[int | None] = [vocab.bos if vocab.add_bos else None]
    parts += vocab.tokenize(query, add_special=False, parse_special=False)
    parts += [end if vocab.add_eos else None, vocab.sep if vocab.add_sep else None]
    parts += vocab.tokenize(text, add_special=False, parse_special=False)
    parts += [end if vocab.add_eos else None]
    return [token for token in parts if token is not None]


def _pooled(
    model: Model, tokens: Sequence[Sequence[int]], pooling: Pooling | None, n_threads: int | None
) -> NDArray[numpy.float32]:
    """The pooled output of every list of tokens, float32, shape (number of lists, values)."""
    import numpy

    most = model.n_ctx_train
    for i, part in enumerate(tokens):
        if not part:
            raise InvalidArgument(f"texts[{i}] has no tokens")
        if len(part) > most:
            raise InvalidArgument(f"texts[{i}] has {len(part)} tokens, the model was trained for {most}: split it")
    n_batch = max(SMALLEST_BATCH, max(map(len, tokens), default=0))
    n_seq_max = max(1, min(len(tokens), MOST_SEQUENCES))
    rows: list[NDArray[numpy.float32]] = []
    with _pooling_context(
        model, pooling, n_ctx=n_batch, n_batch=n_batch, n_ubatch=n_batch, n_seq_max=n_seq_max, n_threads=n_threads
    ) as ctx:
        compute = ctx.encode if model.has_encoder else ctx.decode
        batch = Batch()
        held = 0
        for i, part in enumerate(tokens):
            batch.extend(part, 0, held, True)
            held += 1
            if held == n_seq_max or i + 1 == len(tokens) or len(batch) + len(tokens[i + 1]) > n_batch:
                if ctx.memory.kind != "none":
                    ctx.memory.clear()
                compute(batch)
                rows += [ctx.embeddings(seq_id=seq, copy=True) for seq in range(held)]
                batch.clear()
                held = 0
    return numpy.stack(rows) if rows else numpy.empty((0, model.n_embd_out), dtype=numpy.float32)


def _pooling_context(model: Model, pooling: Pooling | None, **settings: Any) -> Context:
    """A context for embeddings; without `pooling` as the model asks, and with "mean" where it asks for none."""
    if pooling not in (None, "mean", "cls", "last", "rank"):
        raise InvalidArgument(f"pooling={pooling!r} must be 'mean', 'cls' or 'last', which give one vector for a text")
    ctx = Context(model, embeddings=True, **settings)
    own = ctx.pooling
    if (own == "rank") != (pooling == "rank"):
        ctx.close()
        if own == "rank":
            raise InvalidArgument(f"{model.desc} ranks texts by a query: use rerank()")
        raise Unsupported(f"{model.desc} does not rank: use a model that was made for it, or embed() both sides")
    wanted = pooling or ("mean" if own == "none" else cast("Pooling", own))
    if wanted != own:
        ctx.close()
        ctx = Context(model, embeddings=True, pooling=wanted, **settings)
    return ctx
