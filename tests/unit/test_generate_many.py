"""Many texts side by side: what each one says is what it would say alone, however many fit at once."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import lloyal
from lloyal.errors import CacheFull, InvalidArgument, InvalidGrammar, NoLease, UnknownParameter
from lloyal.generation_many import generate_many
from lloyal.kv import Tenancy
from lloyal.sampling import Sampling
from lloyal.speculative import NGram
from tests.models import KINDS, tiny, tokens

Make = Callable[..., lloyal.Context]
GREEDY = Sampling(temperature=0)
WARM = Sampling(temperature=1.0, seed=11)
# Batches of another shape round otherwise: with 32 bits everywhere that is far below any choice.
EXACT = {"type_k": "f32", "type_v": "f32"}


@pytest.fixture
def random_llama() -> Iterator[lloyal.Model]:
    with lloyal.Model(tiny("llama")) as model:
        yield model


def alone(ctx: lloyal.Context, prompt, *, n: int, sampling: Sampling, **options) -> list[int]:
    ctx.memory.clear()
    return list(lloyal.generate(ctx, prompt, max_tokens=n, sampling=sampling, **options))


def seed(sampling: Sampling, i: int) -> Sampling:
    return dataclasses.replace(sampling, seed=sampling.seed + i)


@pytest.mark.parametrize("n_seq_max", [1, 2, 3, 8])
@pytest.mark.parametrize("name", sorted(KINDS.keys() - {"gpt2", "qwen35-mtp"}))
def test_each_of_n_is_what_its_seed_gives_alone(name: str, n_seq_max: int, new_context: Make) -> None:
    with lloyal.Model(tiny(name)) as model:
        ctx = new_context(model, n_seq_max=n_seq_max, **EXACT)
        single = new_context(model, **EXACT)
        prompt = tokens(20)
        made = lloyal.generate(ctx, prompt, n=6, max_tokens=12, sampling=WARM)
        pairs = list(made)
        for i in range(6):
            assert [token for index, token in pairs if index == i] == made.tokens[i]
            assert made.tokens[i] == alone(single, prompt, n=12, sampling=seed(WARM, i))
        assert len({tuple(one) for one in made.tokens}) == 6
        assert made.stop_reasons == ["length"] * 6
        assert made.seed == 11
        assert Tenancy(ctx).available == n_seq_max


def test_tokens_come_step_by_step(random_llama: lloyal.Model, new_context: Make) -> None:
    made = lloyal.generate(new_context(random_llama, n_seq_max=4), tokens(5), n=4, max_tokens=9, sampling=WARM)
    assert [index for index, _ in made] == [0, 1, 2, 3] * 9


@pytest.mark.parametrize("n_seq_max", [1, 3, 16])
def test_prompts_of_all_lengths_take_the_sequences_there_are(
    random_llama: lloyal.Model, new_context: Make, n_seq_max: int
) -> None:
    ctx = new_context(random_llama, n_seq_max=n_seq_max, n_ctx=1024, n_batch=32, n_ubatch=32, **EXACT)
    single = new_context(random_llama, **EXACT)
    prompts = [tokens(length, length) for length in (1, 70, 3, 31, 32, 33, 8, 100, 5, 2, 64)]
    most = [7, 1, 20, 3, 9, 2, 15, 4, 1, 30, 6]
    read = []
    made = lloyal.generate_many(
        ctx, prompts, max_tokens=most, sampling=GREEDY, progress=lambda done, total: read.append((done, total))
    )
    assert made.tokens == [[] for _ in prompts]
    list(made)
    for i, prompt in enumerate(prompts):
        assert made.tokens[i] == alone(single, prompt, n=most[i], sampling=GREEDY)
    assert made.prompts == prompts
    assert [done for done, _ in read] == sorted(done for done, _ in read)
    assert {total for _, total in read} == {sum(map(len, prompts))}
    assert read[-1][0] == read[-1][1]
    read.clear()
    list(lloyal.generate(ctx, tokens(70), n=2, max_tokens=2, progress=lambda done, total: read.append((done, total))))
    assert read == [(32, 70), (64, 70), (70, 70)]
    assert Tenancy(ctx).available == n_seq_max


def test_log_probs_are_the_models(random_llama: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(random_llama, n_seq_max=4, **EXACT)
    prompt = tokens(9)
    made = lloyal.generate(ctx, prompt, n=3, max_tokens=10, sampling=Sampling(seed=2, temperature=1.5))
    while len(made.tokens[0]) < 5:
        next(made)
    assert [len(one) for one in made.log_probs] == [5, 5, 5]
    list(made)
    scorer = new_context(random_llama, **EXACT)
    for own, log_probs in zip(made.tokens, made.log_probs, strict=True):
        scorer.memory.clear()
        scored = lloyal.score(scorer, [*prompt, *own])
        np.testing.assert_allclose(log_probs, scored.logprobs[-10:], atol=1e-4)


def test_n_says_what_one_generation_says(nano: lloyal.Model, new_context: Make) -> None:
    """Text, stop strings and the reasons, against `Generation` on the same tokens."""
    made = lloyal.generate(new_context(nano, n_seq_max=8), "def ", n=6, max_tokens=40, stop=["(", ":\n"], sampling=WARM)
    pieces = [""] * 6
    for index, piece in made.pieces():
        pieces[index] += piece
    assert pieces == made.texts
    assert "stop" in made.stop_reasons
    for text, own, reason in zip(made.texts, made.tokens, made.stop_reasons, strict=True):
        whole = nano.vocab.detokenize(own)
        cut = min((whole.index(stop) for stop in ("(", ":\n") if stop in whole), default=len(whole))
        assert text == whole[:cut]
        assert reason == ("stop" if cut < len(whole) else "length")


def test_texts_can_be_read_at_any_time(nano: lloyal.Model, new_context: Make) -> None:
    made = lloyal.generate(new_context(nano, n_seq_max=2), "s = 'é", n=2, max_tokens=30, sampling=WARM)
    before = ["", ""]
    for _ in made:
        now = made.texts
        assert all(text.startswith(old) for text, old in zip(now, before, strict=True))
        before = now
    assert before[0] == nano.vocab.detokenize(made.tokens[0])


def test_every_text_follows_the_schema(nano: lloyal.Model, new_context: Make) -> None:
    schema = {
        "type": "object",
        "properties": {"size": {"type": "integer", "minimum": 0, "maximum": 99}, "ok": {"type": "boolean"}},
        "required": ["size", "ok"],
        "additionalProperties": False,
    }
    ctx = new_context(nano, n_seq_max=4)
    for made in (
        lloyal.generate(ctx, "data = ", n=6, max_tokens=60, json_schema=schema, sampling=Sampling(seed=3)),
        lloyal.generate_many(ctx, ["x = ", "y: ", "{"], max_tokens=60, json_schema=schema, sampling=Sampling(seed=3)),
    ):
        pairs = list(made)
        assert set(made.stop_reasons) == {"end"}
        for i, text in enumerate(made.texts):
            assert [token for index, token in pairs if index == i] == made.tokens[i]
            assert set(json.loads(text)) == {"size", "ok"}
    made = lloyal.generate(ctx, "x", n=3, grammar='root ::= "ab" | "cd"', sampling=Sampling(seed=1))
    list(made)
    assert set(made.texts) <= {"ab", "cd"}


def test_stops_and_limits_of_each(nano: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(nano, n_seq_max=4)
    prompts = ["def a(", "def a(", "def a("]
    whole = lloyal.generate_many(ctx, prompts, max_tokens=24, sampling=GREEDY)
    list(whole)
    stop = whole.texts[0][6:9]
    made = lloyal.generate_many(
        ctx, prompts, max_tokens=[24, None, 3], stop=[(stop,), (stop, "no"), ()], sampling=GREEDY
    )
    list(made)
    assert made.stop_reasons == ["stop", "stop", "length"]
    expected = whole.texts[0][: whole.texts[0].index(stop)]
    assert made.texts[:2] == [expected, expected]
    assert made.tokens[2] == whole.tokens[2][:3]


def test_chats_bring_their_stops(nano: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(nano, n_seq_max=4)
    chats = [lloyal.chat.apply_template(nano, [{"role": "user", "content": said}]) for said in ("a", "b")]
    made = lloyal.generate_many(ctx, chats, max_tokens=8, sampling=GREEDY)
    list(made)
    for i, chat in enumerate(chats):
        ctx.memory.clear()
        assert made.tokens[i] == list(lloyal.generate(ctx, chat, max_tokens=8, sampling=GREEDY))


def test_processors_and_penalties_are_each_texts_own(random_llama: lloyal.Model, new_context: Make) -> None:
    seen = []

    def forbid_last(so_far, logits):
        seen.append(len(so_far))
        logits[so_far[-1]] = -math.inf

    sampling = Sampling(temperature=0, repeat_penalty=1.4, logits_processors=[forbid_last])
    ctx, single = (new_context(random_llama, n_seq_max=n, **EXACT) for n in (3, 1))
    prompts = [tokens(6, i) for i in range(5)]
    made = lloyal.generate_many(ctx, prompts, max_tokens=8, sampling=sampling)
    list(made)
    assert min(seen) == 6
    for prompt, own in zip(prompts, made.tokens, strict=True):
        assert own == alone(single, prompt, n=8, sampling=sampling)


def test_what_finds_no_cells_waits_and_nothing_is_lost(random_llama: lloyal.Model, new_context: Make) -> None:
    """256 cells for 8 texts of 100 rows: some have to be set aside, and come back."""
    ctx = new_context(random_llama, n_ctx=256, n_seq_max=8, **EXACT)
    single = new_context(random_llama, **EXACT)
    prompts = [tokens(60, i) for i in range(8)]
    made = lloyal.generate_many(ctx, prompts, max_tokens=40, sampling=GREEDY)
    list(made)
    for prompt, own in zip(prompts, made.tokens, strict=True):
        assert own == alone(single, prompt, n=40, sampling=GREEDY)
    forked = lloyal.generate(ctx, prompts[0], n=8, max_tokens=90, sampling=WARM)
    list(forked)
    for i in range(8):
        assert forked.tokens[i] == alone(single, prompts[0], n=90, sampling=seed(WARM, i))
    with pytest.raises(CacheFull):
        list(lloyal.generate_many(ctx, [tokens(300)], max_tokens=2))
    with pytest.raises(CacheFull):
        list(lloyal.generate(ctx, tokens(250), n=2, max_tokens=30))
    assert Tenancy(ctx).available == 8
    assert lloyal.BranchStore(ctx).kv_pressure.cells_used == 0


def test_sequences_are_free_however_it_ends(random_llama: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(random_llama, n_seq_max=4)
    made = lloyal.generate(ctx, tokens(5), n=4, sampling=GREEDY)
    next(made)
    assert Tenancy(ctx).available == 0
    with pytest.raises(NoLease):
        next(lloyal.generate(ctx, tokens(5), n=2))
    made.close()
    made.close()
    assert Tenancy(ctx).available == 4
    assert [len(one) for one in made.tokens] == [len(one) for one in made.log_probs] == [1] * 4
    assert len(list(made)) == 3  # what the step had made is still there
    with lloyal.generate(ctx, tokens(5), n=3, sampling=GREEDY) as made:
        next(made)
    made = lloyal.generate(ctx, tokens(5), n=3, sampling=GREEDY)
    next(made)
    del made
    assert Tenancy(ctx).available == 4

    def fail(so_far, logits):
        if len(so_far) > 7:
            raise KeyError("mine")

    made = lloyal.generate(ctx, tokens(5), n=3, sampling=Sampling(logits_processors=[fail]))
    with pytest.raises(KeyError, match="mine"):
        list(made)
    assert list(made) == []
    assert Tenancy(ctx).available == 4


def test_a_drawn_seed_repeats_it(random_llama: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(random_llama, n_seq_max=4)
    first = lloyal.generate(ctx, tokens(5), n=4, max_tokens=8, sampling=Sampling(temperature=1.0))
    list(first)
    again = lloyal.generate(ctx, tokens(5), n=4, max_tokens=8, sampling=Sampling(temperature=1.0, seed=first.seed))
    list(again)
    assert again.tokens == first.tokens
    high = lloyal.generate(ctx, tokens(5), n=4, max_tokens=2, sampling=Sampling(seed=2**32 - 2))
    assert len(list(high)) == 8


def test_what_cannot_be_asked_for(random_llama: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(random_llama)
    for wrong in ({"n": 0}, {"n": -1}, {"n": 2.5}, {"n": True}, {"n": 2, "seq_id": 1}, {"n": 2, "pos0": 0}):
        with pytest.raises(InvalidArgument):
            lloyal.generate(ctx, [1], **wrong)
    with pytest.raises(InvalidArgument):
        lloyal.generate(ctx, [1], n=2, history=[1])
    with pytest.raises(InvalidArgument):
        lloyal.generate(ctx, [], n=2)
    with pytest.raises(InvalidArgument, match="max_tokens"):
        lloyal.generate(ctx, [1], n=2, max_tokens=0)
    with pytest.raises(InvalidArgument, match="2 max_tokens"):
        lloyal.generate_many(ctx, [[1]], max_tokens=[1, 2])
    with pytest.raises(InvalidArgument):
        lloyal.generate_many(ctx, [[1], []])
    with pytest.raises(InvalidGrammar):
        lloyal.generate(ctx, [1], n=2, grammar="root ::= (")
    with pytest.raises(TypeError, match="Sampling"):
        lloyal.generate(ctx, [1], n=2, sampling=lloyal.Sampler.greedy())
    with pytest.raises(UnknownParameter):
        lloyal.generate(ctx, [1], n=2, temperature=0.5)
    assert list(lloyal.generate_many(ctx, [])) == []


def test_one_text_is_still_a_generation(random_llama: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(random_llama)
    assert isinstance(lloyal.generate(ctx, [1], max_tokens=1), lloyal.Generation)
    one = lloyal.generate(ctx, [1], n=1, max_tokens=3, sampling=GREEDY)
    assert isinstance(one, lloyal.Generations)
    assert [token for _, token in one] == alone(ctx, [1], n=3, sampling=GREEDY)


@pytest.mark.parametrize("stop", [(), ("return",)])
@pytest.mark.parametrize("temperature", [0, 0.8])
def test_a_draft_changes_no_token(temperature: float, stop: tuple[str, ...]) -> None:
    exact = {"type_k": "f32", "type_v": "f32", "flash_attn": "off", "n_threads": 1, "n_threads_batch": 1}
    sampling = Sampling(temperature=temperature, seed=4)
    prompts = ["def fibonacci(n):\n", "class Stack:\n", "import os\n", "x = [1, 2, 3]\n"]
    with (
        lloyal.Model(lloyal.models.path("nano")) as model,
        lloyal.Context(model, n_ctx=1024, n_seq_max=4, **exact) as ctx,
    ):
        plain = generate_many(ctx, prompts, max_tokens=40, sampling=sampling, stop=stop)
        list(plain)
        drafted = generate_many(ctx, prompts, max_tokens=40, sampling=sampling, stop=stop, draft=NGram(3, 1))
        given = list(drafted)
        # Batches of another size decide near ties otherwise: about one drawn token in a thousand here.
        same = [i for i in range(4) if drafted.tokens[i] == plain.tokens[i]]
        assert len(same) >= (4 if temperature == 0 else 3)
        for i in same:
            assert (drafted.texts[i], drafted.stop_reasons[i]) == (plain.texts[i], plain.stop_reasons[i])
        assert [len(one) for one in drafted.log_probs] == [len(one) for one in drafted.tokens]
        assert drafted.speculator is not None
        assert drafted.speculator.stats.tokens >= len(given)
        for index, tokens in enumerate(drafted.tokens):
            assert [token for i, token in given if i == index] == tokens
        one = lloyal.generate(ctx, prompts[0], n=1, max_tokens=20, sampling=Sampling(temperature=0), draft=NGram())
        list(one)
        alone = generate_many(ctx, prompts[:1], max_tokens=20, sampling=Sampling(temperature=0))
        list(alone)
        assert one.tokens == alone.tokens
