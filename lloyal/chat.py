"""Chats as text: a model's own chat template, or one of llama.cpp's built-in formats.

`lloyal.Conversation` and `stream` answer chats; the rest of this module makes text of messages and generates nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lloyal.errors import InvalidArgument, InvalidGrammar
from lloyal.llama import Model, Sampler, Vocab
from lloyal.llama.common import ChatPrompt, ChatTemplates, chat_apply_template, chat_builtin_templates
from lloyal.tokenization import tokens_behind

if TYPE_CHECKING:
    from lloyal.conversation import Reply, stream

__all__ = [
    "ChatPrompt",
    "ChatTemplates",
    "Reply",
    "apply_template",
    "builtin_templates",
    "format_builtin",
    "grammar_sampler",
    "stream",
]


def __getattr__(name: str) -> Any:
    if name in ("Reply", "stream"):  # they generate, and stand above this module
        return getattr(import_module("lloyal.conversation"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def apply_template(
    model: Model,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = True,
    *,
    template: str | None = None,
    **options: Any,
) -> ChatPrompt:
    """Write a chat as the model was trained to read it.

    For many chats with one model, keep a `ChatTemplates`: parsing a template takes longer than running it.

    Parameters
    ----------
    model : Model
    messages : sequence of mapping
        As chat completion APIs take them, such as ``{"role": "user", "content": "Hi"}``.
    add_generation_prompt : bool
        End with what opens an answer.
    template : str, optional
        Jinja source instead of the model's own template. A model without one gets ChatML.
    **options
        As for `ChatTemplates.apply`: tools, json_schema, enable_thinking, ..., and variables of the template.

    Returns
    -------
    ChatPrompt
        ``str(...)`` of it is the text.

    Raises
    ------
    InvalidArgument
        The template or the messages have an error.
    """
    return ChatTemplates(model, template).apply(messages, add_generation_prompt=add_generation_prompt, **options)


def builtin_templates() -> list[str]:
    """Names of the formats that `format_builtin` knows."""
    return chat_builtin_templates()


def format_builtin(name: str, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
    """Write a chat of plain text messages in one of llama.cpp's built-in formats; needs no model.

    Parameters
    ----------
    name : str
        One of `builtin_templates()`.
    messages : sequence of mapping
        With a role and a content each.
    add_generation_prompt : bool
        End with what opens an answer.

    Raises
    ------
    InvalidArgument
        The name is unknown or there are no messages.
    """
    chat = []
    for i, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise InvalidArgument(f"messages[{i}]={dict(message)!r} must have a role and a content, both text")
        chat.append((role, content))
    return chat_apply_template(name, chat, add_generation_prompt)


def grammar_sampler(vocab: Vocab, prompt: ChatPrompt) -> Sampler | None:
    """The sampler that holds an answer to what a prompt asks for: a JSON schema, tools, a grammar.

    Put it before the others of a chain. `lloyal.generate` does so when it is given the `ChatPrompt` itself.

    Parameters
    ----------
    vocab : Vocab
    prompt : ChatPrompt

    Returns
    -------
    Sampler or None
        It stands behind `ChatPrompt.grammar_prefix`, where the answer begins. None if any answer will do.

    Raises
    ------
    InvalidGrammar
        llama-common wrote a grammar that does not begin as the prompt ends.
    """
    if not prompt.grammar:
        return None
    if prompt.grammar_lazy:
        return _lazy_grammar(vocab, prompt)
    sampler = Sampler.grammar(vocab, prompt.grammar)
    for token in tokens_behind(vocab, prompt.grammar_prefix, parse_special=True):
        try:
            sampler.accept(token)
        except InvalidArgument as error:
            raise InvalidGrammar(
                f"the grammar does not begin with {prompt.grammar_prefix!r}, which the prompt ends with"
            ) from error
    return sampler


def _lazy_grammar(vocab: Vocab, prompt: ChatPrompt) -> Sampler:
    patterns, tokens = [], []
    for kind, text in prompt.grammar_triggers:
        if kind in ("token", "word"):
            ids = vocab.tokenize(text, add_special=False, parse_special=True)
            if len(ids) == 1 and (kind == "token" or text in prompt.preserved_tokens):
                tokens.append(ids[0])  # its text is never seen by a pattern
            else:
                patterns.append(re.sub(r"([.^$|()*+?\[\]{}\\])", r"\\\1", text))
        elif kind == "pattern":
            patterns.append(text)
        else:
            patterns.append("^" + text.removeprefix("^").removesuffix("$") + "$")
    return Sampler.grammar_lazy_patterns(vocab, prompt.grammar, trigger_patterns=patterns, trigger_tokens=tokens)
