# cython: language_level=3
"""Chat templates and JSON schemas as grammars: llama.h's simple form and llama-common's full one."""

from libc.stdint cimport int32_t
from libcpp.string cimport string
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core
cimport lloyal._cpp.model as cmodel
cimport lloyal.libllama.llama as c
from lloyal.llama.backend cimport ensure_started
from lloyal.llama.model cimport Model
from lloyal.llama.status cimport check

import json

from lloyal.errors import Closed, InvalidArgument

__all__ = ["ChatPrompt", "ChatTemplates", "chat_apply_template", "chat_builtin_templates", "json_schema_to_grammar"]

# common_grammar_trigger_type
cdef tuple _TRIGGERS = ("token", "word", "pattern", "pattern_full")


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
    cdef string text = schema.encode()
    cdef string grammar
    cdef core.Status status
    ensure_started()  # for its log
    with nogil:
        status = cmodel.grammar_from_json_schema(text, grammar)
    check(status)
    return grammar.decode()


def chat_builtin_templates() -> list[str]:
    """Names of the chat formats that `chat_apply_template` knows (``llama_chat_builtin_templates``)."""
    cdef vector[const char*] names
    names.resize(c.llama_chat_builtin_templates(NULL, 0))
    c.llama_chat_builtin_templates(names.data(), names.size())
    return [names[i].decode() for i in range(names.size())]


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
    cdef vector[c.llama_chat_message] messages
    cdef c.llama_chat_message message
    cdef bytes source = tmpl.encode()
    cdef const char* text = source
    cdef bint open_answer = add_ass
    cdef int32_t size
    cdef string out
    kept = [(role.encode(), content.encode()) for role, content in chat]
    if not kept:
        raise InvalidArgument("the chat has no messages")
    for role, content in kept:
        message.role = role
        message.content = content
        messages.push_back(message)
    with nogil:
        size = c.llama_chat_apply_template(text, messages.data(), messages.size(), open_answer, NULL, 0)
        if size > 0:
            out.resize(size)
            c.llama_chat_apply_template(text, messages.data(), messages.size(), open_answer, &out[0], size)
    if size < 0:
        raise InvalidArgument(f"tmpl={tmpl[:80]!r} is none of the formats llama.cpp knows: {', '.join(chat_builtin_templates())}; "
                              "ChatTemplates runs any template")
    return out.decode("utf-8", "replace")


cdef class ChatPrompt:
    """A chat as text for the model, and what is to be known for generating and reading the answer."""

    cdef cmodel.ChatPrompt native
    cdef bint own_grammar

    def __init__(self):
        raise TypeError("ChatPrompt cannot be made directly: use ChatTemplates.apply")

    @property
    def prompt(self) -> str:
        """The whole text. Tokenize it with ``add_special=True, parse_special=True``."""
        return self.native.prompt.decode("utf-8", "replace")

    @property
    def generation_prompt(self) -> str:
        """The end of `prompt` that opens the answer."""
        return self.native.generation_prompt.decode("utf-8", "replace")

    @property
    def grammar(self) -> str:
        """GBNF that `grammar_prefix` and the answer must follow; empty if there is none."""
        return self.native.grammar.decode("utf-8", "replace")

    @property
    def grammar_prefix(self) -> str:
        """The end of `prompt` that `grammar` begins with: a sampler has to accept its tokens before it picks any.

        `lloyal.chat.grammar_sampler` does that. Empty for a grammar of your own, and for one that waits for a trigger.
        """
        if self.own_grammar or self.native.grammar_lazy or self.native.grammar.empty():
            return ""
        return self.generation_prompt

    @property
    def grammar_lazy(self) -> bool:
        """True if the grammar starts only at one of `grammar_triggers`."""
        return self.native.grammar_lazy

    @property
    def grammar_triggers(self) -> list[tuple[str, str]]:
        """Kind (``"token"``, ``"word"``, ``"pattern"`` or ``"pattern_full"``) and text of each."""
        return [(_TRIGGERS[self.native.grammar_triggers[i].first], self.native.grammar_triggers[i].second.decode())
                for i in range(self.native.grammar_triggers.size())]

    @property
    def stops(self) -> list[str]:
        """Texts that end the answer besides the end-of-generation tokens."""
        return [self.native.stops[i].decode() for i in range(self.native.stops.size())]

    @property
    def preserved_tokens(self) -> list[str]:
        """Special tokens that must reach `parse` as text."""
        return [self.native.preserved_tokens[i].decode() for i in range(self.native.preserved_tokens.size())]

    @property
    def thinking_tags(self) -> tuple[str, list[str]] | None:
        """What opens and what may close the model's reasoning; None if the template has none."""
        if not self.native.supports_thinking:
            return None
        ends = [self.native.thinking_end_tags[i].decode() for i in range(self.native.thinking_end_tags.size())]
        return self.native.thinking_start_tag.decode(), ends

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
        cdef string text = answer.encode()
        cdef string message
        cdef core.Status status
        cdef bint more = partial
        with nogil:
            status = cmodel.chat_parse(self.native, text, more, message)
        check(status)
        return json.loads(message)

    def __str__(self):
        return self.prompt

    def __repr__(self):
        return f"<ChatPrompt of {self.native.prompt.size()} bytes>"


