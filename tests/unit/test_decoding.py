"""Reading prompts and generating, compared with plain loops over batches."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lloyal
from lloyal.decoding import prefill
from lloyal.errors import CacheFull, InvalidArgument, InvalidBatch, LoadFailed, Unsupported
from lloyal.generation import generate
from lloyal.llama import Batch, Context, Sampler, StateSeqFlags
from lloyal.sampling import Sampling
from tests import models
from tests.decode import distance, feed

PROMPT = "def read(self, size=-1):\n"
GREEDY = Sampling(temperature=0)


@pytest.fixture(params=["nano", "nano-hybrid"])
def model(request: pytest.FixtureRequest) -> lloyal.Model:
    return request.getfixturevalue(request.param.replace("-", "_"))


def decode_one_by_one(ctx: Context, tokens: Iterable[int], *, seq_id: int = 0, pos: int = 0) -> None:
    batch = Batch()
    for token in tokens:
        batch.clear()
        batch.add(token, pos, seq_id, logits=True)
        ctx.decode(batch)
        pos += 1


def greedy_loop(ctx: Context, prompt: list[int], n: int) -> list[int]:
    """What generating means, in the fewest words."""
    decode_one_by_one(ctx, prompt)
    tokens: list[int] = []
    for _ in range(n):
        token = ctx.logits().argmax()
        if ctx.model.vocab.is_eog(token):
            break
        tokens.append(token)
        decode_one_by_one(ctx, [token], pos=len(prompt) + len(tokens) - 1)
    return tokens


class Scripted:
    """Stands in for a sampler: picks what it is told to."""

    def __init__(self, *tokens: int) -> None:
        self.left = list(tokens)

    def sample(self, ctx: Context, index: int = -1) -> int:
        ctx.logits(index)  # a real one needs them too
        return self.left.pop(0)


# Prefill


@pytest.mark.parametrize("n_batch", [8, 9, 64])
def test_prefill_in_chunks_is_one_prompt(model, new_context, n_batch):
    tokens = model.vocab.tokenize(PROMPT)
    whole = new_context(model)
    decode_one_by_one(whole, tokens)
    chunked = new_context(model, n_batch=n_batch)
    calls: list[tuple[int, int]] = []
    assert prefill(chunked, tokens, progress=lambda done, total: calls.append((done, total))) == len(tokens)
    assert chunked.memory.seq_pos_max(0) == len(tokens) - 1
    np.testing.assert_allclose(chunked.logits(), whole.logits(), atol=0.05)
    n_chunk = chunked.n_batch
    ends = [*range(n_chunk, len(tokens), n_chunk), len(tokens)]
    assert calls == [(end, len(tokens)) for end in ends]


def test_prefill_goes_on_where_the_sequence_ends(model, new_context):
    tokens = model.vocab.tokenize(PROMPT)
    ctx = new_context(model)
    assert prefill(ctx, tokens[:5], logits=False) == 5
    assert prefill(ctx, tokens[5:]) == len(tokens)
    whole = new_context(model)
    prefill(whole, tokens)
    np.testing.assert_allclose(ctx.logits(), whole.logits(), atol=0.05)


def test_text_begins_a_sequence_with_special_tokens_and_goes_on_without(nano, new_context):
    vocab = nano.vocab
    first, second = vocab.tokenize("def a():\n"), vocab.tokenize("    pass", add_special=False)
    assert first[0] == vocab.bos
    ctx = new_context(nano)
    assert prefill(ctx, "def a():\n") == len(first)
    assert prefill(ctx, "    pass") == len(first) + len(second)


def test_prefill_without_logits_leaves_none(nano, new_context):
    ctx = new_context(nano)
    prefill(ctx, PROMPT, logits=False)
    with pytest.raises(lloyal.errors.NoLogits):
        ctx.logits()


def test_prefill_at_a_position_of_its_own(nano, new_context):
    ctx = new_context(nano)
    prefill(ctx, [1, 2, 3, 4])
    ctx.memory.seq_rm(0, 2)
    assert prefill(ctx, [5], pos0=2) == 3
    with pytest.raises(InvalidBatch, match="position 3"):
        prefill(ctx, [5], pos0=9)


@pytest.mark.parametrize("empty", [[], np.array([], dtype=np.int32)])
def test_an_empty_prompt_is_refused(nano, new_context, empty):
    ctx = new_context(nano)
    with pytest.raises(InvalidArgument, match="no tokens"):
        prefill(ctx, empty)
    with pytest.raises(InvalidArgument, match="no tokens"):
        generate(ctx, empty)


def test_a_model_without_memory_is_refused(new_context, tmp_path):
    recipe = models.llama(0)
    recipe.arch = "dream"  # a diffusion model of the same shape
    recipe.write(tmp_path / "dream.gguf")
    with lloyal.Model(tmp_path / "dream.gguf") as model:
        ctx = new_context(model)
        for call in (prefill, generate):
            with pytest.raises(Unsupported, match="no memory"):
                call(ctx, [1, 2, 3])


# Generate


def test_greedy_is_a_plain_loop(model, new_context):
    prompt = model.vocab.tokenize(PROMPT)
    expected = greedy_loop(new_context(model), prompt, 24)
    assert list(generate(new_context(model), PROMPT, max_tokens=24, sampling=GREEDY)) == expected
    assert list(generate(new_context(model), np.array(prompt), max_tokens=24, sampling=GREEDY)) == expected


def test_a_sampler_picks_as_in_a_plain_loop(model, new_context):
    prompt = model.vocab.tokenize(PROMPT)
    ctx = new_context(model)
    sampler = Sampler.chain(Sampler.top_k(20), Sampler.temp(0.9), Sampler.dist(11))
    decode_one_by_one(ctx, prompt)
    expected = []
    for i in range(16):
        token = sampler.sample(ctx)
        if model.vocab.is_eog(token):
            break
        expected.append(token)
        decode_one_by_one(ctx, expected[-1:], pos=len(prompt) + i)
    assert len(expected) > 3
    same = Sampler.chain(Sampler.top_k(20), Sampler.temp(0.9), Sampler.dist(11))
    generation = generate(new_context(model, n_batch=8), prompt, max_tokens=16, sampling=same)
    assert list(generation) == expected
    assert generation.sampler is same


def test_a_seed_repeats_and_another_differs(model, new_context):
    def tokens(seed: int) -> list[int]:
        return list(generate(new_context(model), PROMPT, max_tokens=24, sampling=Sampling(seed=seed)))

    assert tokens(1) == tokens(1) != tokens(2)


@pytest.mark.parametrize("flags", [StateSeqFlags.NONE, StateSeqFlags.ON_DEVICE])
@pytest.mark.parametrize("dest", [0, 1])
def test_generation_after_a_restore_is_generation_without_it(model, new_context, flags, dest):
    prompt = model.vocab.tokenize(PROMPT)
    sampling = Sampling(seed=3)
    expected = list(generate(new_context(model), prompt, max_tokens=24, sampling=sampling))
    ctx = new_context(model)
    prefill(ctx, prompt[:-1], logits=False)
    state = ctx.state_seq_get_data_ext(0, flags)
    other = list(generate(ctx, prompt[-1:], max_tokens=24, sampling=Sampling(seed=4)))
    for _ in range(2):
        ctx.state_seq_set_data_ext(state, dest, flags)
        again = list(generate(ctx, prompt[-1:], max_tokens=24, sampling=sampling, seq_id=dest))
        assert again == expected != other


def test_generation_goes_on_from_its_last_token(model, new_context):
    whole = list(generate(new_context(model), PROMPT, max_tokens=20, sampling=GREEDY))
    ctx = new_context(model)
    first = list(generate(ctx, PROMPT, max_tokens=8, sampling=GREEDY))
    assert first + list(generate(ctx, first[-1:], max_tokens=12, sampling=GREEDY)) == whole


def test_generations_in_two_sequences_may_take_turns(model, new_context):
    prompts = [model.vocab.tokenize(PROMPT), model.vocab.tokenize("class Reader:\n")]
    apart = [list(generate(new_context(model), prompt, max_tokens=12, sampling=Sampling(seed=5))) for prompt in prompts]
    ctx = new_context(model)
    turns = [
        generate(ctx, prompt, max_tokens=12, sampling=Sampling(seed=5), seq_id=i) for i, prompt in enumerate(prompts)
    ]
    together = [list(tokens) for tokens in zip(*zip(*turns, strict=True), strict=True)]
    assert together == apart


def test_the_cache_is_one_token_behind(nano, new_context):
    ctx = new_context(nano)
    generation = generate(ctx, [10, 11, 12], max_tokens=4, sampling=Scripted(70, 71, 72, 73))
    assert ctx.memory.seq_pos_max(0) == -1  # nothing is computed before it is asked for
    for n, _ in enumerate(generation, start=1):
        assert ctx.memory.seq_pos_max(0) == 2 + n - 1
    assert (generation.prompt, len(generation.tokens)) == ([10, 11, 12], 4)


def test_why_it_stopped(nano, new_context):
    eos = nano.vocab.eos
    ended = generate(new_context(nano), PROMPT, sampling=Scripted(70, 71, eos))
    assert ended.stop_reason is None
    assert (list(ended), ended.tokens, ended.stop_reason) == ([70, 71], [70, 71], "end")
    assert list(ended) == []
    full = generate(new_context(nano), PROMPT, max_tokens=2, sampling=Scripted(70, 71, eos))
    assert (list(full), full.stop_reason) == ([70, 71], "length")
    at_once = generate(new_context(nano), PROMPT, sampling=Scripted(eos))
    assert (list(at_once), at_once.stop_reason) == ([], "end")


def test_text_is_the_detokenized_tokens(nano, new_context):
    text = "# naïve café — ∑ 🙂\n"
    tokens = nano.vocab.tokenize(text, add_special=False)
    generation = generate(new_context(nano), PROMPT, sampling=Scripted(*tokens, nano.vocab.eos))
    pieces = list(generation.text())
    assert "".join(pieces) == text
    assert all(pieces)
    unfinished = generate(new_context(nano), PROMPT, sampling=Scripted(*tokens[:-2], nano.vocab.eos))
    assert "".join(unfinished.text()) == nano.vocab.detokenize(tokens[:-2])


def test_text_ends_before_a_stop_string(nano, new_context):
    tokens = nano.vocab.tokenize("return value\n\ndef more", add_special=False)
    generation = generate(new_context(nano), PROMPT, sampling=Scripted(*tokens))
    assert "".join(generation.text(stop="\n\ndef")) == "return value"
    assert generation.stop_reason == "stop"
    assert nano.vocab.detokenize(generation.tokens).startswith("return value\n\ndef")
    assert list(generation) == []
    # What only looked like the start of a stop string is text after all.
    held = generate(new_context(nano), PROMPT, sampling=Scripted(*tokens[:-2], nano.vocab.eos))
    assert "".join(held.text(stop=["\n\ndefine"])) == nano.vocab.detokenize(tokens[:-2])


def test_a_full_cache_ends_it_with_an_error(nano, new_context):
    ctx = new_context(nano, n_ctx=256, n_seq_max=1)
    generation = generate(ctx, [10] * 250, sampling=Scripted(*[70] * 20))
    with pytest.raises(CacheFull):
        list(generation)
    assert generation.tokens == [70] * 7  # the cache held 250 + 6; the last one picked found no room
    assert generation.stop_reason is None
    assert list(generation) == []


@pytest.mark.parametrize("max_tokens", [0, -1])
def test_max_tokens_is_positive(nano, new_context, max_tokens):
    with pytest.raises(InvalidArgument, match=f"max_tokens={max_tokens}"):
        generate(new_context(nano), PROMPT, max_tokens=max_tokens)


def test_an_abandoned_generation_holds_nothing(nano, new_context):
    ctx = new_context(nano)
    contexts = lloyal.live_handles()["contexts"]
    for _ in generate(ctx, PROMPT).text():
        break
    ctx.close()
    assert lloyal.live_handles()["contexts"] == contexts - 1


def test_sequences_in_one_batch_are_as_alone(model, new_context):
    """Weights repacked for AMX got this wrong on the hybrid model."""
    parts = [(seq, 0, [5 + seq, 6, 7, 8]) for seq in range(3)]
    alone = [feed(new_context(model), (0, 0, tokens))[0] for _, _, tokens in parts]
    for together, expected in zip(feed(new_context(model), *parts), alone, strict=True):
        assert distance(together, expected) < 1e-2


def test_bytes_are_text(nano: lloyal.Model) -> None:
    with lloyal.Context(nano, n_ctx=256, n_threads=1) as ctx:
        assert lloyal.generate(ctx, b"def ").prompt == lloyal.generate(ctx, "def ").prompt


@pytest.mark.parametrize("max_tokens", [0, -1, 2.5, "5"])
def test_max_tokens_is_an_integer(nano: lloyal.Model, max_tokens: Any) -> None:
    with lloyal.Context(nano, n_ctx=256, n_threads=1) as ctx:
        with pytest.raises(InvalidArgument, match="max_tokens="):
            lloyal.generate(ctx, "def ", max_tokens=max_tokens)


@pytest.mark.parametrize("sampling", [{}, 0.5, "greedy"])
def test_sampling_is_a_sampling(nano: lloyal.Model, sampling: Any) -> None:
    with lloyal.Context(nano, n_ctx=256, n_threads=1) as ctx:
        with pytest.raises(TypeError, match="must be a Sampling, a Sampler or have a method"):
            lloyal.generate(ctx, "def ", sampling=sampling)


def test_generation_goes_on_when_the_model_is_closed() -> None:
    with lloyal.Model(lloyal.models.path("nano-draft")) as model:
        ctx = lloyal.Context(model, n_ctx=256, n_threads=1)
    with ctx:
        assert len(list(lloyal.generate(ctx, "def ", max_tokens=5))) > 0


def test_an_error_has_no_log_line_of_another_call(nano: lloyal.Model, tmp_path: Path) -> None:
    whole = Path(lloyal.models.path("nano-draft")).read_bytes()
    (tmp_path / "other.gguf").write_bytes(whole.replace(b"llama", b"lloyd"))
    with lloyal.Context(nano, n_ctx=256, n_threads=1) as ctx:
        with pytest.raises(LoadFailed) as failed:
            lloyal.Model(tmp_path / "other.gguf")
        assert failed.value.native_log
        with pytest.raises(InvalidBatch) as caught:
            ctx.decode(lloyal.Batch())
        assert not caught.value.native_log
        assert not getattr(caught.value, "__notes__", [])
