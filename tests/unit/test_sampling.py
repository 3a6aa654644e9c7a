"""Sampling as a value: what it refuses, and that it builds the chain one would write by hand."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest

import lloyal
from lloyal.errors import InvalidArgument, InvalidGrammar, UnknownParameter
from lloyal.llama import LLAMA_DEFAULT_SEED, Sampler
from lloyal.sampling import Sampling

# Nothing but the random draw.
BARE = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 11}
DRAW = (Sampler.temp(1.0), Sampler.dist(11))


def draws(sampler: Sampler, n: int = 40) -> list[int]:
    """What it picks from `n` random rows, each pick accepted."""
    rows = np.random.default_rng(5).normal(0, 3, (n, 768)).astype(np.float32)
    picked = []
    for row in rows:
        found = sampler.apply(row)
        picked.append(found.token)
        sampler.accept(picked[-1])
    return picked


def names(chain: Sampler) -> list[str]:
    return [chain.chain_get(i).name for i in range(chain.chain_n())]


# The chain by hand, for every field that adds to it.
BY_HAND: dict[str, tuple[dict[str, object], Callable[[lloyal.Vocab], list[Sampler]]]] = {
    "nothing": ({}, lambda vocab: []),
    "top_k": ({"top_k": 5}, lambda vocab: [Sampler.top_k(5)]),
    "top_p": ({"top_p": 0.5}, lambda vocab: [Sampler.top_p(0.5)]),
    "min_p": ({"min_p": 0.2}, lambda vocab: [Sampler.min_p(0.2)]),
    "typical_p": ({"typical_p": 0.4}, lambda vocab: [Sampler.typical(0.4)]),
    "top_n_sigma": ({"top_n_sigma": 1.5}, lambda vocab: [Sampler.top_n_sigma(1.5)]),
    "xtc": (
        {"xtc_probability": 0.6, "xtc_threshold": 0.05},
        lambda vocab: [Sampler.xtc(0.6, 0.05, seed=11)],
    ),
    "penalties": (
        {"repeat_penalty": 1.8, "frequency_penalty": 0.3, "presence_penalty": 0.2, "repeat_last_n": 16},
        lambda vocab: [Sampler.penalties(len(vocab), 16, 1.8, 0.3, 0.2)],
    ),
    "dry": (
        {"dry_multiplier": 0.8, "dry_base": 2.0, "dry_allowed_length": 1},
        lambda vocab: [Sampler.dry(vocab, 0.8, 2.0, 1)],
    ),
    "logit_bias": (
        {"logit_bias": {3: 12.0, 4: -math.inf}},
        lambda vocab: [Sampler.logit_bias(len(vocab), {3: 12.0, 4: -math.inf})],
    ),
    "llama.cpp's defaults": (
        {"top_k": 40, "top_p": 0.95, "min_p": 0.05},
        lambda vocab: [Sampler.top_k(40), Sampler.top_p(0.95), Sampler.min_p(0.05)],
    ),
    "everything": (
        {
            "top_k": 30,
            "top_p": 0.9,
            "min_p": 0.01,
            "typical_p": 0.9,
            "top_n_sigma": 3.0,
            "xtc_probability": 0.5,
            "repeat_penalty": 1.3,
            "dry_multiplier": 0.5,
            "logit_bias": {7: 4.0},
        },
        lambda vocab: [
            Sampler.logit_bias(len(vocab), {7: 4.0}),
            Sampler.penalties(len(vocab), 64, 1.3),
            Sampler.dry(vocab, 0.5),
            Sampler.top_n_sigma(3.0),
            Sampler.top_k(30),
            Sampler.typical(0.9),
            Sampler.top_p(0.9),
            Sampler.min_p(0.01),
            Sampler.xtc(0.5, 0.1, seed=11),
        ],
    ),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_the_chain_is_the_one_by_hand(nano, case):
    fields, stages = BY_HAND[case]
    built = Sampling(**(BARE | fields)).build(nano.vocab)
    by_hand = Sampler.chain(*stages(nano.vocab), *(sampler.clone() for sampler in DRAW))
    assert names(built) == names(by_hand)
    assert draws(built) == draws(by_hand)
    keyed = Sampling(**(BARE | fields), noise="keyed").build(nano.vocab, position=3)
    by_hand.chain_remove(by_hand.chain_n() - 1)
    by_hand.reset()
    by_hand.chain_add(Sampler.keyed(11, 3))
    assert draws(keyed) == draws(by_hand)


def test_temperature_0_is_greedy_and_penalties_still_count(nano):
    assert names(Sampling(temperature=0).build(nano.vocab)) == ["greedy"]
    built = Sampling(temperature=0, repeat_penalty=1.5).build(nano.vocab)
    assert draws(built) == draws(Sampler.chain(Sampler.penalties(768, 64, 1.5), Sampler.greedy()))


def test_the_history_counts_for_the_penalties(nano):
    row = np.zeros(768, dtype=np.float32)
    row[[5, 6]] = 3.0, 2.0
    sampling = Sampling(temperature=0, presence_penalty=2.0)
    for history, expected in (((), 5), ([9, 5, 9], 6)):
        found = sampling.build(nano.vocab, history=history).apply(row)
        assert found.token == expected


def test_generation_counts_its_prompt(nano, new_context):
    # A ban so strong that no token of the prompt can come again.
    prompt = list(range(40, 60))
    sampling = Sampling(seed=1, presence_penalty=1e6, repeat_last_n=1000)
    generation = lloyal.generate(new_context(nano), prompt, max_tokens=30, sampling=sampling)
    tokens = list(generation)
    assert len({*prompt, *tokens}) == len(prompt) + len(tokens)


def test_a_grammar_rules_the_text(nano, new_context):
    sampler = Sampling(seed=2).build(nano.vocab, grammar='root ::= ("ab" | "ba"){3}')
    text = "".join(lloyal.generate(new_context(nano), "def ", max_tokens=20, sampling=sampler).text())
    assert len(text) == 6
    assert {text[i : i + 2] for i in (0, 2, 4)} <= {"ab", "ba"}
    with pytest.raises(InvalidGrammar):
        Sampling().build(nano.vocab, grammar="root ::= missing")


def test_seeds(nano):
    one, other = (Sampling(seed=seed, temperature=2.0, top_k=0).build(nano.vocab) for seed in (1, 2))
    again = Sampling(seed=1, temperature=2.0, top_k=0).build(nano.vocab)
    assert (one.seed, other.seed) == (1, 2)
    assert draws(one) == draws(again) != draws(other)
    unseeded = [Sampling(temperature=2.0, top_k=0).build(nano.vocab) for _ in range(2)]
    assert unseeded[0].seed != unseeded[1].seed  # equal once in 2**32
    repeated = Sampling(temperature=2.0, top_k=0, seed=unseeded[0].seed).build(nano.vocab)
    assert draws(repeated) == draws(unseeded[0])


def test_it_is_a_value():
    sampling = Sampling(temperature=0.5, logit_bias={1: 2.0})
    assert sampling == Sampling(temperature=0.5, logit_bias={1: 2.0}) != Sampling(temperature=0.5)
    assert hash(sampling) == hash(Sampling(temperature=0.5, logit_bias={1: 2.0}))
    assert pickle.loads(pickle.dumps(sampling)) == copy.deepcopy(sampling) == sampling
    assert dataclasses.replace(sampling, seed=3).seed == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        sampling.temperature = 1.0
    biases = {1: 2.0}
    frozen = Sampling(logit_bias=biases)
    biases[1] = 5.0
    assert frozen.logit_bias == {1: 2.0}


def test_numpy_numbers_are_numbers(nano):
    sampling = Sampling(temperature=np.float32(0.5), top_k=np.int64(7), seed=np.uint32(9))
    assert draws(sampling.build(nano.vocab)) == draws(Sampling(temperature=0.5, top_k=7, seed=9).build(nano.vocab))


def test_an_unknown_keyword_names_the_nearest():
    with pytest.raises(UnknownParameter, match="'temprature'; did you mean 'temperature'"):
        Sampling(temprature=1.0)  # codespell:ignore
    with pytest.raises(UnknownParameter, match="top_kk"):
        dataclasses.replace(Sampling(), top_kk=1)
    with pytest.raises(TypeError):
        Sampling(0.8)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("temperature", "top_p", "min_p", "dry_multiplier") for value in (-0.1, math.nan)),
        *((name, 1.1) for name in ("top_p", "min_p", "typical_p", "xtc_probability", "xtc_threshold")),
        *((name, math.inf) for name in ("temperature", "top_n_sigma", "repeat_penalty", "presence_penalty")),
        *((name, "warm") for name in ("temperature", "frequency_penalty", "seed", "top_k")),
        *((name, True) for name in ("temperature", "top_k", "seed")),
        *((name, None) for name in ("temperature", "top_k", "repeat_penalty")),
        *(("noise", value) for value in ("gumbel", None, 1, "")),
        *((name, -1) for name in ("top_k", "repeat_last_n", "dry_allowed_length", "seed")),
        *((name, 10**400) for name in ("temperature", "top_k", "top_p", "repeat_last_n")),
        ("top_k", 1.5),
        ("repeat_penalty", 0),
        ("dry_base", 0.9),
        ("seed", LLAMA_DEFAULT_SEED),
    ],
)
def test_a_value_out_of_range(name, value):
    with pytest.raises(InvalidArgument, match=f"^{name}="):
        Sampling(**{name: value})


@pytest.mark.parametrize("token", [-1, 768])
def test_a_bias_outside_the_vocabulary(nano, token):
    with pytest.raises(InvalidArgument, match=str(token)):
        Sampling(logit_bias={token: 1.0}).build(nano.vocab)
