"""Rejection sampling: draws of the target's distribution, whatever the guesses are drawn from."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

import lloyal
from lloyal import BranchStore, Context, Sampling
from lloyal.errors import Aborted, InvalidArgument
from lloyal.native import step
from lloyal.native.checkpoint import abort_arm
from lloyal.native.step import DraftSampler, ratio
from lloyal.speculative import DraftModel, Pick, Speculator
from tests.speculative import reference

PROMPT = "x = "
LENGTH = 3  # of the texts whose distribution is looked at
GRAMMAR = "root ::= [a-z0-9 =()+*:,.\\n-]*"


def most(freedom: int, z: float = 3.72) -> float:
    """What chi-square exceeds once in 10 000, by Wilson and Hilferty."""
    part = 2 / (9 * freedom)
    return freedom * float(1 - part + z * math.sqrt(part)) ** 3


def check_counts(counts: np.ndarray, p: np.ndarray) -> None:
    """Chi-square, with what is expected fewer than 8 times taken together."""
    expected = p / p.sum() * counts.sum()
    assert counts[expected == 0].sum() == 0
    order = np.argsort(expected)
    n_rare = int(np.searchsorted(np.cumsum(expected[order]), 8)) + 1
    n_rare = max(n_rare, int((expected < 8).sum()))
    rare, rest = order[:n_rare], order[n_rare:]
    got = np.append(counts[rest], counts[rare].sum())
    want = np.append(expected[rest], expected[rare].sum())
    assert len(got) > 1 or len(p[p > 0]) == 1
    if len(got) > 1:
        assert ((got - want) ** 2 / want).sum() < most(len(got) - 1)


RNG = np.random.default_rng(1)
SHAPES: dict[str, tuple[Sequence[float], Sequence[float]]] = {
    "equal": ([0.5, 0.3, 0.2], [0.5, 0.3, 0.2]),
    "similar": ([0.5, 0.3, 0.15, 0.05], [0.4, 0.4, 0.1, 0.1]),
    "turned around": ([0.7, 0.2, 0.1], [0.1, 0.2, 0.7]),
    "disjoint": ([0.6, 0.4, 0, 0], [0, 0, 0.3, 0.7]),
    "half disjoint": ([0.5, 0.25, 0.25, 0], [0, 0, 0.5, 0.5]),
    "sharp target": ([0, 1, 0], [0.3, 0.3, 0.4]),
    "sharp draft": ([0.3, 0.3, 0.4], [0, 1, 0]),
    "sums of their own": ([3, 2, 1], [0.01, 0.02, 0.01]),
    "many": (RNG.dirichlet(np.full(300, 0.3)).tolist(), RNG.dirichlet(np.full(300, 0.3)).tolist()),
    "nearly equal": ([0.5, 0.5 - 1e-7, 1e-7], [0.5 + 1e-7, 0.5 - 1e-7, 0.0]),
}


@pytest.mark.parametrize("certain", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_the_function_draws_from_the_target(name: str, certain: bool) -> None:
    """Guesses that are certain are as good, only fewer are kept: whatever they come from."""
    p, q = (np.array(list_) for list_ in SHAPES[name])
    n = 200_000 if name != "many" else 100_000
    rng = np.random.default_rng(len(name))
    guesses = rng.choice(len(q), n, p=q / q.sum())
    uniforms = rng.random((n, 2))
    order = rng.permutation(len(p))
    target, draft = ([(int(i), float(list_[i])) for i in order] for list_ in (p, q))
    made = np.array(ratio(target, [] if certain else draft, guesses.tolist(), uniforms.tolist()))
    check_counts(np.bincount(made, minlength=len(p)), p)
    p, q = p / p.sum(), q / q.sum()
    kept = (p * q).sum() if certain else np.minimum(p, q).sum()
    assert abs((made == guesses).mean() - kept) <= 4 * math.sqrt(kept * (1 - kept) / n) + 1e-9


def test_what_the_function_is_given_is_checked() -> None:
    for p, q in ([], []), ([(1, 0.0)], []), ([(1, 1.0)], [(2, 0.0)]):
        with pytest.raises(InvalidArgument, match="there is nothing to draw"):
            ratio(p, q, [1], [(0.5, 0.5)])
    with pytest.raises(InvalidArgument, match=r"p\(1\)"):
        ratio([(1, -1.0)], [], [1], [(0.5, 0.5)])
    with pytest.raises(InvalidArgument, match="q"):
        ratio([(1, 1.0)], [(1, math.nan)], [1], [(0.5, 0.5)])


context = partial(reference.context, n_seq_max=24)


class Forgetful:
    """A drafter that knows the last tokens of a text only."""

    def __init__(self, model: lloyal.Model) -> None:
        self.ctx = context(model, n_seq_max=1)

    def check(self, vocab: lloyal.Vocab) -> None:
        pass

    def start(self) -> list[int]:
        return []

    def feed(self, text: list[int], tokens: Sequence[int]) -> None:
        text += tokens

    def propose(self, texts: Sequence[Any], n: int) -> list[list[int]]:
        raise NotImplementedError

    def guess(self, texts: Sequence[Any], n: int, picks: Sequence[Pick]) -> list[list[int]]:
        return [self.draw(text, pick.sampler(), n) for text, pick in zip(texts, picks, strict=True)]

    def draw(self, text: list[int], sampler: DraftSampler, n: int) -> list[int]:
        self.ctx.memory.clear()
        tokens, end = text[-3:], 0
        made: list[int] = []
        for _ in range(n):
            batch = lloyal.Batch()
            batch.extend(tokens, end, 0, "last")
            self.ctx.decode(batch)
            end += len(tokens)
            made.append(sampler.sample(self.ctx, -1))
            tokens = made[-1:]
        return made


class Lucky(Forgetful):
    """One that takes guesses out of a hat, with some that are right in it, and cannot say how probable they were."""

    def __init__(self, texts: dict[tuple[int, ...], float], n_prompt: int) -> None:
        self.texts, self.n_prompt, self.rng = texts, n_prompt, random.Random(1)

    guess = None  # type: ignore[assignment]

    def propose(self, texts: Sequence[Any], n: int) -> list[list[int]]:
        return [self.take(tuple(text[self.n_prompt :]), n) for text in texts]

    def take(self, said: tuple[int, ...], n: int) -> list[int]:
        able = [text for text in self.texts if text[: len(said)] == said]
        if not able:
            return []
        text = self.rng.choices(able, [self.texts[text] ** 0.5 for text in able])[0]
        return list(text[len(said) :][:n])


SAMPLINGS = {
    "few": Sampling(temperature=1.3, top_k=3, min_p=0.0, top_p=1.0, seed=1),
    "penalties": Sampling(temperature=1.5, top_k=4, min_p=0.05, top_p=0.97, repeat_penalty=1.5, seed=2),
    "xtc": Sampling(temperature=1.2, top_k=4, xtc_probability=0.5, xtc_threshold=0.15, seed=3),
}
DRAFTERS = ["draft", "forgetful", "lucky"]


def exact_distribution(
    ctx: Context, sampling: Sampling, grammar: str | None, bias: dict[int, float]
) -> dict[tuple[int, ...], float]:
    """Of the first tokens of a text, by plain chains over plain rows; an end is the last token of a shorter one."""
    prompt = ctx.vocab.tokenize(PROMPT)
    found: dict[tuple[int, ...], float] = {}
    with BranchStore(ctx) as store:
        waiting: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
        while waiting:
            said, p = waiting.pop()
            if len(said) == LENGTH or (said and ctx.vocab.is_eog(said[-1])):
                found[said] = found.get(said, 0.0) + p
                continue
            with store.create([*prompt, *said]) as branch:
                row = np.array(branch.logits)
            for token, value in bias.items():
                row[token] += value
            cases = [(1.0, sampling)]
            if sampling.xtc_probability:
                off, on = (
                    Sampling(temperature=sampling.temperature, top_k=sampling.top_k, xtc_probability=x,
                             xtc_threshold=sampling.xtc_threshold)
                    for x in (0.0, 1.0)
                )  # fmt: skip
                cases = [(1 - sampling.xtc_probability, off), (sampling.xtc_probability, on)]
            for share, how in cases:
                chain = how.build(ctx.vocab, grammar=grammar, history=prompt)
                for token in said:
                    chain.accept(token)
                left = chain.apply(row)
                waiting += [
                    ((*said, int(token)), p * share * float(q))
                    for token, q in zip(left.ids, left.probs, strict=True)
                    if q > 0
                ]
    return found


def sample_loop(
    speculator: Speculator, sampling: Sampling, grammar: str | None, bias: dict[int, float], n: int, forks: bool
) -> dict[tuple[int, ...], int]:
    ctx, found = speculator.ctx, dict[tuple[int, ...], int]()
    with BranchStore(ctx) as store:
        root = store.create(PROMPT, sampling=sampling, grammar=grammar)
        root.set_bias(bias)
        for begin in range(0, n, 16):
            branches = root.fork(16, seed=1000 + begin)
            texts: list[list[int]] = [[] for _ in branches]
            for turn in range(LENGTH):
                going = [i for i, text in enumerate(texts) if len(text) < LENGTH and not branches[i].ended]
                if not going:
                    break
                if forks and turn == 1:  # what is left of a refused guess goes along
                    for i in going:
                        fork = branches[i].fork(seed=10**6 + begin + i)
                        fork.detach()
                        branches[i].prune()
                        branches[i] = fork
                for i, tokens in zip(going, speculator.step([branches[i] for i in going]), strict=True):
                    texts[i] += tokens
            for branch, text in zip(branches, texts, strict=True):
                key = tuple(text[:LENGTH])
                found[key] = found.get(key, 0) + 1
                branch.prune()
    return found


def check_loop(model: lloyal.Model, nano_draft: lloyal.Model, name: str, drafter: str, ruled: bool, n: int) -> None:
    sampling, grammar = SAMPLINGS[name], GRAMMAR if ruled else None
    with context(model) as ctx:
        bias = {ctx.vocab.eos: 9.0}
        p = exact_distribution(ctx, sampling, grammar, bias)
        made: Any = (
            Lucky(p, len(ctx.vocab.tokenize(PROMPT)))
            if drafter == "lucky"
            else DraftModel(context(nano_draft))
            if drafter == "draft"
            else Forgetful(model)
        )
        speculator = Speculator(ctx, made, n=2, accept="ratio")
        counts = sample_loop(speculator, sampling, grammar, bias, n, forks=drafter == "draft")
        assert set(counts) <= set(p)
        assert any(len(text) < LENGTH for text in counts), "no text has ended"
        keys = sorted(p)
        check_counts(np.array([counts.get(key, 0) for key in keys]), np.array([p[key] for key in keys]))
        assert speculator.stats.kept > 0.01 * speculator.stats.guessed > 0


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_the_loop_draws_from_the_target(drafter: str, nano: lloyal.Model, nano_draft: lloyal.Model) -> None:
    check_loop(nano, nano_draft, "penalties", drafter, drafter == "forgetful", 800)


@pytest.mark.full
@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("name", SAMPLINGS)
def test_the_loop_draws_from_the_target_20_000_times(
    name: str, drafter: str, nano: lloyal.Model, nano_draft: lloyal.Model
) -> None:
    check_loop(nano, nano_draft, name, drafter, name == "few", 20_000)


@pytest.mark.parametrize("name", ["nano", "nano-hybrid"])
def test_a_step_that_fails_changes_nothing(name: str, nano_draft: lloyal.Model) -> None:
    """Neither the sampler, nor what is left of a refused guess: what goes on after it is what would have come."""
    sampling = Sampling(temperature=1.5, repeat_penalty=1.2, seed=5)

    def run(fails: bool) -> tuple[list[int], int]:
        with lloyal.Model(lloyal.models.path(name)) as model, context(model) as ctx, BranchStore(ctx) as store:
            speculator = Speculator(ctx, DraftModel(context(nano_draft)), n=3, accept="ratio")
            branch = store.create(PROMPT, sampling=sampling, grammar=GRAMMAR)
            failed = 0
            for i in range(12):
                if fails:
                    before = branch.tokens, branch._sampler_state_native(), branch.perplexity
                    draws = step.draw(ctx, [branch])
                    guesses = [draws.tokens[0]] * 3
                    abort_arm(1 + 3 * i)  # while the guesses are read
                    try:
                        draws.verify([guesses], True)
                    except Aborted:
                        failed += 1
                        assert (branch.tokens, branch._sampler_state_native(), branch.perplexity) == before
                    else:
                        raise AssertionError("nothing was computed")
                    finally:
                        abort_arm(-1)
                speculator.step([branch])
            return branch.tokens, failed

    tokens, failed = run(True)
    assert failed == 12
    assert tokens == run(False)[0]


def test_what_is_left_of_a_guess_is_for_these_logits(nano: lloyal.Model) -> None:
    """Forks draw from it too, and a guess that ends the text is picked by the next step; other biases forget it."""
    with context(nano) as ctx, BranchStore(ctx) as store:
        eos, ends = ctx.vocab.eos, []
        root = store.create(PROMPT, sampling=Sampling(temperature=1.0, top_k=5, seed=1))
        for seed in range(40):
            branch = root.fork(seed=seed)
            branch.set_bias({eos: float(max(branch.logits) - branch.logits[eos])})
            twin = branch.fork(seed=seed)
            draws = step.draw(ctx, [branch])
            if draws.ends == [True]:
                continue
            draws.verify([[eos]], True)
            assert twin.step() == branch.tokens[-1]
            # The numbers that have decided are not drawn again.
            assert twin._sampler_state_native() != branch._sampler_state_native()
            fork, other = branch.fork(seed=9), branch.fork(seed=9)
            other.set_bias({eos: -math.inf})
            ends.append(branch.step() == eos)
            assert branch.ended == ends[-1]
            assert (fork.step() == eos) == ends[-1]
            assert other.step() != eos
            branch.prune_subtree()
        assert any(ends)
        assert not all(ends)
