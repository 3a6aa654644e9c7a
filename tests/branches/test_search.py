"""Beam search against trying everything."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import lloyal
from lloyal import BranchStore, Sampling, beam_search
from tests.models import N_VOCAB, tiny

LETTERS = 4  # the texts are made of so many tokens, by a grammar


@pytest.fixture(scope="module")
def model():
    with lloyal.Model(tiny("llama")) as model:
        yield model


def context(model: lloyal.Model, n_seq_max: int = 4) -> lloyal.Context:
    return lloyal.Context(
        model, n_ctx=512, n_seq_max=n_seq_max, type_k="f32", type_v="f32", n_threads=1, n_threads_batch=1
    )


def log_softmax(row: np.ndarray, allowed: list[int]) -> dict[int, float]:
    wide = {token: float(row[token]) for token in allowed}
    most = max(wide.values())
    total = math.log(sum(math.exp(value - most) for value in wide.values())) + most
    return {token: value - total for token, value in wide.items()}


def every_text(
    ctx: lloyal.Context, prompt: list[int], length: int, allowed: list[int]
) -> list[tuple[float, list[int]]]:
    """All texts of `length` allowed tokens, with their log-probabilities among those."""
    found = []
    for text in itertools.product(allowed, repeat=length):
        ctx.memory.seq_rm(0)
        total, tokens = 0.0, list(prompt)
        lloyal.prefill(ctx, prompt, pos0=0)
        for i, token in enumerate(text):
            total += log_softmax(np.array(ctx.logits()), allowed)[token]
            tokens.append(token)
            if i < length - 1:
                lloyal.prefill(ctx, [token], pos0=len(tokens) - 1)
        found.append((total, list(text)))
    ctx.memory.seq_rm(0)
    return sorted(found, key=lambda item: -item[0])


@pytest.mark.parametrize("n_seq_max", [2, 8])
def test_a_wide_beam_finds_what_trying_everything_finds(model, n_seq_max):
    prompt, length = [5, 17, 40, 3], 3
    allowed = sorted(np.random.default_rng(1).choice(N_VOCAB - 8, LETTERS, replace=False).tolist())
    with context(model, n_seq_max) as ctx:
        want = every_text(ctx, prompt, length, allowed)
        grammar = bias_only(ctx, allowed)
        beams = beam_search(ctx, prompt, width=LETTERS**length, max_tokens=length, grammar=grammar)
    assert [beam.tokens for beam in beams] == [text for _, text in want]
    assert np.allclose([beam.log_prob for beam in beams], [value for value, _ in want], atol=1e-4)
    assert not any(beam.ended for beam in beams)


def bias_only(ctx: lloyal.Context, allowed: list[int]) -> str:
    """A grammar of single tokens, by their ids."""
    return "root ::= (" + " | ".join(f"<[{token}]>" for token in allowed) + ")*"


def test_a_beam_of_one_is_greedy(model):
    prompt = [9, 2, 77]
    with context(model) as ctx:
        (beam,) = beam_search(ctx, prompt, width=1, max_tokens=12)
        with BranchStore(ctx) as store:
            branch = store.create(prompt, sampling=Sampling(temperature=0))
            greedy = list(branch.generate(12))
            assert beam.log_prob == pytest.approx(sum(branch.log_probs), abs=1e-5)
    assert beam.tokens == greedy


def test_a_longer_text_can_win_by_its_mean(model):
    prompt = [9, 2, 77]
    with context(model) as ctx:
        for penalty in (0.0, 1.0):
            beams = beam_search(ctx, prompt, width=3, max_tokens=6, length_penalty=penalty)
            lengths = [len(beam.tokens) + beam.ended for beam in beams]
            scores = [beam.log_prob / length**penalty for beam, length in zip(beams, lengths, strict=True)]
            assert np.allclose([beam.score for beam in beams], scores)
            assert scores == sorted(scores, reverse=True)
        assert lloyal.kv.Tenancy(ctx).available == ctx.n_seq_max


@pytest.mark.parametrize("bad", [{"width": 0}, {"max_tokens": 0}])
def test_a_search_of_nothing_is_refused(model, bad):
    with context(model) as ctx, pytest.raises(lloyal.errors.InvalidArgument, match="from 1"):
        beam_search(ctx, [1], **bad)


@pytest.mark.parametrize("bad", [-1, -math.inf, math.inf, math.nan, 10**400, "1", None])
def test_a_length_penalty_is_a_number_in_range(model, bad):
    with context(model) as ctx, pytest.raises(lloyal.errors.InvalidArgument, match="length_penalty"):
        beam_search(ctx, [1], length_penalty=bad)
