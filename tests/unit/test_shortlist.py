"""Picks from few tokens of a row: what the same chain picks when it is applied to all of them."""

from __future__ import annotations

import random

import numpy as np
import pytest

import lloyal
from lloyal import BranchStore, Context, Sampler, Sampling
from lloyal.errors import InvalidArgument

JSON = r"""
root ::= "{" pair ("," pair)* "}"
pair ::= string ":" value
value ::= string | [0-9]+ | root
string ::= "\"" [a-z ]* "\""
"""
BEGINNINGS = ["", "{", '{"', '{"ab', '{"ab"', '{"ab":12', '{"ab":{"x":"y"}']


@pytest.fixture(scope="module")
def ctx():
    with (
        lloyal.Model(lloyal.models.path("nano")) as model,
        Context(model, n_ctx=512, n_seq_max=2, n_threads=1) as ctx,
    ):
        yield ctx


def some_sampling(rng: random.Random, n_vocab: int) -> Sampling:
    tokens = [rng.randrange(n_vocab) for _ in range(rng.choice([0, 0, 3]))]
    return Sampling(
        temperature=rng.choice([0, 0.8]),
        top_k=rng.choice([0, 1, 3, 10, 30, 100]),
        top_p=rng.choice([1, 0.9]),
        min_p=rng.choice([0, 0.05]),
        typical_p=rng.choice([1, 0.9]),
        repeat_penalty=rng.choice([1, 1.3, 5, 0.7]),
        presence_penalty=rng.choice([0, 0, 3, -3]),
        frequency_penalty=rng.choice([0, 0, 1, -1]),
        dry_multiplier=rng.choice([0, 0, 2]),
        logit_bias={token: rng.choice([-np.inf, -5.0, 2.0, 30.0]) for token in tokens},
        seed=rng.randrange(1000),
        noise=rng.choice(["stream", "keyed"]),
    )


def some_row(rng: random.Random, n: int, seed: int) -> np.ndarray:
    row = np.random.default_rng(seed).normal(0, 3, n).astype(np.float32)
    if rng.random() < 0.15:  # many are equal
        row = np.round(row * 2) / np.float32(2)
    if rng.random() < 0.3:  # what is left may be less than what is kept
        row[np.random.default_rng(seed).random(n) < rng.choice([0.5, 0.95, 0.995])] = -np.inf
    if rng.random() < 0.2:  # the best lie together
        row[: rng.choice([1, 40, 200])] += 20
    return row


def pick(branch) -> tuple[int, float] | str:
    try:
        token = branch.sample()
    except InvalidArgument as error:
        return "none" if "no token is left" in str(error) else str(error)
    return token, branch._info_native()["probability"]


def expected(chain, row) -> tuple[int, float] | str:
    left = chain.apply(row)
    if left.selected is None or left.logits[left.selected] == -np.inf:
        return "none"
    p = float(left.probs[left.selected])
    return int(left.ids[left.selected]), p if p > 0 else 1.0


@pytest.mark.parametrize("ruled", [False, True])
def test_the_same_pick_as_from_all(ctx, ruled):
    rng = random.Random(f"shortlist {ruled}")
    vocab = ctx.vocab
    grammar = JSON if ruled else None
    picks = 0
    for case in range(400):
        sampling = some_sampling(rng, vocab.n_tokens)
        row = some_row(rng, vocab.n_tokens, case)
        prompt = [rng.randrange(vocab.n_tokens) for _ in range(rng.choice([1, 70]))]
        if rng.random() < 0.5:  # the largest are those to be penalized
            prompt += np.argsort(-row)[: rng.choice([3, 30, 36, 50, 60])].tolist()
        said = vocab.tokenize(rng.choice(BEGINNINGS), add_special=False) if ruled else []
        bias = {
            rng.randrange(vocab.n_tokens): rng.choice([-np.inf, -8.0, 8.0, 40.0]) for _ in range(rng.choice([0, 4]))
        }
        with BranchStore(ctx) as store:
            branch = store.create(prompt, sampling=sampling, grammar=grammar)
            chain = sampling.build(vocab, grammar=grammar, history=prompt)
            for token in said:
                branch.commit(token)
                chain.accept(token)
            branch.set_logits(row)
            branch.set_bias(bias)
            for token, value in bias.items():
                row[token] += np.float32(value)
            found = pick(branch)
            assert found == expected(chain, row), (case, sampling, bias)
            picks += found != "none"
    assert picks > 200


def test_equal_logits_take_the_first(ctx):
    n = ctx.vocab.n_tokens
    with BranchStore(ctx) as store:
        branch = store.create([1], sampling=Sampling(temperature=0, repeat_penalty=1.5), grammar="root ::= [a-z ]+")
        row = np.zeros(n, np.float32)
        row[::7] = 4
        branch.set_logits(row)
        legal = np.flatnonzero(branch.legal_logits() == 4)
        assert branch.sample() == legal[0]
        branch.set_logits(np.zeros(n, np.float32))
        assert branch.sample() == np.flatnonzero(branch.legal_logits() == 0)[0]


def test_greedy_that_is_not_the_last_keeps_all(ctx):
    """It points at the largest and leaves the others to who comes next."""
    row = np.random.default_rng(1).normal(0, 1, ctx.vocab.n_tokens).astype(np.float32)
    with BranchStore(ctx) as store:
        branch = store.create([1])
        for seed in range(20):
            chain = Sampler.chain(Sampler.greedy(), Sampler.temp(5.0), Sampler.dist(seed))
            branch._set_sampler_native(chain, chain.clone(), False, False)
            branch.set_logits(row)
            assert branch.sample() == chain.clone().apply(row).token
