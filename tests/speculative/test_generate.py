"""`generate` with a draft: what it gives without, in a sequence of its own."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

import lloyal
from lloyal import Context, Sampling, generate
from lloyal.errors import InvalidArgument
from lloyal.kv import Tenancy
from lloyal.speculative import DraftModel, NGram, Speculator

PROMPT = "def area(width, height):\n"


@pytest.fixture(scope="module")
def ctx() -> Iterator[Context]:
    with lloyal.Model(lloyal.models.path("nano")) as model:
        exact = {"type_k": "f32", "type_v": "f32", "flash_attn": "off"}
        with Context(model, n_ctx=1024, n_seq_max=2, n_threads=1, **exact) as ctx:  # type: ignore[arg-type]
            yield ctx


@pytest.fixture(autouse=True)
def all_is_given_back(ctx: Context) -> Iterator[None]:
    yield
    gc.collect()
    ctx.memory.clear()
    assert Tenancy(ctx).available == 2


SAMPLINGS = [Sampling(temperature=0), Sampling(temperature=0.7, seed=4, repeat_penalty=1.1)]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("rules", [{}, {"stop": "\n\n"}, {"json_schema": {"type": "integer"}}, {"max_tokens": 7}])
def test_the_same_text(ctx: Context, sampling: Sampling, rules: dict[str, object]) -> None:
    keywords = {"max_tokens": 60, "sampling": sampling} | rules
    plain = generate(ctx, PROMPT, **keywords)  # type: ignore[call-overload]
    text = "".join(plain.text())
    for draft in (NGram(3, 1), Speculator(ctx, NGram(3, 1), n=4)):
        ctx.memory.clear()
        mine = generate(ctx, PROMPT, draft=draft, **keywords)  # type: ignore[call-overload]
        assert "".join(mine.text()) == text
        assert mine.tokens == plain.tokens[: len(mine.tokens)]
        assert (mine.stop_reason, mine.prompt, mine.stop) == (plain.stop_reason, plain.prompt, plain.stop)
        assert list(mine) == []
        assert mine.speculator.stats.tokens >= len(mine.tokens)


def test_it_is_over_when_its_last_token_has_come(ctx: Context) -> None:
    mine = generate(ctx, PROMPT, max_tokens=20, sampling=SAMPLINGS[0], draft=Speculator(ctx, NGram(3, 1), n=8))
    for i, _ in enumerate(mine, 1):
        assert (mine.stop_reason is None) == (i < 20)
    assert len(mine.tokens) == 20


def test_it_can_be_left_or_closed_on_the_way(ctx: Context) -> None:
    mine = generate(ctx, PROMPT, sampling=SAMPLINGS[0], draft=NGram())
    next(mine)
    assert Tenancy(ctx).available == 1
    mine.close()
    mine.close()
    assert Tenancy(ctx).available == 2
    assert list(mine) == []


def test_a_stop_string_of_text_alone(ctx: Context) -> None:
    mine = generate(ctx, PROMPT, max_tokens=100, sampling=SAMPLINGS[0], draft=NGram())
    text = "".join(mine.text("return"))
    assert "return" not in text
    assert mine.stop_reason in ("stop", "length")


def test_the_speculator_goes_on_learning(ctx: Context) -> None:
    speculator = Speculator(ctx, NGram())
    for _ in range(2):
        list(generate(ctx, PROMPT, max_tokens=10, sampling=SAMPLINGS[0], draft=speculator))
    assert speculator.stats.tokens == 20


def test_what_does_not_go_together(ctx: Context) -> None:
    with pytest.raises(InvalidArgument, match="a draft takes sequences of its own"):
        generate(ctx, PROMPT, draft=NGram(), seq_id=1)
    with pytest.raises(InvalidArgument, match="n takes sequences of its own"):
        generate(ctx, PROMPT, n=2, pos0=3)
    with pytest.raises(TypeError, match="sampling"):
        generate(ctx, PROMPT, draft=NGram(), sampling=Sampling().build(ctx.vocab))
    with lloyal.Context(ctx.model, n_ctx=256) as other:
        with pytest.raises(InvalidArgument, match="another context"):
            generate(ctx, PROMPT, draft=Speculator(other, NGram()))
        with pytest.raises(TypeError):
            generate(ctx, PROMPT, draft=3)  # type: ignore[call-overload]
    with lloyal.Model(lloyal.models.path("nano-draft")) as small, Context(small, n_ctx=256) as draft:
        assert len(list(generate(ctx, PROMPT, max_tokens=10, draft=DraftModel(draft)))) == 10
