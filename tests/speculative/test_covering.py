"""Exactness over every pair of model, drafter, guesses, sequences, sampling, rules, ring and cache."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from lloyal.branch import Branch
from lloyal.speculative import Speculator
from tests.speculative.covering import (
    FACTORS,
    LEAST_REAL,
    LEAST_RUNS,
    REAL,
    SMALL,
    Outcome,
    Run,
    allowed,
    carry_out,
    design,
    pairs,
    short_design,
    table,
)

N_SHORT, N_FULL = 60, 500
MOST_TIES = 0.005  # of all tokens
MOST_OF_A_MODEL = 0.02  # hot draws from a whole vocabulary, and weights of 8 bits, have most of them
DONE: list[Outcome] = []


def note(outcome: Outcome) -> None:
    DONE.append(outcome)
    run = outcome.run
    assert outcome.ties <= 3 + 0.03 * outcome.tokens
    if run.drafter == "synthetic" and run.n is not None and not outcome.ties:
        assert outcome.kept == outcome.guessed > 0.4 * outcome.tokens


@pytest.mark.parametrize("run", short_design(), ids=str)
def test_the_tokens_of_plain_steps(run: Run) -> None:
    note(carry_out(run, N_SHORT))


@pytest.mark.full
@pytest.mark.parametrize(
    "run",
    [
        pytest.param(run, marks=pytest.mark.real if run.real else ())
        for run in sorted(design(), key=lambda run: list(FACTORS["model"]).index(run.model))
    ],
    ids=str,
)
def test_every_pair(run: Run) -> None:
    """So many tokens of each text; on a real model of all texts together."""
    note(carry_out(run, -(-N_FULL // run.sequences) if run.real else N_FULL))


def test_near_ties_are_rare(capsys: pytest.CaptureFixture[str]) -> None:
    """Of all tokens that the tests above have compared in this process; and each drafter has guessed something."""
    full = [outcome for outcome in DONE if outcome.run in design() and outcome.tokens >= N_FULL]
    if full:
        with capsys.disabled():
            print("\n" + table(full))
    models = {outcome.run.model for outcome in DONE}
    for some, most in (models, MOST_TIES), *(({model}, MOST_OF_A_MODEL) for model in models):
        tokens = sum(outcome.tokens for outcome in DONE if outcome.run.model in some)
        ties = sum(outcome.ties for outcome in DONE if outcome.run.model in some)
        assert ties <= most * tokens, f"{ties} of {tokens} tokens of {some}\n{table(DONE)}"
    for drafter in {outcome.run.drafter for outcome in DONE if outcome.run.n is not None}:
        some = [outcome for outcome in DONE if outcome.run.drafter == drafter]
        assert sum(outcome.guessed for outcome in some) > 0, drafter


# The design


def test_all_runs_are_allowed_and_each_level_is_met() -> None:
    assert len(design()) >= LEAST_RUNS
    assert sum(run.real for run in design()) >= LEAST_REAL
    assert design.__wrapped__() == design()
    for runs, models in ((design(), (*SMALL, *REAL)), (short_design(), SMALL)):
        assert all(allowed(dataclasses.asdict(run)) for run in runs)
        for factor, levels in (FACTORS | {"model": models}).items():
            assert {getattr(run, factor) for run in runs} == set(levels), factor


@pytest.mark.full
def test_all_pairs_are_met() -> None:
    """Of all that an allowed run has, found by looking at each run there could be."""
    factors = {factor: range(len(levels)) for factor, levels in FACTORS.items()}
    wanted = {
        pair
        for chosen in itertools.product(*factors.values())
        if allowed(levels := {f: FACTORS[f][i] for f, i in zip(factors, chosen, strict=True)})
        for pair in pairs(levels)
    }
    assert wanted == {pair for run in design() for pair in pairs(dataclasses.asdict(run))}


# What it must find


class KeepsAWrongGuess(Speculator):
    """After some steps a token is read that the branch would not pick."""

    steps = 0

    def step(self, branches: Sequence[Branch]) -> list[list[int]]:
        self.steps += 1
        if self.steps != 6:
            return super().step(branches)
        legal = branches[0].legal_logits()
        token = int(np.where(np.isfinite(legal), legal, np.inf).argmin())
        branches[0].commit(token)
        return [[token], *super().step(branches[1:])]


class LeavesAWrongRow(Speculator):
    """After some steps the memory holds a row of another token than the text says."""

    steps = 0

    def step(self, branches: Sequence[Branch]) -> list[list[int]]:
        self.steps += 1
        read = super().step(branches)
        if self.steps == 6:
            last = branches[0].tokens[-1]
            branches[0].rewind(1)
            branches[0].prefill([last + 1 if last < 100 else last - 1])
        return read


class DrawsTwice(Speculator):
    """After some steps a random number is lost."""

    steps = 0

    def step(self, branches: Sequence[Branch]) -> list[list[int]]:
        self.steps += 1
        if self.steps == 6:
            branches[0].sample()
        return super().step(branches)


DEFECTS = {"a wrong guess": KeepsAWrongGuess, "a wrong row": LeavesAWrongRow, "a draw too many": DrawsTwice}


@pytest.mark.parametrize("model", ["nano", "nano-hybrid", "qwen35"])
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_found(defect: str, model: str) -> None:
    made: Callable[..., Speculator] = DEFECTS[defect]
    run = Run(0, model, "ngram", 4, 2, 0.7, "stream", False, False, 0, "exact")
    assert carry_out(run, N_SHORT).ties <= 1
    with pytest.raises(AssertionError, match="no near tie"):
        carry_out(run, N_SHORT, made)


@pytest.mark.parametrize("model", ["nano", "nano-hybrid", "qwen35"])
def test_a_text_goes_on_behind_a_near_tie(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the rows, the rules and the chance of plain steps: one token is wrong, and none behind it."""
    found: list[int] = []
    monkeypatch.setattr("tests.speculative.covering._check_tie", lambda *args: found.append(len(args[-2])))
    run = Run(3, model, "synthetic-half", 4, 2, 0.7, "stream", True, True, 0, "exact")
    outcome = carry_out(run, N_SHORT, KeepsAWrongGuess)
    assert outcome.ties == len(found) == 1
    assert 0 < found[0] < N_SHORT
