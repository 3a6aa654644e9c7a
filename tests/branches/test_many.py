"""More branches than a context has sequences, and as many forks as one likes."""

from __future__ import annotations

import gc
import random
import resource
from contextlib import suppress

import numpy as np
import pytest

import lloyal
from lloyal import BranchStore, Sampling
from lloyal.errors import CacheFull
from tests.models import KINDS, N_VOCAB, tiny

GREEDY = Sampling(temperature=0)


def context(name: str, **more: object) -> lloyal.Context:
    parameters = {"n_ctx": 1024, "n_seq_max": 8, "type_k": "f32", "type_v": "f32", "n_threads": 1} | more
    return lloyal.Context(lloyal.Model(tiny(name)), n_threads_batch=1, **parameters)


def tokens(n: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, N_VOCAB - 8, n).tolist()


def go_on(name: str, n_branches: int, rounds: int) -> None:
    """Branches of one prompt read tokens of their own, in an order at random; each ends up where it would be alone."""
    rng = random.Random(n_branches)
    prompt = tokens(20, 0)
    with context(name) as ctx, BranchStore(ctx, auto_park=True) as store:
        root = store.create(prompt, sampling=GREEDY)
        branches = root.fork(n_branches)
        own: dict[lloyal.Branch, list[int]] = {branch: [] for branch in branches}
        for _ in range(rounds):
            rng.shuffle(branches)
            items = [(branch, tokens(rng.randint(1, 3), rng.randrange(2**32))) for branch in branches]
            store.decode_scatter(items)
            for branch, read in items:
                own[branch] += read
        assert all(branch.tokens == prompt + own[branch] for branch in branches)
        for branch in rng.sample(branches, 12):
            with context(name, n_seq_max=1) as alone:
                lloyal.prefill(alone, prompt)
                lloyal.prefill(alone, own[branch])
                want = np.array(alone.logits())
            scale = float(np.abs(want).max())
            assert float(np.abs(branch.logits - want).max()) / scale < 2e-2
        assert sum(branch.seq_id is not None and branch.state == "resident" for branch in branches) <= 8
    left = lloyal.live_handles()
    assert (left["branches"], left["checkpoints"]) == (0, 0)


@pytest.mark.parametrize("name", ["llama", "gemma3", "mamba2", "lfm2", "qwen35"])
def test_more_branches_than_sequences(name):
    assert name in KINDS
    go_on(name, 60, 3)


@pytest.mark.full
@pytest.mark.parametrize("name", list(KINDS))
def test_a_thousand_branches(name):
    go_on(name, 1000, 2)


def test_ten_thousand_forks_of_one_root():
    with context("llama") as ctx, BranchStore(ctx) as store:
        root = store.create(tokens(500, 1), sampling=Sampling(seed=1))
        available = store.available
        forks = root.fork(10_000)
        assert store.available == available, "a fork that has read nothing has taken a sequence"
        assert {fork.state for fork in forks} == {"pending"}
        assert forks[-1].tokens == root.tokens
        first = forks[5000]
        assert first.step() == root.step()
        assert np.array_equal(forks[0].logits, forks[9999].logits)


def test_forking_and_pruning_leaves_memory_as_it_was():
    with context("llama") as ctx, BranchStore(ctx) as store:
        root = store.create(tokens(100, 1), sampling=Sampling(seed=1))

        def pairs(n: int) -> int:
            for _ in range(n):
                root.fork().prune()
            gc.collect()
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        before = pairs(20_000)
        assert pairs(200_000) - before < 2000, "kilobytes more than before"
        assert root.children == []


def test_a_chain_of_forks_is_as_deep_as_one_likes():
    """What they share must not be freed by recursion."""
    with context("llama", n_seq_max=4) as ctx, BranchStore(ctx) as store:
        branch = store.create(tokens(5, 1), sampling=GREEDY)
        kept = branch.checkpoint("cells")
        for _ in range(20_000):
            fork = branch.fork()
            fork.detach()
            branch.prune()
            branch = fork
        assert branch.step() >= 0
        kept.release()


def test_tokens_of_long_texts_are_shared_and_right():
    """Blocks of tokens that forks share, at every length around theirs, as lists that nobody shares."""
    rng = random.Random("blocks")
    with context("llama", n_ctx=4096, n_seq_max=8) as ctx, BranchStore(ctx, auto_park=True) as store:
        root = store.create(tokens(700, 1), sampling=GREEDY)
        texts = {root: tokens(700, 1)}
        for i in range(120):
            branch = rng.choice(list(texts))
            how = rng.choice(["fork", "read", "read", "rewind"])
            if how == "fork" and len(texts) < 12:
                texts[branch.fork()] = list(texts[branch])
            elif how == "rewind":
                n = rng.choice([1, 1, 2, 255, 256, 257, 300])
                if n < len(texts[branch]):
                    branch.rewind(n)
                    del texts[branch][-n:]
            else:
                read = tokens(rng.choice([1, 1, 30, 255, 256, 257]), i)
                if len(texts[branch]) + len(read) < 1500:
                    branch.prefill(read)
                    texts[branch] += read
            for one, text in texts.items():
                begin = rng.randrange(len(text))
                assert one.tokens == text
                assert one._token_ids_native(begin) == text[begin:]
                assert [token for token, *_ in one._tokens_native(begin)] == text[begin:]


@pytest.mark.parametrize("name", ["lfm2-swa", "gemma3"])
def test_long_reads_of_many_over_a_window(name: str) -> None:
    """Longer together than a micro-batch, each reads what it reads alone."""
    read = 0
    for seed in range(6):
        rng = random.Random(seed)
        with lloyal.Model(tiny(name)) as model, lloyal.Context(
            model, n_ctx=512, n_seq_max=6, n_ubatch=8, n_threads=1, type_k="f32", type_v="f32", flash_attn="off"
        ) as ctx, BranchStore(ctx) as store:  # fmt: skip
            branches = [store.create(list(range(8, 40)))]
            for _ in range(5):
                branches.append(rng.choice(branches).fork())
                items = [(branch, tokens(rng.randrange(1, 60), rng.randrange(2**32))) for branch in branches]
                with suppress(CacheFull):
                    store.decode_scatter([item for item in items if rng.random() < 0.6])
            one = rng.choice(branches)
            with context(name, n_seq_max=1) as alone:
                lloyal.prefill(alone, one.tokens)
                want = np.array(alone.logits())
            assert np.abs(one.logits - want).max() / np.abs(want).max() < 2e-2
            read += len(branches)
    assert read > 12
