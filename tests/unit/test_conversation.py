"""Chats over several turns: right whatever the memory, and only what is new is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

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


def test_somebody_else_in_the_sequence_is_noticed(nano: lloyal.Model, new_context: Make) -> None:
    ctx, fresh = new_context(nano, n_ctx=1024), new_context(nano, n_ctx=1024)
    talk = lloyal.Conversation(ctx, sampling=GREEDY)
    talk.say("hello", max_tokens=3).read()
    ctx.memory.seq_rm(0)
    lloyal.prefill(ctx, "something else altogether")
    messages = [*talk.messages, {"role": "user", "content": "again"}]
    next(talk.say("again", max_tokens=3))
    next(lloyal.generate(fresh, rendered(ctx, messages)))
    assert ctx.memory.seq_pos_max(0) >= fresh.memory.seq_pos_max(0)
    other = lloyal.Conversation(ctx, sampling=GREEDY)  # in the same sequence
    assert (
        other.say("hi", max_tokens=2).read()
        == lloyal.Conversation(fresh, sampling=GREEDY).say("hi", max_tokens=2).read()
    )


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
    assert talk.say("hello again", max_tokens=2).read() is not None


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
