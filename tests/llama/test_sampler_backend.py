"""Samplers on the back end: the same tokens as on the CPU, and what llama.cpp aborts on or gets wrong refused."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

import lloyal
from lloyal.errors import InvalidArgument, InvalidBatch, NoLogits
from lloyal.llama import Sampler

PROMPT = "class Reader:\n    def read("
NewContext = Callable[..., lloyal.Context]


@pytest.fixture(params=["nano", "nano-hybrid"])
def model(request: pytest.FixtureRequest) -> lloyal.Model:
    return request.getfixturevalue(request.param.replace("-", "_"))


def generate(ctx: lloyal.Context, sampler: Sampler, n: int = 24, seq_id: int = 0) -> list[int]:
    batch = lloyal.Batch()
    batch.extend(ctx.model.vocab.tokenize(PROMPT), 0, seq_id, "last")
    tokens: list[int] = []
    while True:
        ctx.decode(batch)
        tokens.append(sampler.sample(ctx))
        if len(tokens) == n:
            return tokens
        batch.clear()
        batch.add(tokens[-1], ctx.memory.seq_pos_max(seq_id) + 1, seq_id, True)


def prefill(ctx: lloyal.Context, *seq_ids: int) -> None:
    batch = lloyal.Batch()
    for seq_id in seq_ids:
        batch.extend(ctx.model.vocab.tokenize(PROMPT)[: 4 + seq_id], 0, seq_id, "last")
    ctx.decode(batch)


# Draws depend on the order of the candidates. Here it is the same in both places ...
CHAINS: dict[str, Callable[[int], Sampler]] = {
    "greedy": lambda n: Sampler.chain(Sampler.greedy()),
    "llama_dist": lambda n: Sampler.chain(Sampler.llama_dist(5)),
    "temp, llama_dist": lambda n: Sampler.chain(Sampler.temp(0.7), Sampler.llama_dist(5)),
    "top_p, llama_dist": lambda n: Sampler.chain(Sampler.top_p(0.7), Sampler.llama_dist(5)),
    "min_p, llama_dist": lambda n: Sampler.chain(Sampler.min_p(0.1), Sampler.llama_dist(5)),
    "bias, greedy": lambda n: Sampler.chain(Sampler.logit_bias(n, {70: 2.0, 3: -np.inf}), Sampler.greedy()),
    "penalties, greedy": lambda n: Sampler.chain(Sampler.penalties(n, 16, 1.5, 0.2, 0.1), Sampler.greedy()),
    "top_k, top_p, temp, dist": lambda n: Sampler.chain(
        Sampler.top_k(8), Sampler.top_p(0.9), Sampler.temp(0.8), Sampler.dist(5)
    ),
    "typical, dist": lambda n: Sampler.chain(Sampler.typical(0.9), Sampler.dist(5)),
    "top_k, mirostat_v2": lambda n: Sampler.chain(Sampler.top_k(30), Sampler.mirostat_v2(5, 3.0, 0.1)),
}
# ... and here the CPU sorts them and the back end does not.
SORTED: dict[str, Callable[[int], Sampler]] = {
    "top_k, temp, llama_dist": lambda n: Sampler.chain(Sampler.top_k(6), Sampler.temp(0.8), Sampler.llama_dist(5)),
    "top_k, dist": lambda n: Sampler.chain(Sampler.top_k(6), Sampler.dist(5)),
    "temp_ext, top_k, dist": lambda n: Sampler.chain(
        Sampler.temp_ext(0.9, 0.4, 1.0), Sampler.top_k(6), Sampler.dist(5)
    ),
}


@pytest.mark.parametrize("n_outputs_max_per_seq", [0, 1])
@pytest.mark.parametrize("name", sorted(CHAINS))
def test_same_tokens_as_on_the_cpu(
    nano: lloyal.Model, new_context: NewContext, name: str, n_outputs_max_per_seq: int
) -> None:
    make = CHAINS[name]
    n_vocab = len(nano.vocab)
    expected = generate(new_context(nano), make(n_vocab))
    chain = make(n_vocab)
    ctx = new_context(nano, samplers={0: chain}, n_outputs_max_per_seq=n_outputs_max_per_seq)
    assert generate(ctx, chain) == expected


@pytest.mark.parametrize("name", sorted(SORTED))
def test_same_distribution_as_on_the_cpu(nano: lloyal.Model, new_context: NewContext, name: str) -> None:
    plain = new_context(nano)
    prefill(plain, 0)
    result = SORTED[name](len(nano.vocab)).apply(plain.logits())
    chain = SORTED[name](len(nano.vocab))
    ctx = new_context(nano, samplers={0: chain}, n_outputs_max_per_seq=1)
    prefill(ctx, 0)
    n = 400
    counts = dict.fromkeys(result.ids.tolist(), 0)
    last = nano.vocab.tokenize(PROMPT)[3]
    batch = lloyal.Batch()
    batch.add(last, 3, 0, True)
    for _ in range(n):
        ctx.memory.seq_rm(0, 3, -1)
        ctx.decode(batch)
        counts[chain.sample(ctx)] += 1
    expected = n * result.probs
    assert (
        (np.array(list(counts.values())) - expected) ** 2 / expected
    ).sum() < 35  # chi squared, 5 degrees of freedom


@pytest.mark.parametrize("narrow", [False, True])
def test_penalties(nano: lloyal.Model, new_context: NewContext, narrow: bool) -> None:
    plain = new_context(nano)
    prefill(plain, 0)
    logits = plain.logits(copy=True)
    first = [Sampler.top_k(6)] if narrow else []
    chain = Sampler.chain(*first, Sampler.penalties(len(logits), 4, 1.5, 0.3, 0.2), Sampler.llama_dist(1))
    for token in np.argsort(-logits)[[9, 0, 2, 0, 4]]:
        chain.accept(int(token))
    expected = chain.clone().apply(logits)
    ctx = new_context(nano, samplers={0: chain}, n_outputs_max_per_seq=1)
    prefill(ctx, 0)
    ids = ctx.sampled_candidates()
    assert ids is not None
    found = dict(zip(ids.tolist(), np.asarray(ctx.sampled_logits()), strict=True))
    assert found == pytest.approx(dict(zip(expected.ids.tolist(), expected.logits, strict=True)), rel=1e-4, abs=1e-4)


def test_what_runs_where(nano: lloyal.Model, new_context: NewContext) -> None:
    chain = Sampler.chain(Sampler.top_k(8), Sampler.typical(0.9), Sampler.llama_dist(1))
    ctx = new_context(nano, samplers={0: chain})
    prefill(ctx, 0)
    assert [chain.chain_get(i).name for i in range(3)] == ["top-k", "typical", "dist"]
    assert ctx.sampled_token() is None
    assert ctx.sampled_candidates() is not None
    ctx.set_sampler(0, None)
    whole = Sampler.chain(Sampler.top_k(8), Sampler.llama_dist(1))
    ctx.set_sampler(0, whole)
    prefill(ctx, 1)
    ctx.memory.clear()
    prefill(ctx, 0)
    token = ctx.sampled_token()
    candidates = ctx.sampled_candidates()
    assert candidates is not None
    assert token in candidates
    assert whole.sample(ctx) == token


def test_candidates_logits_and_probabilities(model: lloyal.Model, new_context: NewContext) -> None:
    plain = new_context(model)
    prefill(plain, 0)
    logits = plain.logits(copy=True)
    best = np.argsort(-logits, kind="stable")[:5]
    ctx = new_context(model, samplers={0: Sampler.chain(Sampler.top_k(5), Sampler.temp(0.5), Sampler.llama_dist(1))})
    prefill(ctx, 0)
    candidates, scaled, probs = ctx.sampled_candidates(), ctx.sampled_logits(), ctx.sampled_probs()
    assert candidates is not None
    assert scaled is not None
    assert probs is not None
    order = np.argsort(-np.asarray(scaled), kind="stable")
    assert list(candidates[order]) == list(best)
    assert np.asarray(scaled)[order] == pytest.approx(logits[best] / 0.5, rel=1e-5)
    expected = np.exp(logits[best] / 0.5 - logits[best].max() / 0.5)
    assert np.asarray(probs)[order] == pytest.approx(expected / expected.sum(), rel=1e-4)
    prefill(ctx, 1)
    with pytest.raises(NoLogits, match="stale"):
        scaled[0]


def test_some_sequences_with_and_some_without(nano: lloyal.Model, new_context: NewContext) -> None:
    plain = new_context(nano)
    prefill(plain, 0, 1, 2)
    rows = [plain.logits(i, copy=True) for i in (3, 8, 14)]
    chain = Sampler.chain(Sampler.greedy())
    ctx = new_context(nano, samplers={1: chain})
    prefill(ctx, 0, 1, 2)
    assert np.array_equal(ctx.logits(3, copy=True), rows[0])
    assert np.array_equal(ctx.logits(14, copy=True), rows[2])
    with pytest.raises(NoLogits, match="back end by the chain of sequence 1"):
        ctx.logits(8)
    assert [ctx.sampled_token(i) for i in (3, 8, 14)] == [None, int(rows[1].argmax()), None]
    assert [ctx.sampled_token(i) for i in (-3, -2, -1)] == [None, int(rows[1].argmax()), None]
    assert ctx.sampled_logits(3) is None
    assert chain.sample(ctx, 8) == rows[1].argmax()
    assert Sampler.greedy().sample(ctx, 14) == rows[2].argmax()
    with pytest.raises(InvalidArgument, match="go on with that one"):
        Sampler.greedy().sample(ctx, 8)
    with pytest.raises(InvalidArgument, match="another sequence"):
        chain.sample(ctx, 3)
    for call in (ctx.sampled_token, ctx.sampled_probs, ctx.sampled_logits, ctx.sampled_candidates):
        with pytest.raises(NoLogits):
            call(0)


def test_set_and_unset(nano: lloyal.Model, new_context: NewContext) -> None:
    plain = new_context(nano)
    prefill(plain, 0)
    logits = plain.logits(copy=True)
    ctx = new_context(nano)
    chain = Sampler.chain(Sampler.top_k(3), Sampler.llama_dist(1))
    for _ in range(3):
        prefill(ctx, 0)
        assert np.array_equal(ctx.logits(copy=True), logits)
        ctx.memory.clear()
        ctx.set_sampler(0, chain)
        with pytest.raises(NoLogits):
            ctx.logits()
        prefill(ctx, 0)
        assert chain.sample(ctx) in np.argsort(-logits)[:3]
        ctx.memory.clear()
        ctx.set_sampler(0, None)
        ctx.set_sampler(0, None)
        assert chain.apply(logits).token in np.argsort(-logits)[:3]  # an ordinary sampler again


def test_another_chain_takes_over(nano: lloyal.Model, new_context: NewContext) -> None:
    ctx = new_context(nano)
    first, second = Sampler.chain(Sampler.top_k(2), Sampler.dist(1)), Sampler.chain(Sampler.greedy())
    ctx.set_sampler(0, first)
    ctx.set_sampler(0, second)
    prefill(ctx, 0)
    second.sample(ctx)
    ctx.set_sampler(1, first)
    assert len(first.clone().apply(np.zeros(9, np.float32)).ids) == 2


def test_a_chain_that_runs_cannot_be_used_elsewhere(nano: lloyal.Model, new_context: NewContext) -> None:
    chain = Sampler.chain(Sampler.top_k(3), Sampler.llama_dist(1))
    ctx, other = new_context(nano, samplers={0: chain}), new_context(nano)
    prefill(other, 0)
    for use in (
        lambda: other.set_sampler(0, chain),
        lambda: ctx.set_sampler(1, chain),
        lambda: ctx.set_sampler(0, chain),
        lambda: chain.apply([0.0, 1.0]),
        lambda: chain.chain_add(Sampler.greedy()),
        lambda: chain.chain_remove(0),
        lambda: chain.sample(other),
    ):
        with pytest.raises(InvalidArgument):
            use()
    copy = chain.clone()
    assert copy.sample(other) in range(len(nano.vocab))
    chain.copy(copy)
    copy.copy(chain)
    chain.set_state(chain.state())
    chain.accept(5)
    prefill(ctx, 0)
    chain.sample(ctx)


def test_the_context_keeps_the_chain_and_lets_go_of_it(nano: lloyal.Model, new_context: NewContext) -> None:
    before = lloyal.live_handles()["samplers"]
    ctx = lloyal.Context(nano, n_ctx=256, n_threads=1, samplers={0: Sampler.chain(Sampler.greedy())})
    gc.collect()
    assert lloyal.live_handles()["samplers"] == before + 1
    prefill(ctx, 0)
    expected = ctx.sampled_token()
    ctx.close()
    assert lloyal.live_handles()["samplers"] == before
    chain = Sampler.chain(Sampler.top_k(1), Sampler.llama_dist(1))
    with lloyal.Context(nano, n_ctx=256, n_threads=1, samplers={0: chain}) as ctx:
        prefill(ctx, 0)
        assert chain.sample(ctx) == expected
    again = new_context(nano)
    prefill(again, 0)
    assert chain.sample(again) == expected  # the context is gone: an ordinary sampler
    again.set_sampler(0, chain)


def test_closing_the_sampler_object(nano: lloyal.Model, new_context: NewContext) -> None:
    chain = Sampler.chain(Sampler.greedy())
    ctx = new_context(nano, samplers={0: chain})
    chain.close()
    prefill(ctx, 0)
    assert ctx.sampled_token() is not None


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda n: Sampler.greedy(), "alone"),
        (lambda n: Sampler.chain(), "0 samplers"),
        (lambda n: Sampler.chain(*[Sampler.temp(2)] * 33), "33 samplers"),
        (lambda n: Sampler.chain(Sampler.chain(Sampler.greedy())), "is a chain"),
        (lambda n: Sampler.chain(Sampler.top_k(n + 1), Sampler.llama_dist(1)), r"k up to 768"),
        (lambda n: Sampler.chain(Sampler.top_k(5), Sampler.top_k(6), Sampler.llama_dist(1)), r"k up to 5"),
        (lambda n: Sampler.chain(Sampler.temp(0), Sampler.top_k(2), Sampler.llama_dist(1)), r"k up to 1"),
        (lambda n: Sampler.chain(Sampler.top_k(5), Sampler.greedy()), "candidate i for token i"),
        (lambda n: Sampler.chain(Sampler.top_p(0.5), Sampler.greedy()), "candidate i for token i"),
        (lambda n: Sampler.chain(Sampler.temp(0), Sampler.greedy()), "candidate i for token i"),
        (
            lambda n: Sampler.chain(Sampler.top_k(5), Sampler.logit_bias(n, {9: 1}), Sampler.llama_dist(1)),
            "candidate i for token i",
        ),
        (
            lambda n: Sampler.chain(Sampler.top_k(1), Sampler.temp_ext(1, 0.5, 1), Sampler.llama_dist(1)),
            "more than one candidate",
        ),
        (
            lambda n: Sampler.chain(Sampler.penalties(n + 1, 5, 2.0), Sampler.greedy()),
            "vocabulary of 769, this model has 768",
        ),
        (
            lambda n: Sampler.chain(Sampler.logit_bias(n - 1, {1: 1}), Sampler.greedy()),
            "vocabulary of 767, this model has 768",
        ),
    ],
)
def test_chains_that_llama_cpp_gets_wrong(
    nano: lloyal.Model, new_context: NewContext, make: Callable[[int], Sampler], why: str
) -> None:
    ctx = new_context(nano)
    chain = make(len(nano.vocab))
    with pytest.raises(InvalidArgument, match=why):
        ctx.set_sampler(0, chain)
    prefill(ctx, 0)
    ctx.logits()


@pytest.mark.parametrize("seq_id", [-1, 8, 2**31 - 1])
def test_sequences_that_do_not_exist(nano: lloyal.Model, new_context: NewContext, seq_id: int) -> None:
    ctx = new_context(nano)
    for sampler in (None, Sampler.chain(Sampler.greedy())):
        with pytest.raises(InvalidArgument, match=str(seq_id)):
            ctx.set_sampler(seq_id, sampler)


def test_outputs_that_belong_to_several_sequences_or_are_too_many(nano: lloyal.Model, new_context: NewContext) -> None:
    chain = Sampler.chain(Sampler.llama_dist(1))
    ctx = new_context(nano, samplers={0: chain}, n_outputs_max_per_seq=1)
    batch = lloyal.Batch()
    batch.add(1, 0, [0, 1], True)
    with pytest.raises(InvalidBatch, match="an output belongs to one"):
        ctx.decode(batch)
    batch.clear()
    batch.extend([1, 2, 3], 0, 0, True)
    with pytest.raises(InvalidBatch, match="at most 1 outputs per sequence"):
        ctx.decode(batch)
    prefill(ctx, 0)
    chain.sample(ctx)


def test_several_outputs_of_one_sequence(nano: lloyal.Model, new_context: NewContext) -> None:
    tokens = nano.vocab.tokenize(PROMPT)
    batch = lloyal.Batch()
    batch.extend(tokens, 0, 0, True)
    plain = new_context(nano)
    plain.decode(batch)
    cpu = Sampler.chain(Sampler.temp(0.8), Sampler.llama_dist(3))
    expected = [cpu.sample(plain, i) for i in range(len(tokens))]
    chain = Sampler.chain(Sampler.temp(0.8), Sampler.llama_dist(3))
    ctx = new_context(nano, samplers={0: chain})
    ctx.decode(batch)
    assert [chain.sample(ctx, i) for i in range(len(tokens))] == expected
    assert chain.state() == cpu.state()


# In a process of its own: llama.cpp asserts on what some chains make of their candidates.
ANY_CHAIN = """
import itertools, random, sys
import lloyal
from lloyal.llama import Sampler

