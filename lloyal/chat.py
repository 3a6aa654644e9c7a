"""Chats as text: a model's own chat template, or one of llama.cpp's built-in formats.

This module knows nothing about tokens or sampling: text goes in, text comes out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lloyal.errors import InvalidArgument
from lloyal.llama import Model
from lloyal.llama.common import ChatPrompt, ChatTemplates, chat_apply_template, chat_builtin_templates

__all__ = ["ChatPrompt", "ChatTemplates", "apply_template", "builtin_templates", "format_builtin"]


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
