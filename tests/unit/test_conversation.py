"""Chats over several turns: right whatever the memory, and only what is new is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

import lloyal
from lloyal.errors import CacheFull, InvalidArgument
from lloyal.sampling import Sampling
from tests.decode import distance
from tests.unit.test_generation import SCHEMA

Make = Callable[..., lloyal.Context]
GREEDY = Sampling(temperature=0)
TEMPLATES = Path(__file__).parents[2] / "vendor/llama.cpp/models/templates"


@pytest.fixture(params=["nano", "nano-hybrid"])
def model(request: pytest.FixtureRequest) -> lloyal.Model:
    return request.getfixturevalue(request.param.replace("-", "_"))


def rendered(ctx: lloyal.Context, messages: list[dict]) -> list[int]:
    prompt = lloyal.chat.apply_template(ctx.model, messages)
    return ctx.vocab.tokenize(prompt.prompt, add_special=True, parse_special=True)


def next_logits(ctx: lloyal.Context, fresh: lloyal.Context, messages: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Of the first token of an answer: in the conversation's context, and of the chat read alone."""
    lloyal.prefill(fresh, rendered(ctx, messages))
    return np.array(ctx.logits()), np.array(fresh.logits())


def test_every_turn_is_the_whole_chat(model: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(model, n_ctx=2048, n_seq_max=4)
    talk = lloyal.Conversation(ctx, system="You write Python.", sampling=Sampling(seed=5), seq_id=1)
    fresh = new_context(model, n_ctx=2048)
    for i, said in enumerate(["one", "two words", "three", "four"]):
        messages = [*talk.messages, {"role": "user", "content": said}]
        reply = talk.say(said, max_tokens=5)
        next(reply.generation)
        fresh.memory.clear()
        got, expected = next_logits(ctx, fresh, messages)
        assert distance(got, expected) < 0.05, i
        if i == 1:
            reply.close()  # in the middle
        elif i != 2:
            reply.read()
        if i == 2:
            talk.rewind(2)
    assert [message["role"] for message in talk.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert talk.messages[1]["content"] == "one"
    assert talk.messages[3]["content"] == "four"


def n_read(talk: lloyal.Conversation, said: str) -> int:
    totals: list[int] = []
    talk.say(said, max_tokens=3, progress=lambda done, total: totals.append(total)).read()
    return totals[-1]


def test_what_was_read_is_not_read_again(nano: lloyal.Model, nano_hybrid: lloyal.Model, new_context: Make) -> None:
    for model in (nano, nano_hybrid):
        ctx = new_context(model, n_ctx=2048)
        talk = lloyal.Conversation(ctx, sampling=GREEDY)
        talk.say("a long question " * 20, max_tokens=3).read()
        before = ctx.memory.provenance(0)[0]
        assert n_read(talk, "short") < 40
        assert ctx.memory.provenance(0)[0][2:] == before[2:]  # the first rows are the same ones
        talk.rewind()
        assert n_read(talk, "other") < 40


class Others:
    """What somebody else may do to the sequence while an answer runs, or after it."""

    def nothing(ctx: lloyal.Context) -> None:
        pass

    def replace(ctx: lloyal.Context) -> None:
        ctx.memory.seq_rm(0)
        lloyal.prefill(ctx, "something else altogether, and longer than what was there " * 3)

    def restore(ctx: lloyal.Context) -> None:
        lloyal.prefill(ctx, "another text " * 20, seq_id=2)
        with ctx.checkpoint(2) as other:
            other.restore(0)

    def trim(ctx: lloyal.Context) -> None:
        if ctx.memory.can_rollback(0, 2) is not None:
            ctx.memory.seq_rm(0, ctx.memory.seq_pos_max(0) - 1)

    def stream(ctx: lloyal.Context) -> None:
        lloyal.chat.stream(ctx, [{"role": "user", "content": "hello there, you"}], max_tokens=3).read()


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("other", ["nothing", "replace", "restore", "trim", "stream"])
def test_whatever_others_do_to_the_sequence_a_turn_is_the_whole_chat(
    other: str, finished: bool, model: lloyal.Model, new_context: Make
) -> None:
    ctx, fresh = new_context(model, n_ctx=2048, n_seq_max=4), new_context(model, n_ctx=1024)
    talk = lloyal.Conversation(ctx, sampling=Sampling(seed=2))
    running = talk.say("hello there my friend", max_tokens=12)
    next(running)
    if finished:
        running.read()
    getattr(Others, other)(ctx)
    for said in ("again", "and again"):
        running.close()
        messages = [*talk.messages, {"role": "user", "content": said}]
        running = talk.say(said, max_tokens=4)
        next(running.generation)
        fresh.memory.clear()
        got, expected = next_logits(ctx, fresh, messages)
        assert distance(got, expected) < 0.05


def test_answers_that_take_turns_in_one_sequence_are_right(nano: lloyal.Model, new_context: Make) -> None:
    ctx, fresh = new_context(nano, n_ctx=1024), new_context(nano, n_ctx=1024)
    messages = [{"role": "user", "content": "say something"}]
    a, b = (lloyal.chat.stream(ctx, messages, sampling=Sampling(seed=seed), max_tokens=40) for seed in (1, 2))
    for _ in range(8):
        next(b, None)
    a.close()
    b.close()
    messages += [a.message or {}, {"role": "user", "content": "more"}]
    next(lloyal.chat.stream(ctx, messages, max_tokens=3).generation)
    got, expected = next_logits(ctx, fresh, messages)
    assert distance(got, expected) < 0.05


def test_a_stop_string_is_no_part_of_the_message(nano: lloyal.Model, new_context: Make) -> None:
    source = (TEMPLATES / "Qwen-Qwen2.5-7B-Instruct.jinja").read_text()
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    script = nano.vocab.tokenize("Hello. STOP there", add_special=False)

    def follow(tokens: list[int], logits: np.ndarray) -> None:
        logits[script.pop(0)] += 1000

    talk = lloyal.Conversation(new_context(nano, n_ctx=1024), template=source, tools=[tool])
    reply = talk.say("x", stop=[". ST"], sampling=Sampling(temperature=0, logits_processors=[follow]), max_tokens=30)
    assert reply.read() == "Hello"
    assert reply.message == {"role": "assistant", "content": "Hello"}


def test_a_name_that_is_no_parameter_raises(nano: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(nano)
    with pytest.raises(TypeError):
        lloyal.Conversation(ctx, sytem="be nice")
    with pytest.raises(TypeError):
        lloyal.chat.stream(ctx, [{"role": "user", "content": "x"}], temperature=0)


def test_json_by_schema(nano: lloyal.Model, nano_hybrid: lloyal.Model, new_context: Make) -> None:
    for model in (nano, nano_hybrid):
        ctx = new_context(model, n_ctx=1024)
        for seed in range(8):
            talk = lloyal.Conversation(ctx, sampling=Sampling(seed=seed))
            value = talk.say("a file, as JSON", json_schema=SCHEMA, max_tokens=300).json()
            assert set(value) == {"name", "size", "tags"}
        reply = lloyal.chat.stream(ctx, [{"role": "user", "content": "x"}], json_schema=SCHEMA, max_tokens=2)
        with pytest.raises(json.JSONDecodeError) as caught:
            reply.json()
        assert "ended by 'length' after 2 tokens" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("template", "answer"),
    [
        (
            "Qwen-Qwen2.5-7B-Instruct.jinja",
            '<tool_call>\n{"name": "look_up", "arguments": {"n": 7}}\n</tool_call>',
        ),
        ("meta-llama-Llama-3.1-8B-Instruct.jinja", '{"name": "look_up", "parameters": {"n": 7}}'),
    ],
    ids=["qwen", "llama"],
)
def test_tools_are_called(template: str, answer: str, nano: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(nano, n_ctx=2048)
    tool = {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Find something",
            "parameters": {
                "type": "object",
                "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
                "required": ["n"],
            },
        },
    }
    source = (TEMPLATES / template).read_text()
    script = [*nano.vocab.tokenize(answer, add_special=False), nano.vocab.eos]

    def follow(tokens: list[int], logits: np.ndarray) -> None:
        logits[script.pop(0)] += 1000  # what the grammar forbids stays forbidden

    talk = lloyal.Conversation(ctx, template=source, tools=[tool], sampling=GREEDY)
    sampling = Sampling(temperature=0, logits_processors=[follow])
    reply = talk.say("find it", tool_choice="required", max_tokens=200, sampling=sampling)
    assert reply.read().strip() == answer
    assert reply.message is not None
    (call,) = reply.message["tool_calls"]
    assert call["function"]["name"] == "look_up"
    assert json.loads(call["function"]["arguments"]) == {"n": 7}
    talk.say({"role": "tool", "name": "look_up", "content": "7"}, tool_choice="none", max_tokens=3).read()
    assert [message["role"] for message in talk.messages] == ["user", "assistant", "tool", "assistant"]


def test_what_fails_was_not_said(nano: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(nano, n_ctx=256)
    talk = lloyal.Conversation(ctx, sampling=GREEDY)
    talk.say("hello", max_tokens=2).read()
    before = list(talk.messages)
    with pytest.raises(CacheFull) as caught:
        talk.say("much " * 400)
    assert "the chat has" in "".join(caught.value.__notes__)
    with pytest.raises(InvalidArgument):
        talk.say({"role": "user", "content": {1, 2}})
    with pytest.raises(InvalidArgument, match="n=5"):
        talk.rewind(5)
    assert talk.messages == before
    running = talk.say("hello again", max_tokens=9)
    next(running)
    with pytest.raises(InvalidArgument, match="n=5"):
        talk.rewind(5)
    assert running.message is None  # it goes on


def test_stream_is_stateless_and_reads_what_is_new(nano: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(nano, n_ctx=1024)
    messages = [{"role": "user", "content": "tell me something long " * 10}]
    first = lloyal.chat.stream(ctx, messages, sampling=GREEDY, max_tokens=4)
    text = "".join(first)
    assert first.text == text
    assert first.stop_reason in ("length", "end")
    read: list[int] = []
    messages += [first.message, {"role": "user", "content": "more"}]
    lloyal.chat.stream(
        ctx, messages, sampling=GREEDY, max_tokens=4, progress=lambda done, total: read.append(total)
    ).read()
    assert read[-1] < 40
    with pytest.raises(InvalidArgument, match="no messages"):
        lloyal.chat.stream(ctx, [])
    assert "Reply" in repr(first)
    assert "Conversation" in repr(lloyal.Conversation(ctx))


def test_the_grammar_of_a_chat_begins_right_where_the_tokenizer_adds_a_space(tmp_path: Path) -> None:
    """SentencePiece writes a space before the first token, which ChatML without tokens of its own begins with."""
    writer = gguf.GGUFWriter(tmp_path / "spm.gguf", "llama")
    for key in ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"llama.{key}", 1)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    words = [chr(i) for i in range(32, 127)] + ["\u2581", "\u2581<", "\u2581<|", "<|", "im", "\u2581{", "assistant"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *words]
    normal, unknown, control, byte = 1, 2, 3, 6
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [float(len(word)) for word in words])
    writer.add_token_types([unknown, control, control, *[byte] * 256, *[normal] * len(words)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with lloyal.Model(tmp_path / "spm.gguf", vocab_only=True) as model:
        prefix = "<|im_start|>assistant\n"
        tokens_of_prefix = model.vocab.tokenize(prefix, add_special=False)
        assert model.vocab.token_to_piece(tokens_of_prefix[0]) == b" <|"
        prompt = lloyal.chat.apply_template(model, [{"role": "user", "content": "x"}], json_schema=SCHEMA)
        assert prompt.grammar_prefix == prefix
        sampler = lloyal.chat.grammar_sampler(model.vocab, prompt)
        assert sampler is not None
        for token in model.vocab.tokenize('{"name": ', add_special=False):
            if model.vocab.token_to_piece(token) != b" ":
                sampler.accept(token)
        with pytest.raises(InvalidArgument):
            sampler.accept(model.vocab.tokenize("x", add_special=False)[-1])
