# Written by tools/stubs.py from common.pyx.
"""Chat templates and JSON schemas as grammars: llama.h's simple form and llama-common's full one."""

from collections.abc import Mapping, Sequence
from lloyal.llama.model import Model
from typing import Any

__all__ = ["ChatPrompt", "ChatTemplates", "chat_apply_template", "chat_builtin_templates", "json_schema_to_grammar"]

def json_schema_to_grammar(schema: str) -> str:
    """A GBNF grammar that admits what a JSON schema admits.

    Parameters
    ----------
    schema : str
        The schema as JSON text.

    Raises
    ------
    InvalidGrammar
        It is no JSON, or uses what llama.cpp cannot express.

    Notes
    -----
    Releases the GIL. What the grammar leaves open, such as a pattern that it cannot express, is a warning in the log.
    """

def chat_builtin_templates() -> list[str]:
    """Names of the chat formats that `chat_apply_template` knows (``llama_chat_builtin_templates``)."""

def chat_apply_template(tmpl: str, chat: Sequence[tuple[str, str]], add_ass: bool = True) -> str:
    """Write a chat in one of llama.cpp's built-in formats (``llama_chat_apply_template``).

    It does not run the template: it recognizes it. `ChatTemplates` runs it.

    Parameters
    ----------
    tmpl : str
        A name from `chat_builtin_templates`, or the source of a template.
    chat : sequence of (role, content)
    add_ass : bool
        End with what opens an answer.

    Raises
    ------
    InvalidArgument
        The template is none of the known, or there are no messages.

    Notes
    -----
    Releases the GIL.
    """

class ChatPrompt:
    """A chat as text for the model, and what is to be known for generating and reading the answer."""

    def __init__(self) -> None: ...
    @property
    def prompt(self) -> str:
        """The whole text. Tokenize it with ``add_special=True, parse_special=True``."""
    @property
    def generation_prompt(self) -> str:
        """The end of `prompt` that opens the answer."""
    @property
    def grammar(self) -> str:
        """GBNF that `grammar_prefix` and the answer must follow; empty if there is none."""
    @property
    def grammar_prefix(self) -> str:
        """The end of `prompt` that `grammar` begins with: a sampler has to accept its tokens before it picks any.

        `lloyal.chat.grammar_sampler` does that. Empty for a grammar of your own, and for one that waits for a trigger.
        """
    @property
    def grammar_lazy(self) -> bool:
        """True if the grammar starts only at one of `grammar_triggers`."""
    @property
    def grammar_triggers(self) -> list[tuple[str, str]]:
        """Kind (``"token"``, ``"word"``, ``"pattern"`` or ``"pattern_full"``) and text of each."""
    @property
    def stops(self) -> list[str]:
        """Texts that end the answer besides the end-of-generation tokens."""
    @property
    def preserved_tokens(self) -> list[str]:
        """Special tokens that must reach `parse` as text."""
    @property
    def thinking_tags(self) -> tuple[str, list[str]] | None:
        """What opens and what may close the model's reasoning; None if the template has none."""
    def parse(self, answer: str, partial: bool = False) -> dict[str, Any]:
        """Read an answer: its content, reasoning and tool calls, as a message of a chat completion API.

        Parameters
        ----------
        answer : str
            The generated text, special tokens of `preserved_tokens` included.
        partial : bool
            It goes on: give what is certain so far.

        Raises
        ------
        InvalidArgument
            It does not have the form that the template asked for.

        Notes
        -----
        Releases the GIL.
        """
    def __str__(self) -> str: ...
    def __repr__(self) -> str: ...

class ChatTemplates:
    """The chat template of a model, parsed once; keeps the model alive.

    Parameters
    ----------
    model : Model
    template : str, optional
        Jinja source to use instead of the model's own, or ``"chatml"``. Without either, ChatML.

    Raises
    ------
    InvalidArgument
        The template has an error; the message says where.
    """

    def __init__(self, model: Model, template: str | None = None) -> None: ...
    def source(self, variant: str = "") -> str:
        """The template's source; `variant` may be ``"tool_use"``, empty if there is none."""
    @property
    def capabilities(self) -> dict[str, bool]:
        """What the template can express: tools, system role, reasoning and so on."""
    def apply(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, tools: Sequence[Mapping[str, Any]] = (), tool_choice: str = "auto", parallel_tool_calls: bool = False, json_schema: Mapping[str, Any] | None = None, grammar: str = "", enable_thinking: bool = True, **variables: Any) -> ChatPrompt:
        """Run the template over a chat.

        Parameters
        ----------
        messages : sequence of mapping
            As chat completion APIs take them: role, content, tool_calls, ...
        add_generation_prompt : bool
            End with what opens an answer.
        tools : sequence of mapping
            Functions the model may call, as chat completion APIs take them.
        tool_choice : {"auto", "required", "none"}
        parallel_tool_calls : bool
            Let the model call several at once.
        json_schema : mapping, optional
            What the answer must fit; it becomes `ChatPrompt.grammar`.
        grammar : str
            The same as GBNF.
        enable_thinking : bool
            Passed to templates that know it.
        **variables
            Further variables of the template; values that JSON can hold.

        Raises
        ------
        InvalidArgument
            The messages or tools are malformed, or the template raised.

        Notes
        -----
        Releases the GIL.
        """
