"""What callers may begin a text with, and the rules and limits they give it: the same wherever texts are generated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, cast

from lloyal.errors import InvalidArgument
from lloyal.llama import Sampler, Vocab

if TYPE_CHECKING:
    from lloyal.llama.common import ChatPrompt

__all__ = ["as_chat", "check_count", "check_max_tokens", "one_grammar", "tokens_of"]

MOST_TEXTS = 1 << 16  #: of one call


def as_chat(prompt: object) -> ChatPrompt | None:
    """The prompt if it is a chat's."""
    # Without importing llama-common, which not every program needs.
    return cast("ChatPrompt", prompt) if hasattr(prompt, "generation_prompt") else None


def tokens_of(vocab: Vocab, prompt: str | bytes | Sequence[int] | ChatPrompt, *, beginning: bool) -> list[int]:
    """The tokens of a prompt; with the special tokens that the model asks for where a text is `beginning`."""
    chat = as_chat(prompt)
    if chat is not None:
        return vocab.tokenize(chat.prompt, add_special=beginning, parse_special=True)
    if isinstance(prompt, (str, bytes)):
        return vocab.tokenize(prompt, add_special=beginning)
    return list(cast("Sequence[int]", prompt))


def one_grammar(
    vocab: Vocab,
    chat: ChatPrompt | None,
    grammar: str | Sampler | None,
    json_schema: Mapping[str, Any] | bool | str | None,
) -> str | Sampler | None:
    """The one grammar that was asked for; `InvalidArgument` if there are several."""
    asked = [name for name, value in (("grammar", grammar), ("json_schema", json_schema)) if value is not None]
    if chat is not None and chat.grammar:
        asked.append("the chat's own grammar")
    if len(asked) > 1:
        raise InvalidArgument(f"give one of {' and '.join(asked)}: a text cannot follow two grammars")
    if json_schema is not None:
        from lloyal.grammar import from_json_schema  # llama-common: loaded when it is needed

        return from_json_schema(json_schema)
    if chat is not None and chat.grammar:
        from lloyal.chat import grammar_sampler

        return grammar_sampler(vocab, chat)
    return grammar


def check_count(name: str, n: int, least: int = 1, most: int = MOST_TEXTS) -> int:
    """The number, `InvalidArgument` unless there can be so many, of texts at once if nothing else is said."""
    if not isinstance(n, Integral) or isinstance(n, bool) or not least <= int(n) <= most:
        raise InvalidArgument(f"{name}={n!r} must be an integer from {least} to {most}")
    return int(n)


def check_max_tokens(max_tokens: int | None) -> None:
    """`InvalidArgument` unless it is a number of tokens, or None."""
    if max_tokens is not None and (not isinstance(max_tokens, Integral) or max_tokens < 1):
        raise InvalidArgument(f"max_tokens={max_tokens!r} must be an integer from 1, or None for no limit")
