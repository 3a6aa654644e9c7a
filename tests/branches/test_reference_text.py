"""Tokens, chats and embeddings: the numbered behaviours of docs/liblloyal.md."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

import lloyal
from lloyal import chat, errors, grammar
from tests.branches.reference import GREEDY, PROMPT, TOOL_TEMPLATE, TOOLS, behaviours
from tests.decode import same

NewContext = Callable[..., lloyal.Context]
USER = {"role": "user", "content": "What is this?"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}],
}


# Tokens


@behaviours("64", "77", "79", "N1", "N12")
def test_texts_become_tokens_and_texts_again(nano):
    vocab = nano.vocab
    assert len(vocab) == vocab.n_tokens == 768
    assert vocab.tokenize("", add_special=False) == []
    assert vocab.detokenize([]) == ""
    for text in (PROMPT, "Grüße, 世界 🙂", "a" * 3000):
        found = vocab.tokenize(text, add_special=False)
        assert found == vocab.tokenize(text, add_special=False)
        assert vocab.detokenize(found) == text
        assert b"".join(map(vocab.token_to_piece, found)).decode() == text
        assert len(vocab.tokenize(text, add_special=True)) >= len(found)
    assert vocab.detokenize([100, 200, 300]) == vocab.detokenize([100, 200, 300]) != ""
    assert vocab.tokenize("x")[0] == vocab.bos
    assert vocab.add_bos
    assert vocab.is_eog(vocab.eos)
    assert not vocab.is_eog(vocab.tokenize("x")[-1])
    for wrong in (-1, len(vocab)):
        with pytest.raises(errors.InvalidArgument):
            vocab.token_to_piece(wrong)
    with pytest.raises(TypeError):
        vocab.tokenize(None)


@behaviours("64")
def test_a_character_in_several_tokens_comes_out_whole(nano, new_context):
    text = "世界 🙂"
    script = nano.vocab.tokenize(text, add_special=False)
    assert any(not _is_text(nano.vocab.token_to_piece(token)) for token in script)
    with lloyal.BranchStore(new_context(nano)) as store:
        branch = store.create(PROMPT, sampling=GREEDY)
        left = iter([*script, nano.vocab.eos])

        def follow(logits: np.ndarray) -> None:
            logits[next(left)] += 1e4

        branch.steer(follow)
        pieces = list(branch.stream())
        assert "".join(pieces) == text == branch.text
        assert all("�" not in piece for piece in pieces)


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


# Chats


@behaviours("69", "163")
@pytest.mark.parametrize("content", ["What is this?", "x" * 10_000, "Grüße 世界 🙂", 'say "hi"\\n{{ x }} <|im_end|>'])
def test_what_was_said_is_in_the_prompt(nano, content):
    messages = [{"role": "user", "content": content}]
    prompt = chat.apply_template(nano, messages)
    assert content in prompt.prompt
    assert len(prompt.prompt) > len(content)
    assert str(prompt) == prompt.prompt
    assert content in chat.format_builtin("chatml", messages), "it needs no model"
    assert chat.apply_template(nano, messages).prompt == prompt.prompt


@behaviours("69", "163")
def test_chats_of_many_turns_and_of_none(nano):
    vocab = nano.vocab
    assert vocab.bos is not None
    assert vocab.eos is not None
    source = nano.chat_template()
    assert "{%" in source
    assert "message" in source
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"turn {i}."} for i in range(50)]
    prompt = chat.apply_template(nano, turns)
    places = [prompt.prompt.index(f"turn {i}.") for i in range(50)]
    assert places == sorted(places)
    assert (vocab.tokenize(prompt.prompt, parse_special=True)[0] == vocab.bos) is vocab.add_bos
    other = chat.apply_template(nano, turns, template="{% for m in messages %}[{{ m.content }}]{% endfor %}")
    assert other.prompt.startswith("[turn 0.][turn 1.]")
    assert chat.apply_template(nano, []).stops == []


@behaviours("69", "70")
def test_templates_and_messages_with_errors_raise(nano):
    for wrong in ("{% for m in messages %}", "{{ (1 + }}", "{% if %}"):
        with pytest.raises(errors.InvalidArgument):
            chat.ChatTemplates(nano, wrong).apply([USER])
    assert chat.ChatTemplates(nano, "{{ messages[0].content }}").apply([USER]).prompt.startswith(USER["content"])
    for malformed in ("nonsense", [5], [{"content": "x"}]):
        with pytest.raises((errors.InvalidArgument, TypeError)):
            chat.apply_template(nano, malformed)


@behaviours("72", "166", "N14", "N15")
@pytest.mark.parametrize("choice", ["auto", "required", "none"])
def test_tools_bring_a_grammar_along(nano, choice):
    prompt = chat.apply_template(nano, [USER], template=TOOL_TEMPLATE, tools=TOOLS, tool_choice=choice)
    assert "weather" in prompt.prompt
    assert USER["content"] in prompt.prompt
    assert bool(prompt.grammar) is (choice != "none")
    assert prompt.grammar_lazy is (choice == "auto")
    if prompt.grammar_lazy:
        (word,) = (text for kind, text in prompt.grammar_triggers if kind == "word")
        assert word.startswith("<tool_call>")
        assert '<tool_call>\n{"name": "weather"'.startswith(word.split("\n")[0])
    with pytest.raises(errors.InvalidArgument):
        chat.apply_template(nano, [USER], template=TOOL_TEMPLATE, tools=[{"type": "function"}])


@behaviours("73", "74", "75", "N14")
def test_without_tools_there_is_nothing_but_a_prompt(nano):
    plain = chat.apply_template(nano, [USER])
    assert (plain.grammar, plain.grammar_lazy, plain.grammar_triggers, plain.preserved_tokens) == ("", False, [], [])
    assert plain.stops == []
    assert plain.thinking_tags is None
    bare = chat.apply_template(nano, [USER], add_generation_prompt=False)
    assert plain.prompt.startswith(bare.prompt)
    assert plain.prompt != bare.prompt
    assert plain.prompt == bare.prompt + plain.generation_prompt
    assert USER["content"] in chat.apply_template(nano, [USER], enable_thinking=False).prompt


@behaviours("73", "165")
def test_thinking_is_told_apart(nano):
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    )
    prompt = chat.apply_template(nano, [USER], template=source)
    said = prompt.parse("<think>\nIt is short.\n</think>\n\nA test.")
    assert said["content"].strip() == "A test."
    assert said["reasoning_content"].strip() == "It is short."
    again = chat.apply_template(nano, [USER, said, USER], template=source).prompt
    assert "It is short." in again
    assert "A test." in again
    silent = chat.apply_template(nano, [USER], template=source, enable_thinking=False)
    assert silent.prompt.endswith("<think>\n\n</think>\n\n")


@behaviours("165", "N15")
@pytest.mark.parametrize(
    ("messages", "shown"),
    [
        ([USER, CALL], "Rome"),
        ([USER, CALL, {"role": "tool", "tool_call_id": "1", "content": "12 degrees"}], "12 degrees"),
        ([{"role": "tool", "tool_call_id": "1", "content": "12 degrees"}], "12 degrees"),
        ([USER, {**CALL, "tool_calls": CALL["tool_calls"] * 2}], "weather"),
        ([{"role": "user", "content": [{"type": "text", "text": "in parts"}]}], "in parts"),
        ([{"role": "system", "content": "Be brief."}], "Be brief."),
        ([{"role": "system", "content": "Be brief."}, USER], "Be brief."),
    ],
)
def test_messages_of_every_role_are_written(nano, messages, shown):
    prompt = chat.apply_template(nano, messages, template=TOOL_TEMPLATE, tools=TOOLS)
    assert shown in prompt.prompt
    assert prompt.prompt.endswith("<|im_start|>assistant\n")
    assert prompt.prompt.count("weather") >= 1


@behaviours("76", "168")
def test_answers_are_read_back(nano):
    plain = chat.apply_template(nano, [USER])
    assert plain.parse("It is.") == {"role": "assistant", "content": "It is."}
    assert plain.parse("It i", partial=True)["content"] == "It i"
    assert not plain.parse("").get("content")
    assert "tool_calls" not in plain.parse("")
    prompt = chat.apply_template(nano, [USER], template=TOOL_TEMPLATE, tools=TOOLS)
    assert prompt.parse("It is.")["content"] == "It is."
    assert "tool_calls" not in prompt.parse("It is.")
    text = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    (call,) = prompt.parse(text)["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Rome"}
    assert "tool_calls" not in plain.parse(text)
    assert text in plain.parse(text)["content"]
    partial = prompt.parse('<tool_call>\n{"name": "weather", "argu', partial=True)
    assert partial["role"] == "assistant"


@behaviours("164", "167", "N6", "N7", "N12")
def test_a_warm_chat_stands_where_a_cold_one_does(nano, new_context):
    """Whatever separates turns: only what is new is read, and the logits are those of the whole chat."""
    ctx, cold = new_context(nano, n_ctx=1024, n_seq_max=1), new_context(nano, n_ctx=1024, n_seq_max=1)
    talk = lloyal.Conversation(ctx, system="Be brief.", sampling=GREEDY)
    read: list[tuple[int, int]] = []
    n_before = 0
    for said in ("My name is Lloyal.", "I like pizza.", "What is my name?", "What do I like?"):
        read.clear()
        reply = talk.say(said, max_tokens=8, progress=lambda *at: read.append(at))
        next(reply.generation)
        # The last message is the answer, which is not over: what stands before it was read.
        before = [message for message in talk.messages if message is not reply.message]
        whole = ctx.vocab.tokenize(chat.apply_template(nano, before).prompt, parse_special=True)
        cold.memory.clear()
        lloyal.prefill(cold, whole)
        assert np.abs(ctx.logits(-1, copy=True) - cold.logits(-1, copy=True)).max() < 0.05
        reply.read()
        assert read[-1][1] < len(whole) - n_before, "earlier turns are not read again"
        n_before = len(whole)


@behaviours("164", "N6", "N12")
def test_a_chat_goes_on_in_a_branch(nano, new_context):
    """On any memory: what the branch has of the new text stays, and its forks may answer differently."""
    with lloyal.BranchStore(new_context(nano, n_ctx=1024, n_seq_max=4)) as store:
        messages = [USER]
        trunk = store.create(chat.apply_template(nano, messages), sampling=GREEDY)
        for _ in range(3):
            answer = "".join(trunk.fork().stream(6))
            messages += [{"role": "assistant", "content": answer}, USER]
            whole = chat.apply_template(nano, messages).prompt
            text = nano.vocab.tokenize(whole, add_special=True, parse_special=True)
            before = trunk.tokens
            assert text[: len(before)] == before, "a turn goes on where the last one ended"
            trunk.prefill(text[len(before) :])
            with store.create(text) as cold:
                assert trunk.tokens == cold.tokens
                assert same(trunk.logits, cold.logits)
            store.retain_only(trunk)


@behaviours("N21")
def test_schemas_become_grammars(nano, new_context):
    rules = grammar.from_json_schema({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
    assert "root" in rules
    assert grammar.from_json_schema('{"type": "boolean"}') == grammar.from_json_schema({"type": "boolean"})
    with lloyal.BranchStore(new_context(nano)) as store:
        branch = store.create(PROMPT, sampling=GREEDY, json_schema={"type": "boolean"})
        assert "".join(branch.stream(10)).strip() in ("true", "false")
    for wrong in ("{", '{"$ref": "#/nowhere"}', '{"type": "no such"}'):
        with pytest.raises(errors.InvalidGrammar):
            grammar.from_json_schema(wrong)


# Embeddings


@behaviours("65", "66", "67", "162")
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_embeddings_are_pooled_as_asked(nano, new_context, pooling):
    ctx = new_context(nano, embeddings=True, pooling=pooling, n_seq_max=2)
    assert 0 < nano.n_embd_out <= 8192
    assert ctx.pooling == pooling
    with pytest.raises(errors.NoLogits):
        ctx.embeddings(seq_id=0)
    batch = lloyal.Batch()
    batch.extend([20, 21, 22], 0, 0, True)
    ctx.decode(batch)
    pooled = ctx.embeddings(seq_id=0, copy=True)
    assert pooled.shape == (nano.n_embd_out,)
    assert np.abs(pooled).sum() > 0
    with pytest.raises((errors.NoLogits, errors.InvalidArgument)):
        ctx.embeddings(seq_id=1)
    plain = new_context(nano, embeddings=True, pooling="none")
    plain.decode(batch)
    rows = np.array([plain.embeddings(i, copy=True) for i in range(3)])
    expected = {"mean": rows.mean(axis=0), "cls": rows[0], "last": rows[2]}[pooling]
    assert pooled == pytest.approx(expected, abs=2e-2 * float(np.abs(rows).max()))
    closed = new_context(nano)
    closed.close()
    with pytest.raises(errors.Closed):
        closed.embeddings(0)


@behaviours("65", "66")
def test_a_context_for_logits_has_no_embeddings(nano, new_context):
    ctx = new_context(nano)
    lloyal.prefill(ctx, PROMPT)
    with pytest.raises(errors.NoLogits):
        ctx.embeddings(0)


@behaviours("66", "68", "162", "N28")
def test_vectors_have_length_one_and_their_products_are_cosines(nano):
    rows = lloyal.embed(nano, ["import os", "import os", "import sys", "class A:\n    pass"], n_threads=1)
    raw = lloyal.embed(nano, "import sys", normalize=False, n_threads=1)[0]
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    cosines = rows @ rows.T
    assert cosines[0, 1] > 0.99
    assert np.abs(cosines).max() <= 1 + 1e-5
    assert cosines[0, 1] > cosines[0, 2] > cosines[0, 3]
    assert raw / np.linalg.norm(raw) == pytest.approx(rows[2], abs=2e-3)
    assert np.linalg.norm(raw) != pytest.approx(1)
    with pytest.raises(ValueError):
        _ = rows[0] @ rows[0][:5]
