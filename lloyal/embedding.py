"""Vectors that stand for texts, and how well texts answer a query."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

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
    texts: str | Iterable[str],
    *,
    pooling: Pooling | None = None,
    normalize: bool = True,
    n_threads: int | None = None,
) -> NDArray[numpy.float32]:
    """One vector for each text.

    Parameters
    ----------
    model : Model
        One that was trained for it gives useful vectors; any gives some.
    texts : str or iterable of str
        Tokenized with the special tokens that the model asks for. A single string is a list of one.
    pooling : str, optional
        How the tokens' embeddings become one: "mean", "cls" or "last". By default what the model asks for, else "mean".
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
    Makes a context for the call; several texts are computed at once. Releases the GIL.
    """
    import numpy

    texts = [texts] if isinstance(texts, str) else list(texts)
    if pooling is None:
        pooling = "mean" if _own_pooling(model) == 0 else "unspecified"
    if pooling in ("none", "rank") or (pooling == "unspecified" and _own_pooling(model) == _RANK):
        raise InvalidArgument(
            "this model ranks texts by a query: use rerank()"
            if pooling != "none"
            else "pooling='none' gives a vector for each token: use a Context with embeddings=True"
        )
    tokens = [model.vocab.tokenize(text, add_special=True, parse_special=False) for text in texts]
    rows = _pooled(model, tokens, pooling, n_threads)
    if not normalize:
        return rows
    lengths = numpy.linalg.norm(rows, axis=1, keepdims=True)
    return numpy.asarray(rows / numpy.where(lengths > 0, lengths, 1), dtype=numpy.float32)


def rerank(model: Model, query: str, texts: Iterable[str], *, n_threads: int | None = None) -> NDArray[numpy.float32]:
    """How well each text answers a query: the higher, the better.

    Parameters
    ----------
    model : Model
        One that was made for ranking (its file asks for the pooling "rank").
    query : str
    texts : iterable of str
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
    if _own_pooling(model) != _RANK:
        raise Unsupported(f"{model.desc} does not rank: use a model that was made for it, or embed() both sides")
    return _pooled(model, [_pair(model, query, text) for text in texts], "rank", n_threads)[:, 0]


_RANK = 4  # LLAMA_POOLING_TYPE_RANK


def _own_pooling(model: Model) -> int:
    """The file's pooling type, 0 (none) if it names none."""
    return int(model.metadata.get(f"{model.arch}.pooling_type", 0))


def _pair(model: Model, query: str, text: str) -> list[int]:
    vocab = model.vocab
    template = model.chat_template("rerank")
    if template is not None:
        whole = template.replace("{query}", query).replace("{document}", text)
        return list(vocab.tokenize(whole, add_special=False, parse_special=True))
    end = vocab.eos if vocab.eos is not None else vocab.sep
    parts: list[int | None] = [vocab.bos if vocab.add_bos else None]
    parts += vocab.tokenize(query, add_special=False, parse_special=False)
    parts += [end if vocab.add_eos else None, vocab.sep if vocab.add_sep else None]
    parts += vocab.tokenize(text, add_special=False, parse_special=False)
    parts += [end if vocab.add_eos else None]
    return [token for token in parts if token is not None]


def _pooled(
    model: Model, tokens: Sequence[Sequence[int]], pooling: Pooling, n_threads: int | None
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
    settings: dict[str, Any] = {"n_ctx": n_batch, "n_batch": n_batch, "n_ubatch": n_batch, "n_threads": n_threads}
    n_seq_max = max(1, min(len(tokens), MOST_SEQUENCES, n_batch))
    rows: list[NDArray[numpy.float32]] = []
    with Context(model, n_seq_max=n_seq_max, embeddings=True, pooling=pooling, **settings) as ctx:
        compute = ctx.encode if model.has_encoder else ctx.decode
        batch = Batch()
        held = 0
        for i, part in enumerate(tokens):
            batch.extend(part, 0, held, True)
            held += 1
            full = held == n_seq_max or i + 1 == len(tokens) or len(batch) + len(tokens[i + 1]) > n_batch
            if full:
                if ctx.memory.kind != "none":
                    ctx.memory.clear()
                compute(batch)
                rows += [ctx.embeddings(seq_id=seq, copy=True) for seq in range(held)]
                batch.clear()
                held = 0
    return numpy.stack(rows) if rows else numpy.empty((0, model.n_embd_out), dtype=numpy.float32)
