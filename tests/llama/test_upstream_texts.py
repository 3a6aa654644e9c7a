"""Upstream's own chat templates and JSON schemas: limits on what texts may take must not touch the honest ones."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

import lloyal
from lloyal import chat, grammar
from lloyal.errors import InvalidArgument, InvalidGrammar
from tests.contracts.source import ROOT

LLAMA_CPP = ROOT / "vendor" / "llama.cpp"
TEMPLATES = sorted((LLAMA_CPP / "models" / "templates").glob("*.jinja"))
SCHEMAS = LLAMA_CPP / "tests" / "test-json-schema-to-grammar.cpp"

CHAT = [
    {"role": "user", "content": "What is 1 < 2?"},
    {"role": "assistant", "content": "It is true."},
    {"role": "user", "content": "Grüße aus Köln"},
]
TOOLS = [{"type": "function", "function": {
    "name": "get_weather", "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                   "required": ["city"]}}}]  # fmt: skip
CALL = {"role": "assistant", "content": "", "tool_calls": [
    {"type": "function", "id": "call00001",
     "function": {"name": "get_weather", "arguments": '{"city": "Köln"}'}}]}  # fmt: skip
ANSWER = {"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": '{"sky": "grey"}'}
CHATS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "plain": (CHAT, {}),
    "system": ([{"role": "system", "content": "Be brief."}, *CHAT], {}),
    "tools": (CHAT, {"tools": TOOLS}),
    "call": ([*CHAT[:1], CALL, ANSWER], {"tools": TOOLS, "parallel_tool_calls": True}),
    "schema": (CHAT, {"json_schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}),
    "long": ([{"role": ("user", "assistant")[i % 2], "content": f"{i} " + "word " * 40} for i in range(101)], {}),
}
LIMIT = re.compile("takes more than|nested too deeply|bytes, more than")


@pytest.fixture(scope="module", params=TEMPLATES, ids=lambda path: path.stem)
def templates(request: pytest.FixtureRequest, nano: lloyal.Model) -> chat.ChatTemplates:
    return chat.ChatTemplates(nano, request.param.read_text())


def test_there_are_templates() -> None:
    assert len(TEMPLATES) > 50


@pytest.mark.parametrize("kind", CHATS)
def test_templates_apply(nano: lloyal.Model, templates: chat.ChatTemplates, kind: str) -> None:
    messages, options = CHATS[kind]
    try:
        prompt = templates.apply(messages, **options)
    except InvalidArgument as error:  # some refuse a role, or a call without an id of their own form
        if kind == "plain" or LIMIT.search(str(error)):
            raise
        return
    if kind != "call":  # an answer of a tool is written in many ways
        assert messages[-1]["content"].strip() in prompt.prompt
    patterns = [
        re.escape(text) if form == "word" else text for form, text in prompt.grammar_triggers if form != "token"
    ]
    if prompt.grammar:
        lloyal.Sampler.grammar(nano.vocab, prompt.grammar)
    if patterns:
        lloyal.Sampler.grammar_lazy_patterns(nano.vocab, prompt.grammar, "root", patterns)


def schema_cases() -> list[tuple[str, str, str, str]]:
    found = re.findall(
        r'test\(\{\s*(SUCCESS|FAILURE),\s*"((?:[^"\\]|\\.)*)",\s*(?:R"""\((.*?)\)"""|"(\{\})"),\s*(?:R"""\((.*?)\)"""|"")\s*\}\)',
        SCHEMAS.read_text(),
        re.DOTALL,
    )
    return [(status, name, raw or plain, expected) for status, name, raw, plain, expected in found]


def trimmed(text: str) -> str:
    return re.sub(r"(^|\n)[ \t]+", r"\1", text.strip(" \n\r\t"))


def test_there_are_schemas() -> None:
    assert len(schema_cases()) == SCHEMAS.read_text().count("test({") > 60


@pytest.mark.parametrize(("status", "name", "schema", "expected"), schema_cases(), ids=lambda value: str(value)[:40])
def test_schemas_give_the_same_grammars(status: str, name: str, schema: str, expected: str) -> None:
    if status == "FAILURE":
        with pytest.raises(InvalidGrammar) as caught:
            grammar.from_json_schema(schema)
        assert not LIMIT.search(str(caught.value))
        return
    assert trimmed(grammar.from_json_schema(schema)) == trimmed(expected)
    assert json.loads(schema) is not None or schema.strip() == "null"