model = lloyal.Model(lloyal.models.path("nano-draft"))
n = len(model.vocab)
pool = [
    lambda: Sampler.greedy(), lambda: Sampler.llama_dist(1), lambda: Sampler.dist(1), lambda: Sampler.top_k(5),
    lambda: Sampler.top_k(1), lambda: Sampler.top_k(0), lambda: Sampler.top_p(0.9), lambda: Sampler.min_p(0.1),
    lambda: Sampler.typical(0.5), lambda: Sampler.temp(0.7), lambda: Sampler.temp(0.0), lambda: Sampler.keyed(1),
    lambda: Sampler.temp_ext(0.7, 0.2, 1.0), lambda: Sampler.penalties(n, 8, 1.1, 0.1, 0.1),
    lambda: Sampler.logit_bias(n, {3: 1.0}), lambda: Sampler.xtc(0.5, 0.1, 1, 1), lambda: Sampler.top_n_sigma(1.0),
]
rng = random.Random(int(sys.argv[1]))
chains = list(itertools.product(pool, repeat=2)) + [rng.choices(pool, k=rng.randrange(3, 6)) for _ in range(200)]
attached = 0
for chain in chains:
    most = rng.choice((0, 1))
    with lloyal.Context(model, n_ctx=256, n_threads=1, n_seq_max=2, n_outputs_max_per_seq=most) as ctx:
        try:
            ctx.set_sampler(0, Sampler.chain(*[make() for make in chain]))
            attached += 1
        except lloyal.errors.LloyalError:
            pass  # and the context goes on without
        for pos in range(0, 6, 3):
            batch = lloyal.Batch()
            batch.extend([5, 6, 7], pos, 0, "last" if most else True)
            batch.extend([5, 6, 7], pos, 1, "last")
            ctx.decode(batch)
print(attached, len(chains))
"""


def test_any_chain_is_attached_or_refused() -> None:
    command = [sys.executable, "-P", "-c", ANY_CHAIN, str(random.randrange(2**31))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, (command[-1], done.stderr)
    attached, tried = map(int, done.stdout.split())
    assert tried // 3 < attached < tried
