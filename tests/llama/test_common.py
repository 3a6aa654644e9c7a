"""Chat templates and JSON schemas: llama-common's results against plain Python, and inputs it must survive."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from typing import Any

import pytest

import lloyal
import lloyal.llama as ll
from lloyal import chat, grammar
from lloyal.errors import InvalidArgument, InvalidGrammar
from tests.models import tiny

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Grüße, what is 1 < 2?"},
]
TOOLS = [{"type": "function", "function": {
    "name": "get_weather", "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]  # fmt: skip

PLAIN = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def plain(messages: list[dict[str, str]], open_answer: bool) -> str:
    return "".join(f"[{m['role']}] {m['content']}\n" for m in messages) + ("[assistant] " if open_answer else "")


def chatml(messages: list[dict[str, str]], open_answer: bool) -> str:
    text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return text + ("<|im_start|>assistant\n" if open_answer else "")


@pytest.mark.parametrize("open_answer", [True, False])
def test_a_template_runs(nano: ll.Model, open_answer: bool) -> None:
    prompt = chat.apply_template(nano, MESSAGES, open_answer, template=PLAIN)
    assert str(prompt) == prompt.prompt == plain(MESSAGES, open_answer)
    assert chat.apply_template(nano, MESSAGES, open_answer, template="chatml").prompt == chatml(MESSAGES, open_answer)


def test_the_default_is_the_models_own_or_chatml(nano: ll.Model) -> None:
    assert chat.ChatTemplates(nano).source() == nano.chat_template()
    assert chat.apply_template(nano, MESSAGES).prompt == chatml(MESSAGES, True)
    with ll.Model(tiny("llama"), vocab_only=True) as bare:
        assert bare.chat_template() is None
        assert chat.apply_template(bare, MESSAGES).prompt == chatml(MESSAGES, True)


def test_variables_reach_the_template(nano: ll.Model) -> None:
    templates = chat.ChatTemplates(
        nano, "{{ date }}|{{ n + 1 }}|{{ 'yes' if enable_thinking else 'no' }}|{{ messages[0].content }}"
    )
    prompt = templates.apply(MESSAGES[1:2], date="today", n=41, enable_thinking=False)
    assert prompt.prompt == "today|42|no|Hi"
    assert "date" in templates.source()
    assert templates.source("tool_use") == ""
    assert all(isinstance(value, bool) for value in templates.capabilities.values())


def test_templates_keep_the_model_alive() -> None:
    model = ll.Model(lloyal.models.path("nano"), vocab_only=True)
    templates = chat.ChatTemplates(model, PLAIN)
    model.close()
    assert templates.apply(MESSAGES).prompt == plain(MESSAGES, True)


def test_an_answer_is_read_back(nano: ll.Model) -> None:
    prompt = chat.apply_template(nano, MESSAGES, template="chatml")
    assert prompt.parse("It is.") == {"role": "assistant", "content": "It is."}
    assert prompt.thinking_tags is None
    assert not prompt.grammar


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}", "Unexpected token"),
        ("{{ messages | no_such_filter }}", "no_such_filter"),
        ("{{ raise_exception('only one system message') }}", "only one system message"),
        ("{{ (1 + }}", ""),
        ("{% if %}", ""),
    ],
)
def test_templates_with_errors(nano: ll.Model, template: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        chat.apply_template(nano, MESSAGES, template=template)
    assert message in str(caught.value)
    assert str(caught.value) != "std::exception"


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1" + "+1" * 20_000 + " }}",
        "{{ 'a'" + "|trim" * 10_000 + " }}",
        "{{ messages" + ".a" * 20_000 + " }}",
        "{{ " + "not " * 10_000 + "1 }}",
        "{{ " + "(" * 10_000 + "1" + ")" * 10_000 + " }}",
        "{% if 1 %}" * 3_000 + "{% endif %}" * 3_000,
    ],
    ids=["sum", "filters", "attributes", "not", "parentheses", "if"],
)
def test_templates_nested_deeply(nano: ll.Model, template: str) -> None:
    try:
        chat.apply_template(nano, MESSAGES, template=template)
    except InvalidArgument as error:
        if "takes more than" not in str(error):
            raise


@pytest.mark.parametrize(
    "template",
    ["{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "{% macro f(g) %}{{ g(g) }}{% endmacro %}{{ f(f) }}"],
)
def test_templates_that_call_themselves_without_end(nano: ll.Model, template: str) -> None:
    with pytest.raises(InvalidArgument, match=r"calls itself without end|takes more than"):
        chat.apply_template(nano, MESSAGES, template=template)


def test_macros_may_recurse(nano: ll.Model) -> None:
    template = "{% macro f(n) %}{{ n }}{% if n > 0 %},{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(200) }}"
    assert str(chat.apply_template(nano, MESSAGES, template=template)) == ",".join(map(str, range(200, -1, -1)))


def test_templates_that_are_too_long(nano: ll.Model) -> None:
    with pytest.raises(InvalidArgument, match="131073 bytes"):
        chat.apply_template(nano, MESSAGES, template="x" * (128 * 1024 + 1))


@pytest.mark.parametrize(
    "messages",
    [
        [{"content": "no role"}],
        [{"role": "user"}],
        [{"role": "user", "content": 5}],
        [{"role": 5, "content": "x"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
        [{"role": "user", "content": [{"text": "x"}]}],
        [{"role": "assistant", "tool_calls": [{}]}],
        [{"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f"}}]}],
        ["text"],
        [None],
        [{"role": "user", "content": object()}],
        [{"role": "user", "content": "\ud800"}],
    ],
)
def test_messages_that_are_malformed(nano: ll.Model, messages: list[Any]) -> None:
    with pytest.raises(InvalidArgument):
        chat.apply_template(nano, messages, template="chatml")


@pytest.mark.parametrize("tools", [[{}], [{"type": "function"}], [{"type": "function", "function": {}}], ["f"], [5]])
def test_tools_that_are_malformed(nano: ll.Model, tools: list[Any]) -> None:
    with pytest.raises(InvalidArgument):
        chat.apply_template(nano, MESSAGES, template="chatml", tools=tools)


def test_tool_choice_is_checked(nano: ll.Model) -> None:
    with pytest.raises(InvalidArgument, match="tool_choice='maybe'"):
        chat.apply_template(nano, MESSAGES, template="chatml", tools=TOOLS, tool_choice="maybe")


def test_builtin_formats() -> None:
    names = chat.builtin_templates()
    assert {"chatml", "llama3", "gemma"} <= set(names)
    assert chat.format_builtin("chatml", MESSAGES) == chatml(MESSAGES, True)
    for name in names:
        text = chat.format_builtin(name, MESSAGES)
        assert "Grüße, what is 1 < 2?" in text
        assert len(chat.format_builtin(name, MESSAGES, False)) <= len(text)
    with pytest.raises(InvalidArgument, match="'no such' is none of the formats"):
        chat.format_builtin("no such", MESSAGES)
    with pytest.raises(InvalidArgument, match="no messages"):
        chat.format_builtin("chatml", [])


def _admits(vocab: ll.Vocab, text: str, answer: str) -> bool:
    """True if the grammar allows `answer`, token by token, and an end after it."""
    sampler = ll.Sampler.grammar(vocab, text)
    tokens = vocab.tokenize(answer, add_special=False, parse_special=True)
    assert vocab.eos is not None
    try:
        for token in [*tokens, vocab.eos]:
            sampler.accept(token)
    except InvalidArgument:
        return False
    return True


@pytest.mark.parametrize(
    ("schema", "fits", "misfits"),
    [
        ({"type": "integer"}, ["0", "-12"], ["1.5", "x", '"1"']),
        ({"enum": ["red", 5, None]}, ['"red"', "5", "null"], ['"blue"', "6"]),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 1}, ["[true]", "[true, false]"], ["[]", "[1]"]),
        ({"type": "string", "pattern": "^a+b$"}, ['"ab"', '"aaab"'], ['"b"', '"abb"']),
        (
            {
                "$defs": {"leaf": {"type": "null"}},
                "type": "object",
                "properties": {"a": {"$ref": "#/$defs/leaf"}},
                "required": ["a"],
            },
            ['{"a": null}'],
            ['{"a": 1}', "{}"],
        ),
    ],
)  # fmt: skip
def test_a_grammar_admits_what_its_schema_admits(
    nano: ll.Model, schema: dict[str, Any], fits: list[str], misfits: list[str]
) -> None:
    text = grammar.from_json_schema(schema)
    assert text == grammar.from_json_schema(json.dumps(schema))
    for answer in fits:
        json.loads(answer)
        assert _admits(nano.vocab, text, answer), answer
    for answer in misfits:
        assert not _admits(nano.vocab, text, answer), answer


@pytest.mark.parametrize(
    "schema",
    ["{", "", "[1, 2", '{"type": "no such"}', '{"$ref": "#/no/such"}', {"type": object()}, "\x00"],
)
def test_schemas_that_are_none(schema: Any) -> None:
    with pytest.raises(InvalidGrammar):
        grammar.from_json_schema(schema)


BLOW_UPS = {
    "a long loop": "{% for i in range(1000000000000) %}{% endfor %}",
    "nested loops": "{% for i in range(10000) %}{% for j in range(10000) %}{% endfor %}{% endfor %}",
    "a repeated string": "{{ 'x' * 1000000000000 }}",
    "doubling": "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "indentation": "{{ messages|tojson(indent=1000000000) }}",
    "a list in itself": "{% set a = [] %}{% set _ = a.append(a) %}{{ a }}",
    "a list in itself as JSON": "{% set a = [] %}{% set _ = a.append(a) %}{{ a|tojson }}",
}


@pytest.mark.parametrize("kind", BLOW_UPS)
def test_templates_that_blow_up(nano: ll.Model, kind: str) -> None:
    start = time.process_time()
    with pytest.raises(InvalidArgument, match=r"the template (takes more than|is nested too deeply)|unhashable"):
        chat.apply_template(nano, MESSAGES, template=BLOW_UPS[kind])
    assert time.process_time() - start < 3


def test_values_that_nest_deeply(nano: ll.Model) -> None:
    """They are dropped, and hashed, by recursion that nothing can stop."""
    for n in (100, 1_000, 200_000):
        for grown in ("[ns.s]", "(ns.s, 1)", "{'k': ns.s}", "{ns.s: 1}"):
            template = (
                "{% set ns = namespace(s=1) %}{% for i in range(N) %}{% set ns.s = GROWN %}{% endfor %}"
                "{% set a = {} %}{% set _ = a.get(ns.s) %}"
            )
            with contextlib.suppress(InvalidArgument):
                chat.apply_template(nano, MESSAGES, template=template.replace("N", str(n)).replace("GROWN", grown))


def test_a_signal_ends_a_template(nano: ll.Model) -> None:
    def on_alarm(*_: object) -> None:
        raise KeyboardInterrupt

    template = "{% for i in range(10000) %}{% for j in range(10000) %}{% endfor %}{% endfor %}"
    for apply in (
        lambda: chat.apply_template(nano, MESSAGES, template=template),
        lambda: grammar.from_json_schema(WIDE),
    ):
        before = signal.signal(signal.SIGPROF, on_alarm)
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, 0.1)
        try:
            with pytest.raises(KeyboardInterrupt):
                apply()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)
        assert 0.05 < time.process_time() - start < 0.6


def references(n: int) -> dict[str, Any]:
    return {"$ref": "#/$defs/a0", "$defs": {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(n)}}


WIDE: dict[str, Any] = {"properties": {f"p{i}": {} for i in range(1600)}}


@pytest.mark.parametrize(
    ("schema", "limit"),
    [
        (WIDE, "takes more than"),
        (references(20_000), "than|resolve"),
        (references(50_000), "bytes, more than"),
        ({"properties": {"-" * 70_000: {}}}, "string of 7000. bytes"),
        ({"type": "string", "pattern": "^" + "(" * 50_000 + "a" + ")" * 50_000 + "$"}, "than"),
    ],
)  # fmt: skip
def test_schemas_that_blow_up(schema: dict[str, Any], limit: str) -> None:
    with pytest.raises(InvalidGrammar, match=limit):
        grammar.from_json_schema(schema)


def test_a_pattern_that_is_not_kept_is_a_warning_in_the_log(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level("WARNING", logger="lloyal.native"):
        grammar.from_json_schema({"type": "string", "pattern": "a|b"})
    assert "a|b" in caplog.text
    assert "accepting any string" in caplog.text
    assert capfd.readouterr() == ("", "")
