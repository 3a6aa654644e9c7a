"""Batches, samplers, models and scoring of many texts: the numbered behaviours of docs/liblloyal.md."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import lloyal
from lloyal import Batch, BranchStore, Sampler, Sampling, errors
from tests.branches.reference import DRAW, GREEDY, PROMPT, behaviours, tokens
from tests.decode import feed, same

NewContext = Callable[..., lloyal.Context]


@pytest.fixture
def ctx(nano: lloyal.Model, new_context: NewContext) -> lloyal.Context:
    return new_context(nano, n_seq_max=8)


# Batches


@behaviours("42", "46", "81")
def test_batches_that_are_none(ctx, nano, new_context):
    with pytest.raises(errors.InvalidArgument, match="no tokens"):
        lloyal.prefill(ctx, [])
    with pytest.raises(errors.InvalidBatch):
        ctx.decode(Batch())
    with pytest.raises(TypeError):
        lloyal.prefill(ctx, None)
    with pytest.raises((TypeError, AttributeError)):
        lloyal.prefill(None, [1])
    for n_batch in (0, -1):
        with pytest.raises(errors.InvalidArgument, match="n_batch"):
            new_context(nano, n_batch=n_batch)
    closed = new_context(nano)
    closed.close()
    with pytest.raises(errors.Closed):
        lloyal.prefill(closed, [1])
    assert all(ctx.memory.seq_pos_max(seq) == -1 for seq in range(8))


@behaviours("43", "80")
@pytest.mark.parametrize(("n", "n_batches"), [(5, 1), (32, 1), (50, 2), (100, 4)])
def test_a_prompt_is_read_in_batches(nano, new_context, n, n_batches):
    ctx = new_context(nano, n_batch=32, n_ubatch=32)
    done: list[tuple[int, int]] = []
    assert lloyal.prefill(ctx, range(20, 20 + n), progress=lambda *at: done.append(at)) == n
    assert len(done) == n_batches == math.ceil(n / 32)
    assert done[-1] == (n, n)
    assert ctx.memory.seq_pos_max(0) == n - 1
    assert np.isfinite(ctx.logits(-1, copy=True)).all()


@behaviours("44")
def test_a_failure_says_what_llama_cpp_returned_and_leaves_a_usable_context(nano, new_context):
    ctx = new_context(nano, n_ctx=256, n_batch=64)
    with pytest.raises(errors.CacheFull) as caught:
        lloyal.prefill(ctx, [20] * 300)
    assert caught.value.status == 1
    assert ctx.memory.seq_pos_max(0) == 255, "the batches before the failing one stay"
    ctx.memory.clear()
    assert lloyal.prefill(ctx, [20] * 10) == 10
    with BranchStore(ctx) as store:
        branch = store.create([20] * 200)
        with pytest.raises(errors.CacheFull):
            branch.prefill([20] * 100)
        assert branch.position == 200, "a branch has all of it or nothing"


@behaviours("45", "142")
def test_sequences_are_named_or_the_first(ctx):
    lloyal.prefill(ctx, range(20, 25))
    assert ctx.memory.seq_pos_max(0) == 4
    lloyal.prefill(ctx, range(20, 25), seq_id=5)
    lloyal.prefill(ctx, range(20, 23), seq_id=3)
    assert [ctx.memory.seq_pos_max(seq) for seq in range(8)] == [4, -1, -1, 2, -1, 4, -1, -1]
    with pytest.raises(errors.InvalidArgument, match="seq_id=9"):
        lloyal.prefill(ctx, [1], seq_id=9)
    lloyal.prefill(ctx, [7], seq_id=0)
    assert ctx.memory.seq_pos_max(0) == 5


@behaviours("148", "149", "150")
def test_outputs_are_where_they_were_asked_for(ctx):
    batch = Batch()
    batch.add(20, 0, 0, logits=False)
    ctx.decode(batch)
    with pytest.raises(errors.NoLogits):
        ctx.logits(-1)
    assert ctx.memory.seq_pos_max(0) == 0
    batch.clear()
    batch.add(21, 1, 0, logits=True)
    ctx.decode(batch)
    assert np.abs(ctx.logits(-1, copy=True)).sum() > 0
    batch.clear()
    for seq in range(3):
        batch.add(30 + seq, 0, seq + 1, logits=seq != 1)
    ctx.decode(batch)
    assert ctx.logits(0, copy=True).tobytes() != ctx.logits(2, copy=True).tobytes()
    with pytest.raises(errors.NoLogits):
        ctx.logits(1)
    ctx.memory.clear()
    batch.clear()
    for seq, n in enumerate((5, 3, 7)):
        batch.extend(range(40, 40 + n), 0, seq, "last")
    ctx.decode(batch)
    assert [ctx.memory.seq_pos_max(seq) for seq in range(3)] == [4, 2, 6]
    assert all(np.isfinite(ctx.logits(at, copy=True)).all() for at in (4, 7, 14))
    for at in (0, 5, 13):
        with pytest.raises(errors.NoLogits):
            ctx.logits(at)


@behaviours("151", "152", "148")
def test_one_batch_object_serves_any_number_of_tokens(nano, new_context):
    ctx = new_context(nano, n_seq_max=8, n_batch=16)
    batch = Batch()
    for n in (4, 2, 8):
        ctx.memory.clear()
        batch.clear()
        for seq in range(n):
            batch.add(50 + seq, 0, seq, logits=True)
        ctx.decode(batch)
        assert len({ctx.logits(i, copy=True).tobytes() for i in range(n)}) == n
    ctx.memory.clear()
    one, many = feed(ctx, (0, 0, [20]), (1, 0, range(20, 35)))
    assert [ctx.memory.seq_pos_max(seq) for seq in range(2)] == [0, 14]
    ctx.memory.clear()
    assert same(feed(ctx, (3, 0, [20]))[0], one)
    assert same(feed(ctx, (4, 0, range(20, 35)))[0], many)


# Logits of many texts


def _last_logits(store: BranchStore, texts: list[list[int]]) -> list[np.ndarray]:
    """The logits behind each text, all texts at once."""
    branches = [store.create() for _ in texts]
    store.decode_scatter(list(zip(branches, texts, strict=True)))
    rows = [branch.logits for branch in branches]
    for branch in branches:
        branch.prune()
    return rows


@pytest.fixture
def texts(nano: lloyal.Model) -> list[list[int]]:
    return [
        tokens(nano, text)
        for text in ("import os", "class A:\n    pass\n", PROMPT * 4, "def f(a, b):\n    return a + b", "x")
    ]


@behaviours("153", "154", "155", "156", "157", "158")
@pytest.mark.parametrize("n_batch", [32, 64])
def test_logits_of_many_prompts_are_those_of_each(nano, new_context, texts, n_batch):
    assert len(texts[2]) > 32
    ctx = new_context(nano, n_seq_max=8, n_batch=n_batch)
    with BranchStore(ctx) as store:
        rows = _last_logits(store, texts)
        assert [ctx.memory.seq_pos_max(seq) for seq in range(8)] == [-1] * 8
        alone = new_context(nano, n_batch=n_batch)
        for text, row in zip(texts, rows, strict=True):
            alone.memory.clear()
            lloyal.prefill(alone, text)
            expected = alone.logits(-1, copy=True)
            assert row.argmax() == expected.argmax()
            assert same(row, expected)
        assert np.abs(rows[0] - rows[1]).max() > 1
        assert all(same(a, b) for a, b in zip(_last_logits(store, texts), rows, strict=True))


@behaviours("159", "157")
def test_more_prompts_than_sequences_and_none_at_all(nano, new_context, texts):
    ctx = new_context(nano, n_seq_max=2)
    feed(ctx, (0, 0, [9, 9, 9]))
    with BranchStore(ctx, auto_park=True) as store:
        assert _last_logits(store, []) == []
        rows = _last_logits(store, texts)
        assert [len(row) for row in rows] == [len(ctx.vocab)] * 5
        assert ctx.memory.seq_pos_max(0) == 2, "what others have in the context stays"
    assert len({row.tobytes() for row in rows}) == 5


@behaviours("N27")
def test_ranking_by_the_logits_of_two_answers(nano, new_context):
    """A query that is read once, documents behind it, and the difference of two logits; two callers in one context."""
    documents = [f"text {i}: " + "os sys path "[: i % 12] for i in range(20)]
    yes, no = tokens(nano, "yes")[-1], tokens(nano, "no")[-1]
    queries = ["Is it about files?", "Is it about names?"]
    ctx = new_context(nano, n_seq_max=8, n_ctx=1024, type_k="q4_0", type_v="q4_0", flash_attn="on")

    def scores(store: BranchStore, query: str, progress: list[int]) -> Iterator[float]:
        trunk = store.create(query)
        for begin in range(0, len(documents), 5):
            forks = trunk.fork(5)
            store.decode_scatter(
                [(fork, tokens(nano, text)) for fork, text in zip(forks, documents[begin : begin + 5], strict=True)]
            )
            progress.append(begin + 5)
            for fork in forks:
                yield float(fork.logits[yes] - fork.logits[no])
                fork.prune()

    with BranchStore(ctx, auto_park=True) as a, BranchStore(ctx, auto_park=True) as b:
        seen: tuple[list[int], list[int]] = ([], [])
        both = list(zip(scores(a, queries[0], seen[0]), scores(b, queries[1], seen[1]), strict=True))
        assert seen == ([5, 10, 15, 20], [5, 10, 15, 20])
    assert np.isfinite(both).all()
    alone = new_context(nano, n_ctx=1024, type_k="q4_0", type_v="q4_0", flash_attn="on")
    for which, query in enumerate(queries):
        for i in (0, 7, 19):
            alone.memory.clear()
            lloyal.prefill(alone, nano.vocab.tokenize(query) + tokens(nano, documents[i]))
            row = alone.logits(-1, copy=True)
            assert both[i][which] == pytest.approx(row[yes] - row[no], abs=0.1)
    assert np.std(both, axis=0).min() > 0.5


# Samplers


@behaviours("61")
def test_greedy_takes_the_first_of_the_best(ctx):
    greedy = Sampler.greedy()
    assert greedy.apply([0.0, 1.0, 5.0, 2.0]).token == 2
    assert greedy.apply([1.0, 7.0, 7.0, 7.0]).token == 1
    with pytest.raises(errors.NoLogits):
        greedy.sample(ctx)
    with pytest.raises(errors.InvalidArgument):
        greedy.apply([])
    lloyal.prefill(ctx, PROMPT)
    assert greedy.sample(ctx) == int(ctx.logits(-1, copy=True).argmax())


@behaviours("62", "160")
@pytest.mark.parametrize(
    "sampling",
    [
        DRAW,
        GREEDY,
        Sampling(top_k=3, seed=1),
        Sampling(repeat_penalty=1.2, frequency_penalty=0.1, presence_penalty=0.1, seed=1),
        Sampling(typical_p=0.95, seed=1),
    ],
)
def test_parameters_become_a_sampler(ctx, sampling):
    lloyal.prefill(ctx, PROMPT)
    row = ctx.logits(-1, copy=True)
    assert np.isfinite(row).all()
    assert np.abs(row).sum() > 0
    token = sampling.build(ctx.vocab).sample(ctx)
    assert 0 <= token < len(ctx.vocab)
    assert sampling.build(ctx.vocab).sample(ctx) == token, "the same seed picks the same"
    if sampling.temperature == 0:
        assert token == int(row.argmax())
    if sampling.top_k == 3:
        assert token in np.argsort(-row)[:3]
    ruled = sampling.build(ctx.vocab, grammar="root ::= [ab]+").sample(ctx)
    assert set(ctx.vocab.token_to_piece(ruled)) <= set(b"ab")


@behaviours("63", "144", "160")
def test_grammars_are_copied_with_where_they_stand(ctx):
    vocab = ctx.vocab
    a, b, c = (tokens(ctx, letter)[-1] for letter in "abc")
    rules = Sampler.grammar(vocab, 'root ::= "a" "b" "c"')
    flat = np.zeros(len(vocab), dtype=np.float32)

    def allowed(sampler: Sampler) -> set[int]:
        found = sampler.apply(flat)
        return {int(token) for token, logit in zip(found.ids, found.logits, strict=True) if logit > -math.inf}

    assert a in allowed(rules)
    assert b not in allowed(rules)
    rules.accept(a)
    copy = rules.clone()
    assert b in allowed(copy)
    assert a not in allowed(copy)
    copy.accept(b)
    assert c in allowed(copy)
    assert b in allowed(rules)
    assert c not in allowed(rules)
    with pytest.raises(errors.InvalidArgument):
        copy.accept(a)
    with pytest.raises(errors.InvalidGrammar):
        Sampler.grammar(vocab, "root ::= [a-")
    closed = rules.clone()
    closed.close()
    with pytest.raises(errors.Closed):
        closed.clone()


# Models


@behaviours("55", "56", "58", "59", "60", "161")
def test_a_model_lives_as_long_as_it_is_used(tmp_path: Path):
    path = lloyal.models.path("nano-draft")
    gc.collect()
    before = lloyal.live_handles()["models"]
    model = lloyal.Model(path)
    assert model.size > 0
    assert lloyal.live_handles()["models"] == before + 1
    contexts = [lloyal.Context(model, n_ctx=256, n_threads=1) for _ in range(2)]
    vocab = model.vocab
    model.close()
    for ctx in contexts:
        assert lloyal.prefill(ctx, vocab.tokenize("import os")) > 0
        ctx.close()
    del vocab, model, contexts, ctx
    gc.collect()
    assert lloyal.live_handles()["models"] == before
    for missing in (tmp_path / "none.gguf", f"file://{path}"):
        with pytest.raises(errors.LoadFailed) as caught:
            lloyal.Model(missing)
        assert isinstance(caught.value, OSError)


@behaviours("57", "161")
def test_models_and_contexts_of_many_forms_side_by_side():
    path = lloyal.models.path("nano-draft")
    rows = []
    with lloyal.Model(path, use_mmap=True) as mapped, lloyal.Model(path, use_mmap=False, n_gpu_layers=0) as read:
        assert mapped is not read
        assert mapped.fingerprint == read.fingerprint
        for model, n_ctx, n_batch in ((mapped, 512, 128), (read, 2048, 512), (mapped, 2048, 512)):
            with lloyal.Context(model, n_ctx=n_ctx, n_batch=n_batch, n_threads=1) as ctx:
                assert (ctx.n_ctx, ctx.n_batch) == (n_ctx, n_batch)
                lloyal.prefill(ctx, PROMPT)
                rows.append(ctx.logits(-1, copy=True))
                assert Sampler.greedy().sample(ctx) == int(rows[-1].argmax())
                ctx.memory.seq_rm(0)
                assert ctx.memory.seq_pos_max(0) == -1
    assert same(rows[0], rows[1])
    assert same(rows[1], rows[2])
