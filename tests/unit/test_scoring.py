"""Log-probabilities of texts, vectors that stand for them, and ranking, each against a plain loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import lloyal
from lloyal.errors import InvalidArgument, Unsupported
from tests.abuse.models import bert
from tests.fuzz.gguf_file import STRING, U32, Pair, encode, parse
from tests.models import N_EMBD

TEXT = "def read(self, name):\n    return self.names[name]\n"
TEXTS = ["import os", "class A:\n    pass", "x", "def f(a, b):\n    return a + b", "import sys"] * 15
Make = Callable[..., lloyal.Context]


@pytest.fixture(params=["nano", "nano_hybrid"])
def model(request: pytest.FixtureRequest) -> lloyal.Model:
    found: lloyal.Model = request.getfixturevalue(request.param)
    return found


def plain_scores(ctx: lloyal.Context, tokens: list[int]) -> np.ndarray:
    """Float64 log-softmax of every row, computed in one batch; shape (tokens - 1, n_vocab)."""
    batch = lloyal.Batch()
    batch.extend(tokens, 0, 0, True)
    ctx.decode(batch)
    rows = np.array([ctx.logits(i, copy=True) for i in range(len(tokens) - 1)], dtype=np.float64)
    ctx.memory.clear()
    return rows - np.logaddexp.reduce(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("n_batch", [512, 5])
def test_scores_are_a_softmax_in_float64(model: lloyal.Model, new_context: Make, n_batch: int) -> None:
    ctx = new_context(model, n_batch=n_batch)
    tokens = ctx.vocab.tokenize(TEXT)
    found = lloyal.score(ctx, TEXT, top=5)
    assert ctx.memory.seq_pos_max(0) == -1
    expected = plain_scores(new_context(model), tokens)
    assert found.tokens == tokens[1:]
    for i, (token, logprob, top) in enumerate(zip(found.tokens, found.logprobs, found.top, strict=True)):
        tolerance = 1e-5 if n_batch == 512 else 2e-2  # other batches, other sums
        assert logprob == pytest.approx(expected[i, token], abs=tolerance)
        assert [value for value, _ in top] == pytest.approx(np.sort(expected[i])[::-1][:5], abs=tolerance)
        assert [value for value, _ in top] == sorted((value for value, _ in top), reverse=True)
        if n_batch == 512:
            assert [other for _, other in top] == np.argsort(-expected[i], kind="stable")[:5].tolist()
    assert found.total == pytest.approx(sum(found.logprobs))
    assert found.perplexity == pytest.approx(math.exp(-np.mean(found.logprobs)))
    assert repr(found).startswith(f"<Score of {len(tokens) - 1} tokens: total -")


def test_a_prompt_is_not_scored(nano: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(nano)
    before, after = ctx.vocab.tokenize("import os\n"), ctx.vocab.tokenize("import sys\n", add_special=False)
    found = lloyal.score(ctx, "import sys\n", prompt="import os\n")
    assert found.tokens == after
    assert found.top == [[]] * len(after)
    expected = plain_scores(ctx, before + after)
    assert found.logprobs == pytest.approx([expected[len(before) - 1 + i, t] for i, t in enumerate(after)], abs=1e-5)
    assert lloyal.score(ctx, after, prompt=before).logprobs == found.logprobs


def test_what_cannot_be_scored(nano: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(nano)
    for nothing in ("", [], [5]):
        with pytest.raises(InvalidArgument, match="nothing to score"):
            lloyal.score(ctx, nothing)
    with pytest.raises(InvalidArgument, match="top=-1"):
        lloyal.score(ctx, TEXT, top=-1)
    for wrong in ([5, 6, -1], [5, 6, 10**9], [-1, 5]):
        with pytest.raises(InvalidArgument, match="tokens must be from 0 to"):
            lloyal.score(ctx, wrong)
    lloyal.prefill(ctx, "x")
    for outside in (-1, len(ctx.vocab)):
        with pytest.raises(InvalidArgument, match="token"):
            ctx.logits().logprob(outside)
    with pytest.raises(InvalidArgument, match="sequence 0 is not empty"):
        lloyal.score(ctx, TEXT)
    assert lloyal.score(ctx, TEXT, seq_id=1).tokens
    with pytest.raises(lloyal.errors.CacheFull):
        lloyal.score(ctx, [5] * (ctx.n_ctx + 2), seq_id=1)
    assert ctx.memory.seq_pos_max(1) == -1


def test_the_text_goes_on_where_the_prompt_ends() -> None:
    """Also where a tokenizer ends what it reads."""
    found = []
    for overrides in ({}, {"tokenizer.ggml.add_eos_token": True}):
        with lloyal.Model(lloyal.models.path(), kv_overrides=overrides) as model:
            assert model.vocab.add_eos is bool(overrides)
            with lloyal.Context(model, n_ctx=256, n_threads=1) as ctx:
                found.append(lloyal.score(ctx, "import sys\n", prompt="import os\n").logprobs)
    assert found[0] == found[1]


def test_numbers_that_are_too_large_for_a_perplexity() -> None:
    assert lloyal.Score([1], [-1000.0], [[]]).perplexity == math.inf
    assert math.isnan(lloyal.Score([], [], []).perplexity)


def test_few_outputs_at_once(nano: lloyal.Model, new_context: Make) -> None:
    few = lloyal.score(new_context(nano, n_seq_max=2, n_outputs_max=4), TEXT)
    assert few.total == pytest.approx(lloyal.score(new_context(nano), TEXT).total, abs=0.1)


def test_the_models_own_pooling_counts() -> None:
    with lloyal.Model(lloyal.models.path(), kv_overrides={"llama.pooling_type": 3}) as model:
        assert (lloyal.embed(model, TEXT, n_threads=1) == lloyal.embed(model, TEXT, pooling="last", n_threads=1)).all()


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_vectors_are_those_of_one_text_at_a_time(model: lloyal.Model, pooling: str) -> None:
    rows = lloyal.embed(model, TEXTS, pooling=pooling, n_threads=1)
    assert rows.dtype == np.float32
    assert rows.shape == (len(TEXTS), model.n_embd_out)
    with lloyal.Context(model, n_ctx=256, embeddings=True, pooling=pooling, n_threads=1) as ctx:
        for text, row in list(zip(TEXTS, rows, strict=True))[:5]:
            ctx.memory.clear()
            lloyal.prefill(ctx, text)
            alone = ctx.embeddings(seq_id=0, copy=True)
            assert row == pytest.approx(alone / np.linalg.norm(alone), abs=2e-3)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-5)


def test_vectors_of_nothing_of_one_and_of_too_much(nano: lloyal.Model) -> None:
    assert lloyal.embed(nano, []).shape == (0, nano.n_embd_out)
    one = lloyal.embed(nano, "import os", normalize=False, n_threads=1)
    assert one.shape == (1, nano.n_embd_out)
    assert np.linalg.norm(one) != pytest.approx(1, abs=1e-3)
    with pytest.raises(InvalidArgument, match=r"texts\[1\] has \d+ tokens, the model was trained for"):
        lloyal.embed(nano, ["x", "ab " * nano.n_ctx_train])
    with pytest.raises(InvalidArgument, match="pooling='none' must be"):
        lloyal.embed(nano, "x", pooling="none")
    with pytest.raises(Unsupported, match="does not rank"):
        lloyal.rerank(nano, "x", ["y"])


def ranking_model(folder: Path, template: bytes | None = None) -> Path:
    """An encoder with nano's vocabulary and one output for a pair."""
    nano = parse(Path(lloyal.models.path("nano")).read_bytes())
    recipe = bert()
    tokens = next(pair for pair in nano.pairs if pair.key == b"tokenizer.ggml.tokens")
    recipe.random("token_embd.weight", (len(tokens.value.values), N_EMBD), 0.5)
    recipe.random("cls.output.weight", (1, N_EMBD), 0.5)
    recipe.write(folder / "bert.gguf")
    file = parse((folder / "bert.gguf").read_bytes())
    file.pairs = [p for p in file.pairs if not p.key.startswith(b"tokenizer.") and p.key != b"bert.vocab_size"]
    file.pairs += [pair for pair in nano.pairs if pair.key.startswith(b"tokenizer.")]
    file.pairs += [Pair(b"bert.pooling_type", U32, 4), Pair(b"tokenizer.ggml.token_type_count", U32, 2)]
    if template is not None:
        file.pairs.append(Pair(b"tokenizer.chat_template.rerank", STRING, template))
    path = folder / "rank.gguf"
    path.write_bytes(encode(file).data)
    return path


