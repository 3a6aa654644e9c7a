"""The rules by which guesses are accepted: what each promises, held against plain steps, and its drafts."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any, Literal

import pytest

import lloyal
from lloyal import BranchStore, Sampling
from lloyal.errors import InvalidArgument
from lloyal.native import step as native
from lloyal.speculative import DraftModel, NGram, Pick, Speculator
from tests.speculative import reference

PROMPT = 'def fibonacci(n):\n    """Return the n-th number."""\n'
GRAMMAR = "root ::= [a-z0-9 =()+*:,.\\n-]*"
BARE: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
KEYED = {
    "bare": Sampling(**BARE, seed=3, noise="keyed"),
    "filters": Sampling(temperature=0.8, seed=4, noise="keyed", typical_p=0.9),
    "penalties": Sampling(temperature=1.0, seed=5, noise="keyed", repeat_penalty=1.3, dry_multiplier=0.4),
    "greedy": Sampling(temperature=0, repeat_penalty=1.3),
}

context = partial(reference.context, n_ctx=2048, n_seq_max=12)


@pytest.mark.parametrize("ruled", [False, True])
@pytest.mark.parametrize("name", KEYED)
def test_a_model_knows_what_it_would_pick_itself(name: str, ruled: bool, nano_draft: lloyal.Model) -> None:
    """Noise at the right positions, penalties, grammar and biases, in branches with seeds of their own."""
    sampling = KEYED[name]
    with context(nano_draft) as ctx, context(nano_draft) as again, BranchStore(ctx) as store:
        root = store.create(PROMPT, sampling=sampling, grammar=GRAMMAR if ruled else None)
        root.set_bias({ctx.vocab.tokenize("x", add_special=False)[0]: 2.0, ctx.vocab.eos: -math.inf})
        branches = [root, *root.fork(3, seed=50)]
        branches[1].commit(ctx.vocab.tokenize("y", add_special=False)[0])
        speculator = Speculator(ctx, DraftModel(again), n=5, accept="coupled")
        for _ in range(8):
            speculator.step([branch for branch in branches if not branch.ended])
        stats = speculator.stats
        assert stats.guessed > 100
        assert stats.kept >= stats.guessed - 5 * (stats.guessed // 100)  # a near tie costs all behind it


def test_a_guess_does_not_know_a_generator(nano_draft: lloyal.Model) -> None:
    """Then it is the most probable of what the chain leaves: here of tokens that the penalties have turned around."""
    sampling = Sampling(**BARE, repeat_penalty=3.0, seed=1)
    with context(nano_draft) as ctx, context(nano_draft) as again, BranchStore(ctx) as store:
        branch = store.create(PROMPT, sampling=sampling, grammar=GRAMMAR)
        drafter = DraftModel(again)
        draws = native.draw(ctx, [branch])
        text = drafter.start()
        drafter.feed(text, [*branch.tokens, *draws.tokens])
        guesses = drafter.guess([text], 4, [Pick(branch, draws, 0, False)])[0]
        chain = Sampling(temperature=0, repeat_penalty=3.0)
        plain = store.create(branch.tokens, sampling=chain, grammar=GRAMMAR)
        plain.commit(draws.tokens[0])
        assert guesses == list(plain.generate(4))


def test_a_guess_to_be_judged_by_a_generator_is_drawn_from_another(nano_draft: lloyal.Model) -> None:
    """Of 40 guesses by the model itself a few are what it picks next: as many as have a chance to, not all."""
    with context(nano_draft) as ctx, context(nano_draft) as again, BranchStore(ctx) as store:
        root = store.create(PROMPT, sampling=Sampling(temperature=3.0, top_k=50, min_p=0.0, top_p=1.0, seed=1))
        same = 0
        for seed in range(40):
            branch = root.fork(seed=seed)
            draws = native.draw(ctx, [branch])
            sampler = draws.sampler(0, True)
            draws.verify([])
            if not branch.ended:
                batch = lloyal.Batch()  # the row that the branch has
                batch.extend(branch.tokens, 0, 0, "last")
                again.memory.clear()
                again.decode(batch)
                same += sampler.sample(again, -1) == branch.sample()
            branch.prune()
        assert same < 15


def test_a_draft_that_is_left_with_nothing_stops(nano_draft: lloyal.Model) -> None:
    with context(nano_draft) as ctx, context(nano_draft) as again, BranchStore(ctx) as store:
        branch = store.create(PROMPT, sampling=KEYED["bare"], grammar='root ::= "ab"')
        branch.set_bias({token: -math.inf for token in range(ctx.vocab.n_tokens) if ctx.vocab.is_eog(token)})
        speculator = Speculator(ctx, DraftModel(again), n=5)
        while "ab" not in branch.text:
            speculator.step([branch])
        with pytest.raises(InvalidArgument, match="no token is left"):
            speculator.step([branch])


@pytest.mark.parametrize("drafter", ["draft", "ngram"])
def test_rejection_sampling_says_the_same_again(drafter: str, nano: lloyal.Model, nano_draft: lloyal.Model) -> None:
    """With one seed, drafter and number of guesses; at temperature 0 it says what plain steps say."""

    def text(sampling: Sampling) -> tuple[list[int], int]:
        with context(nano) as ctx, context(nano_draft) as small:
            made = DraftModel(small) if drafter == "draft" else NGram(3, 1)
            speculator = Speculator(ctx, made, n=4, accept="ratio")
            tokens = list(speculator.generate(PROMPT, 100, sampling=sampling, grammar=GRAMMAR))
            return tokens, speculator.stats.kept

    hot = Sampling(temperature=0.9, repeat_penalty=1.1, seed=5)
    one = text(hot)
    assert one[1] > 0
    assert text(hot) == one
    assert text(dataclasses.replace(hot, seed=6)) != one
    greedy = Sampling(temperature=0, repeat_penalty=1.3)
    with context(nano) as ctx, BranchStore(ctx) as store:
        assert text(greedy)[0] == list(store.create(PROMPT, sampling=greedy, grammar=GRAMMAR).generate(100))


@pytest.mark.full
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_coupled_guesses_are_kept_nearly_as_often_as_any(
    temperature: float, nano: lloyal.Model, nano_draft: lloyal.Model
) -> None:
    prompts = [
        "def fibonacci(n):\n",
        "import os\n\n",
        "class Stack:\n",
        "for i in range(10):\n",
        "x = 1\ny = 2\n",
        PROMPT,
    ]

    def kept(accept: Literal["coupled", "ratio"], noise: Literal["keyed", "stream"]) -> float:
        with context(nano) as ctx, context(nano_draft) as small:
            speculator = Speculator(ctx, DraftModel(small), n=1, accept=accept)
            for i in range(120):
                sampling = Sampling(temperature=temperature, noise=noise, seed=i)
                list(speculator.generate(prompts[i % len(prompts)], 100, sampling=sampling))
            return speculator.stats.kept / speculator.stats.guessed

    assert kept("coupled", "keyed") >= 0.9 * kept("ratio", "stream")


def test_a_rule_that_is_not_for_the_sampling(nano: lloyal.Model) -> None:
    with context(nano) as ctx, BranchStore(ctx) as store:
        with pytest.raises(InvalidArgument, match="accept='likely' must be one of 'exact', 'coupled', 'ratio'"):
            Speculator(ctx, NGram(), accept="likely")  # type: ignore[arg-type]
        branches = [store.create("a", sampling=Sampling(seed=1, noise=noise)) for noise in ("keyed", "stream")]
        with pytest.raises(InvalidArgument, match=r"at index 1: accept='coupled' is for Sampling\(noise='keyed'\)"):
            Speculator(ctx, NGram(), accept="coupled").step(branches)
        with pytest.raises(InvalidArgument, match=r"at index 0: accept='ratio' is for Sampling\(noise='stream'\)"):
            Speculator(ctx, NGram(), accept="ratio").step(branches)
        with pytest.raises(TypeError, match="cannot be made directly"):
            native.DraftSampler()
        with pytest.raises(IndexError):
            native.draw(ctx, branches).sampler(2)
