"""Draws keyed by seed and position: NumPy's Philox as the reference, and nothing else that they depend on."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

import lloyal
from lloyal import BranchStore, Context, Sampling
from lloyal.llama import Sampler

KEYED = Sampling(temperature=1.0, seed=3, noise="keyed")


def noise(seed: int, position: int, n: int) -> NDArray[np.float64]:
    """Gumbel noise of the first `n` tokens."""
    words = np.array(
        [
            np.random.Philox(counter=((position << 64) + token - 1) % 2**256, key=seed).random_raw()  # it adds 1 first
            for token in range(n)
        ],
        dtype=np.uint64,
    )
    return -np.log(-np.log(((words >> np.uint64(11)) + np.uint64(1)) * 2.0**-53))


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**32 - 2])
def test_it_picks_the_largest_sum_of_logit_and_gumbel_noise(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for position in (0, 1, 77, 2**31, 2**45):
        row = rng.normal(0.0, 2.0, 300).astype(np.float32)
        want = np.argmax(row.astype(np.float64) + noise(seed, position, 300))
        assert Sampler.keyed(seed, position).apply(row).token == want


def test_draws_follow_the_distribution() -> None:
    """Over positions, and over seeds."""
    logits = np.log([0.4, 0.3, 0.2, 0.06, 0.04]).astype(np.float32)
    expected = 4000 * np.exp(logits) / np.exp(logits).sum()
    for draws in (
        [Sampler.keyed(3, position).apply(logits).token for position in range(4000)],
        [Sampler.keyed(seed, 3).apply(logits).token for seed in range(4000)],
    ):
        counts = np.bincount(draws, minlength=5)
        assert ((counts - expected) ** 2 / expected).sum() < 23.5  # 4 degrees of freedom: one seed in 10 000


def test_neighbours_are_independent() -> None:
    """Pairs of draws at positions, and of seeds, that are next to each other: a table of 3 by 3."""
    logits = np.log([0.5, 0.3, 0.2]).astype(np.float32)
    p = np.exp(logits)
    draws = np.array([[Sampler.keyed(seed, pos).apply(logits).token for pos in range(70)] for seed in range(70)])
    for one, other in ((draws[:, :-1:2], draws[:, 1::2]), (draws[:-1:2], draws[1::2])):
        table = np.bincount((3 * one + other).ravel(), minlength=9)
        expected = table.sum() * np.outer(p, p).ravel()
        assert ((table - expected) ** 2 / expected).sum() < 31.8  # 8 degrees of freedom: one in 10 000


def test_the_other_candidates_and_their_order_are_no_matter() -> None:
    rng = np.random.default_rng(5)
    for position in range(50):
        row = rng.normal(0.0, 2.0, 400).astype(np.float32)
        whole = Sampler.keyed(9, position).apply(row)
        kept = Sampler.chain(Sampler.top_k(30), Sampler.keyed(9, position)).apply(row)
        again = np.full(400, -np.inf, np.float32)
        again[kept.ids] = row[kept.ids]
        assert Sampler.keyed(9, position).apply(again).token == kept.token
        if whole.token in kept.ids:
            assert kept.token == whole.token
        assert whole.probs == pytest.approx(np.exp(row) / np.exp(row).sum(), rel=1e-4)


def test_equals_and_what_cannot_be_drawn() -> None:
    assert Sampler.keyed(1).apply([-np.inf, 0.5, -np.inf]).token == 1
    assert Sampler.keyed(1).apply([-np.inf, -np.inf]).token is None
    row = np.array([-np.inf, 0.0, -np.inf, 1.0, -np.inf], np.float32)
    assert {Sampler.keyed(1, position).apply(row).token for position in range(100)} == {1, 3}
    assert Sampler.keyed(1).apply([1e30, -1e30, 3e38]).token == 2


def test_a_pick_moves_nothing_and_a_token_one_position() -> None:
    row = np.random.default_rng(1).normal(0.0, 1.0, 50).astype(np.float32)
    sampler = Sampler.keyed(4, 10)
    for position in range(10, 40):
        picks = {sampler.apply(row).token for _ in range(3)} | {Sampler.keyed(4, position).apply(row).token}
        assert len(picks) == 1
        sampler.accept(position % 7)  # whatever it was
    sampler.reset()
    assert sampler.apply(row).token == Sampler.keyed(4).apply(row).token
    assert Sampler.keyed().seed != Sampler.keyed().seed


@pytest.fixture(scope="module")
def ctx(nano: lloyal.Model) -> Context:
    return Context(nano, n_ctx=2048, n_seq_max=20, n_threads=1)


def test_generate_and_branches_write_one_text(ctx: Context) -> None:
    """Also from where an earlier one has stopped, and after a rewind."""
    prompt = ctx.vocab.tokenize("def f(x):\n")
    with BranchStore(ctx) as store:
        branch = store.create(prompt, sampling=KEYED)
        want = list(branch.generate(60))
        branch.rewind(25)
        assert branch.sample() == branch.sample() == want[35]
        assert list(branch.generate(25)) == want[35:]
        assert list(store.create([*prompt, *want[:20]], sampling=KEYED).generate(40)) == want[20:]
        forks = store.create(prompt, sampling=KEYED).fork(2)
        assert list(forks[0].generate(60)) == list(forks[1].generate(60)) == want
        assert len({tuple(fork.generate(20)) for fork in store.create(prompt, sampling=KEYED).fork(8, seed=3)}) > 4
    with Context(ctx.model, n_ctx=512, n_threads=1) as alone:
        assert list(lloyal.generate(alone, prompt, max_tokens=20, sampling=KEYED)) == want[:20]
        assert list(lloyal.generate(alone, want[19:20], max_tokens=40, sampling=KEYED)) == want[20:]


def test_a_position_goes_on_through_another_sampling(ctx: Context) -> None:
    with BranchStore(ctx) as store:
        branch = store.create("def f(x):\n", sampling=KEYED)
        list(branch.generate(5))
        branch.prefill([9, 9])  # read only: positions all the same
        want = list(store.create(branch.tokens, sampling=KEYED).generate(12))
        branch.set_sampling(Sampling(temperature=0.5, seed=3, noise="keyed"))
        branch.set_sampling(KEYED)
        assert list(branch.generate(12)) == want
        branch.rewind(12)
        branch.reseed(4)
        assert list(branch.generate(12)) != want
        branch.rewind(12)
        branch.reseed(3)
        assert list(branch.generate(12)) == want


def test_n_texts_draw_from_seeds_of_their_own(ctx: Context) -> None:
    texts: list[list[int]] = [[] for _ in range(8)]
    for i, token in lloyal.generate(ctx, "def f(x):\n", n=8, max_tokens=20, sampling=KEYED):
        texts[i].append(token)
    with BranchStore(ctx) as store:
        for i in (0, 1, 7):
            sampling = Sampling(temperature=1.0, seed=3 + i, noise="keyed")
            assert list(store.create("def f(x):\n", sampling=sampling).generate(20)) == texts[i]
    assert len(set(map(tuple, texts))) > 4
