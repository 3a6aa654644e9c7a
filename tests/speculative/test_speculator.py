"""Speculation: the tokens of plain steps, whatever is guessed; and never a branch that has changed without them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pytest

import lloyal
from lloyal import BranchStore, Sampling
from lloyal.errors import Aborted, InvalidArgument
from lloyal.native.checkpoint import abort_arm
from lloyal.speculative import Drafter, DraftModel, NGram, Speculator, Synthetic
from tests.models import tiny
from tests.speculative.reference import GRAMMAR, NEAR_TIES, PROMPT, SAMPLINGS, N, check_same, context, plain


@pytest.fixture(scope="module", params=["nano", "nano-hybrid"])
def model(request: pytest.FixtureRequest) -> Iterator[lloyal.Model]:
    with lloyal.Model(lloyal.models.path(request.param)) as model:
        yield model


DRAFTERS: dict[str, Callable[[list[int], list[int], lloyal.Model], Drafter]] = {
    "ngram": lambda prompt, text, draft: NGram(),
    "ngram 1": lambda prompt, text, draft: NGram(3, 1),
    "draft": lambda prompt, text, draft: DraftModel(context(draft)),
    "right": lambda prompt, text, draft: Synthetic([*prompt, *text], 1.0),
    "mostly": lambda prompt, text, draft: Synthetic([*prompt, *text], 0.8),
    "wrong": lambda prompt, text, draft: Synthetic([*prompt, *text], 0.0),
}


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_tokens_are_those_of_plain_steps(
    sampling: str, drafter: str, model: lloyal.Model, nano_draft: lloyal.Model
) -> None:
    rng = random.Random(f"{sampling} {drafter}")
    how, grammar = SAMPLINGS[sampling], GRAMMAR if rng.random() < 0.4 else None
    n_rs_seq = rng.choice([0, 3])
    with context(model, n_rs_seq=n_rs_seq) as ctx:
        want = plain(ctx, PROMPT, how, grammar)
        made = DRAFTERS[drafter](ctx.vocab.tokenize(PROMPT), want, nano_draft)
        n = rng.choice([None, 1, 2, 4, 7, 16])
        speculator = Speculator(ctx, made, n=n)
        got = list(speculator.generate(PROMPT, N, sampling=how, grammar=grammar))
        check_same(ctx, PROMPT, how, grammar, got, want)
        stats = speculator.stats
        assert stats.kept <= stats.guessed
        if drafter == "right" and n is not None and got == want and len(want) == N:
            assert stats.kept == stats.guessed
            assert stats.tokens_per_step > 0.8 * min(n + 1, N)
        if drafter == "wrong":
            assert stats.tokens_per_step < 1.1


@pytest.mark.parametrize("sampling", ["greedy", "penalties"])
def test_many_branches_at_once(sampling: str, model: lloyal.Model) -> None:
    """Of different lengths, with drafters of one text each, and more of them than sequences."""
    prompts = [PROMPT, "class A:\n", "import os\n\n", "x = 1\ny = 2\n", "for i in range(10):\n", PROMPT + "    if"]
    with context(model, n_seq_max=4) as ctx:
        want = [plain(ctx, prompt, SAMPLINGS[sampling], n=50) for prompt in prompts]
        speculator = Speculator(ctx, NGram(3, 1), n=4)
        with BranchStore(ctx, auto_park=True) as store:
            branches = [store.create(prompt, sampling=SAMPLINGS[sampling]) for prompt in prompts]
            got: list[list[int]] = [[] for _ in prompts]
            while going := [i for i, branch in enumerate(branches) if not branch.ended and len(got[i]) < 50]:
                for i, tokens in zip(going, speculator.step([branches[i] for i in going]), strict=True):
                    got[i] += [token for token in tokens if not ctx.vocab.is_eog(token)]
        for prompt, a, b in zip(prompts, got, want, strict=True):
            check_same(ctx, prompt, SAMPLINGS[sampling], None, a[:50], b)


def test_a_fork_and_a_rewind_in_between(model: lloyal.Model) -> None:
    with context(model) as ctx, BranchStore(ctx) as store:
        speculator = Speculator(ctx, NGram(3, 1), n=4)
        branch = store.create(PROMPT, sampling=SAMPLINGS["penalties"])
        branch.set_bias({token: -np.inf for token in range(ctx.vocab.n_tokens) if ctx.vocab.is_eog(token)})
        for _ in range(10):
            speculator.step([branch])
        fork = branch.fork()
        branch.rewind(3)
        for _ in range(5):
            speculator.step([branch, fork])
        for one in (branch, fork):
            with BranchStore(ctx) as other:
                again = other.create(one.tokens, sampling=Sampling(temperature=0))
                assert abs(again.logits - one.logits).max() < 1e-2


def test_a_drafter_that_fails_changes_nothing(model: lloyal.Model) -> None:
    class Failing(NGram):
        fails = False

        def propose(self, texts: Any, n: int) -> Any:
            if self.fails:
                raise ZeroDivisionError
            return super().propose(texts, n)

    with context(model) as ctx, BranchStore(ctx) as store:
        drafter = Failing(3, 1)
        speculator = Speculator(ctx, drafter, n=4)
        want = plain(ctx, PROMPT, SAMPLINGS["warm"], n=40)
        branch = store.create(PROMPT, sampling=SAMPLINGS["warm"])
        got: list[int] = []
        for i in range(40):
            before = branch.tokens, branch._sampler_state_native()
            drafter.fails = i % 3 == 1
            if drafter.fails:
                with pytest.raises(ZeroDivisionError):
                    speculator.step([branch])
                assert (branch.tokens, branch._sampler_state_native()) == before
            else:
                got += speculator.step([branch])[0]
        n = min(len(want), len(got))
        check_same(ctx, PROMPT, SAMPLINGS["warm"], None, got[:n], want[:n])


def test_what_it_is_given_is_checked(model: lloyal.Model) -> None:
    with context(model) as ctx, context(model) as other, BranchStore(other) as store:
        with pytest.raises(InvalidArgument, match="n=65 must be an integer from 0 to 64"):
            Speculator(ctx, NGram(), n=65)
        with pytest.raises(InvalidArgument, match="shortest"):
            NGram(1, 2)
        branch = store.create("a", sampling=SAMPLINGS["greedy"])
        with pytest.raises(InvalidArgument, match="must be an integer"):
            Speculator(ctx, NGram(), most=1.5)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="no Drafter"):
            Speculator(ctx, None)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="no Context"):
            DraftModel(None)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="another context"):
            Speculator(ctx, NGram()).step([branch])
        with pytest.raises(InvalidArgument, match="twice"):
            Speculator(other, NGram()).step([branch, branch])
        assert Speculator(ctx, NGram()).step([]) == []


def test_a_nano_draft_guesses_what_it_would_write(nano_draft: lloyal.Model) -> None:
    """Greedy, whatever was wrong before; and texts without a sequence are not guessed."""
    with context(nano_draft, n_seq_max=2) as ctx, context(nano_draft) as alone:
        drafter = DraftModel(ctx)
        rng = random.Random(3)
        texts = [drafter.start() for _ in range(3)]
        tokens: list[list[int]] = [[], [], []]
        for _ in range(12):
            for text, own in zip(texts, tokens, strict=True):
                new = [rng.randrange(300) for _ in range(rng.choice([1, 1, 3, 20]))]
                drafter.feed(text, new)
                own += new
            guesses = drafter.propose(texts, 4)
            assert guesses[2] == []
            for own, guess in zip(tokens[:2], guesses, strict=False):
                want = plain(alone, own, SAMPLINGS["greedy"], n=4)  # type: ignore[arg-type]
                assert guess[: len(want)] == want


def test_a_nano_draft_goes_on_after_a_stop(model: lloyal.Model, nano_draft: lloyal.Model) -> None:
    with context(model) as ctx, context(nano_draft, n_ubatch=16) as small, BranchStore(ctx) as store:
        speculator = Speculator(ctx, DraftModel(small), n=4)
        branch = store.create(PROMPT * 3, sampling=SAMPLINGS["greedy"])
        abort_arm(40)
        with pytest.raises(Aborted):
            speculator.step([branch])
        abort_arm(-1)
        for _ in range(6):
            speculator.step([branch])
        assert speculator.stats.kept > 0


@pytest.mark.parametrize("limit", [{"n_batch": 2}, {"n_ctx": 256}, {"n_seq_max": 1}])
def test_limits_of_a_draft_are_no_errors(limit: dict[str, int], model: lloyal.Model, nano_draft: lloyal.Model) -> None:
    with context(model) as ctx, context(nano_draft, **limit) as small, BranchStore(ctx) as store:
        speculator = Speculator(ctx, DraftModel(small), n=4)
        branches = store.create(PROMPT * 4, sampling=SAMPLINGS["warm"]).fork(4, seed=1)
        for _ in range(8):
            speculator.step([branch for branch in branches if not branch.ended])


@pytest.mark.parametrize("accept", ["exact", "ratio"])
@pytest.mark.parametrize("name", ["lfm2-swa", "gemma3", "lfm2", "mamba2"])
def test_a_guess_is_never_refused(name: str, accept: Literal["exact", "ratio"]) -> None:
    """Parts of different lengths, over windows and states, in small micro-batches; and what is late stays short."""

    rng = random.Random(0)

    class Wrong(NGram):
        def propose(self, texts: Sequence[Any], n: int) -> list[list[int]]:
            return [[rng.randrange(8, 64) for _ in range(rng.choice([1, 5, n]))] for _ in texts]

    with lloyal.Model(tiny(name)) as model, context(model, n_ctx=2048, n_seq_max=3, n_ubatch=24) as ctx:
        speculator = Speculator(ctx, Wrong(), n=12, accept=accept)
        with BranchStore(ctx) as store:
            branches = [store.create(list(range(8, 40)), sampling=SAMPLINGS["warm"]) for _ in range(2)]
            for _ in range(40):
                going = [branch for branch in branches if not branch.ended]
                if going:
                    speculator.step(going)


def test_a_step_takes_no_checkpoint_of_others() -> None:
    with lloyal.Model(tiny("lfm2")) as model, context(model) as ctx, BranchStore(ctx) as store:
        branch = store.create(list(range(8, 40)), sampling=SAMPLINGS["warm"])
        kept = ctx.checkpoint(branch.seq_id)
        ctx.checkpoints.evict, ctx.checkpoints.budget = True, ctx.checkpoints.nbytes + 100
        Speculator(ctx, Synthetic(branch.tokens + [9] * 50, 1.0), n=4).step([branch])
        assert kept.nbytes > 0
        kept.release()


def test_near_ties_are_rare() -> None:
    """Of all tokens that the tests above have compared."""
    assert len(NEAR_TIES) <= 0.005 * N * len(SAMPLINGS) * len(DRAFTERS) * 2