cdef class ChatTemplates:
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

    cdef cmodel.ChatTemplatesHandle handle

    def __init__(self, Model model not None, template: str | None = None):
        cdef core.ModelHandle weights = model.pin()
        cdef string source = (template or "").encode()
        cdef core.Status status
        with nogil:
            status = cmodel.chat_templates_load(weights, source, self.handle)
        check(status)

    cdef cmodel.ChatTemplates* _loaded(self) except NULL:
        if self.handle.get() == NULL:
            raise Closed("these templates were never loaded: ChatTemplates.__init__ was not called")
        return self.handle.get()

    def source(self, variant: str = "") -> str:
        """The template's source; `variant` may be ``"tool_use"``, empty if there is none."""
        return self._loaded().source(variant.encode()).decode("utf-8", "replace")

    @property
    def capabilities(self) -> dict[str, bool]:
        """What the template can express: tools, system role, reasoning and so on."""
        return {name.decode(): value for name, value in dict(self._loaded().capabilities()).items()}

    def apply(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True,
              tools: Sequence[Mapping[str, Any]] = (), tool_choice: str = "auto", parallel_tool_calls: bool = False,
              json_schema: Mapping[str, Any] | None = None, grammar: str = "", enable_thinking: bool = True,
              **variables: Any) -> ChatPrompt:
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
        cdef ChatPrompt out = ChatPrompt.__new__(ChatPrompt)
        cdef cmodel.ChatInputs inputs
        cdef cmodel.ChatTemplates* templates
        cdef core.Status status
        if tool_choice not in ("auto", "required", "none"):
            raise InvalidArgument(f"tool_choice={tool_choice!r} must be 'auto', 'required' or 'none'")
        inputs.messages = _json("messages", list(messages))
        if tools:
            inputs.tools = _json("tools", list(tools))
        inputs.tool_choice = tool_choice.encode()
        if json_schema is not None:
            inputs.json_schema = _json("json_schema", json_schema)
        inputs.grammar = grammar.encode()
        out.own_grammar = bool(grammar)
        inputs.add_generation_prompt = add_generation_prompt
        inputs.enable_thinking = enable_thinking
        inputs.parallel_tool_calls = parallel_tool_calls
        for name, value in variables.items():
            inputs.kwargs[name.encode()] = _json(name, value)
        templates = self._loaded()
        with nogil:
            status = templates.apply(inputs, out.native)
        check(status)
        return out


cdef bytes _json(str name, value):
    try:
        return json.dumps(value).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"{name} is not JSON: {error}") from None
