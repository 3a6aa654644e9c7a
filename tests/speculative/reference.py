"""What speculation is held against: the same text by plain steps, and what the tests of it share."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

import lloyal
from lloyal import BranchStore, Context, Sampling

PROMPT = 'def fibonacci(n):\n    """Return the n-th number."""\n'
N = 120
SAMPLINGS = {
    "greedy": Sampling(temperature=0),
    "warm": Sampling(temperature=0.7, seed=5),
    "hot": Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=6),
    "penalties": Sampling(temperature=0.7, repeat_penalty=1.2, presence_penalty=0.3, seed=7),
    "greedy, penalties": Sampling(temperature=0, repeat_penalty=1.3),
    "keyed": Sampling(temperature=0.7, seed=9, noise="keyed"),
    "keyed, hot": Sampling(
        temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.2, dry_multiplier=0.3, seed=3, noise="keyed"
    ),
    "all": Sampling(temperature=0.9, dry_multiplier=0.5, xtc_probability=0.3, seed=8),
}
GRAMMAR = "root ::= [a-z0-9 =()+*:,.\\n-]*"
NEAR_TIES: list[int] = []  # where `check_same` has found one


def context(model: lloyal.Model, **more: Any) -> Context:
    """With f32 and without flash attention: a batch of another size decides next to nothing otherwise."""
    exact = {"type_k": "f32", "type_v": "f32", "flash_attn": "off", "n_threads": 1, "n_threads_batch": 1}
    return Context(model, **({"n_ctx": 1024, "n_seq_max": 6} | exact | more))


def plain(ctx: Context, prompt: str, sampling: Sampling, grammar: str | None = None, n: int = N) -> list[int]:
    with BranchStore(ctx) as store:
        branch = store.create(prompt, sampling=sampling, grammar=grammar)
        return list(branch.generate(n))


def check_same(
    ctx: Context, prompt: str, sampling: Sampling, grammar: str | None, got: list[int], want: list[int]
) -> None:
    """Equal; or up to a token that the noise of batches decides: a row of one token is computed by other means."""
    at = next((i for i, (a, b) in enumerate(itertools.zip_longest(got, want)) if a != b), None)
    if at is None:
        return
    with BranchStore(ctx) as store:
        branch = store.create(prompt, sampling=sampling, grammar=grammar)
        for token in want[:at]:
            assert branch.step() == token
        alone = np.array(branch.logits)
        other = store.create(branch.tokens[:-8], sampling=sampling)
        other.prefill(branch.tokens[-8:])
        noise = 3 * np.abs(other.logits - alone).max()
        chain = sampling.build(ctx.vocab, grammar=grammar, history=branch.tokens)
        chain.set_state(branch._sampler_state_native())
        rng = np.random.default_rng(at)
        picks = set()
        for _ in range(500):
            token = chain.clone().apply(alone + rng.uniform(-noise, noise, len(alone)).astype(np.float32)).token
            picks.add(None if token is None or ctx.vocab.is_eog(token) else token)
    mine, plain_one = got[at] if at < len(got) else None, want[at] if at < len(want) else None
    assert {mine, plain_one} <= picks, f"after {at} tokens {mine} instead of {plain_one}, which is no near tie: {picks}"
    NEAR_TIES.append(at)