@pytest.mark.parametrize("template", [None, b"{query}\nanswered by\n{document}"])
def test_ranks_are_those_of_one_pair_at_a_time(tmp_path: Path, template: bytes | None) -> None:
    with lloyal.Model(ranking_model(tmp_path, template)) as model:
        vocab = model.vocab
        texts = ["import os", "x = 1", "def"]
        ranks = lloyal.rerank(model, "files", texts, n_threads=1)
        assert ranks.shape == (3,)
        assert len(set(ranks.tolist())) == 3
        for text, rank in zip(texts, ranks, strict=True):
            if template is None:
                tokens = [vocab.bos] if vocab.add_bos else []
                tokens += vocab.tokenize("files", add_special=False) + vocab.tokenize(text, add_special=False)
            else:
                tokens = vocab.tokenize(f"files\nanswered by\n{text}", add_special=False)
            with lloyal.Context(model, n_ctx=256, embeddings=True, pooling="rank", n_threads=1) as ctx:
                batch = lloyal.Batch()
                batch.extend(tokens, 0, 0, True)
                ctx.decode(batch)
                assert rank == pytest.approx(ctx.embeddings(seq_id=0, copy=True)[0], abs=1e-3)
        assert lloyal.rerank(model, "files", "import os", n_threads=1) == pytest.approx(ranks[:1], abs=1e-3)
        with pytest.raises(InvalidArgument, match="use rerank"):
            lloyal.embed(model, "x")
