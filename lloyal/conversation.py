"""Chats that go on: what was said stays in the cache, and only what is new is read.

A turn writes the whole chat with the model's template and compares its tokens with those the sequence holds. What both
begin with stays, the rest goes by the means its memory has (a trim, a ring, a checkpoint of an earlier turn, or reading
again), and what is missing is read. Nothing is assumed about templates, which may well rewrite earlier turns.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from lloyal.chat import ChatPrompt, ChatTemplates, grammar_sampler
from lloyal.checkpoint import Checkpoint
from lloyal.context import Context
from lloyal.decoding import Progress, prefill
from lloyal.errors import CacheFull, InvalidArgument, NoLease, OutOfDeviceMemory, StaleCheckpoint, Unsupported
from lloyal.generation import Generation, StopReason, generate
from lloyal.llama import Vocab
from lloyal.sampling import Sampling
from lloyal.tokenization import StopStrings, StreamDecoder, stop_strings

__all__ = ["Conversation", "Reply", "stream"]

Message = Mapping[str, Any]

MOST_CHECKPOINTS = 16  # of earlier turns, where a memory cannot be trimmed


class Conversation:
    """A chat with a model in one sequence of a context.

    Parameters
    ----------
    ctx : Context
    system : str, optional
        What the model is told first.
    messages : sequence of mapping
        What was said before, as chat completion APIs take it.
    seq_id : int
        The sequence it lives in. What that holds and does not belong to the chat is given up.
    sampling : Sampling, optional
        How answers are picked if `say` does not say otherwise, by default ``Sampling()``.
    template : str, optional
        Jinja source instead of the model's own template. A model without one gets ChatML.
    tools : sequence of mapping
        Functions the model may call, as chat completion APIs take them.
    chat_template_kwargs : mapping, optional
        Further arguments of `ChatTemplates.apply`: ``{"enable_thinking": False}``, variables of the template.

    Attributes
    ----------
    messages : list of dict
        What was said, answers included. It is yours to change: the next turn reads what differs.
    """

    def __init__(
        self,
        ctx: Context,
        *,
        system: str | None = None,
        messages: Sequence[Message] = (),
        seq_id: int = 0,
        sampling: Sampling | None = None,
        template: str | None = None,
        tools: Sequence[Message] = (),
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.ctx = ctx
        self.messages: list[dict[str, Any]] = [dict(message) for message in messages]
        if system is not None:
            self.messages.insert(0, {"role": "system", "content": system})
        self._templates = ChatTemplates(ctx.model, template)
        self._sampling = sampling
        self._tools = tuple(tools)
        self._variables = dict(chat_template_kwargs or {})
        self._seq_id = seq_id
        self._held = _held.setdefault(ctx, {}).setdefault(seq_id, _Held())
        self._turns: list[tuple[int, Checkpoint]] = []  # tokens each stands for; the longest last
        self._keeps_turns = True
        self._reply: Reply | None = None

    def say(
        self,
        message: str | Message,
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        json_schema: Mapping[str, Any] | None = None,
        grammar: str = "",
        stop: str | Iterable[str] = (),
        tools: Sequence[Message] | None = None,
        tool_choice: str = "auto",
        progress: Progress | None = None,
    ) -> Reply:
        """Say something, and get the answer as it comes. An answer that still runs ends here.

        Parameters
        ----------
        message : str or mapping
            What the user says, or a message of any role, such as ``{"role": "tool", ...}``.
        max_tokens : int, optional
            Most tokens of the answer; None leaves the end to the model.
        sampling : Sampling, optional
        json_schema : mapping, optional
            The answer is JSON that this schema admits: ``talk.say("...", json_schema=schema).json()``.
        grammar : str
            The same as GBNF.
        stop : str or iterable of str
            Strings that end the answer.
        tools : sequence of mapping, optional
            Instead of the conversation's. What the model calls is in `Reply.message`.
        tool_choice : {"auto", "required", "none"}
        progress : callable, optional
            Called with the tokens read so far and their total.

        Returns
        -------
        Reply
            Its text by iteration. It is part of `messages` once it is over, or once the next thing is said.

        Raises
        ------
        InvalidArgument, InvalidGrammar
            The message, the tools or the schema cannot be used. Nothing was said then.
        CacheFull
            The chat is longer than the cache. Nothing was said then.

        Notes
        -----
        What is said is read here, before this returns. Releases the GIL. Ctrl-C stops it.
        """
        self._finish()
        said = {"role": "user", "content": message} if isinstance(message, str) else dict(message)
        prompt = self._templates.apply(
            [*self.messages, said],
            tools=self._tools if tools is None else tools,
            tool_choice=tool_choice,
            json_schema=json_schema,
            grammar=grammar,
            **self._variables,
        )
        tokens = self.ctx.vocab.tokenize(prompt.prompt, add_special=True, parse_special=True)
        rules = grammar_sampler(self.ctx.vocab, prompt)
        self._read(tokens[:-1], progress)
        generation = generate(
            self.ctx,
            tokens[-1:],
            max_tokens=max_tokens,
            sampling=sampling or self._sampling,
            grammar=rules,
            stop=(*stop_strings(stop), *prompt.stops),
            seq_id=self._seq_id,
            pos0=len(tokens) - 1,
            history=tokens[:-1],
        )
        self.messages.append(said)
        self._reply = Reply(self.ctx, self._seq_id, tokens, generation, prompt, self.messages)
        return self._reply

    def rewind(self, n: int = 1) -> None:
        """Take back the last `n` things said by the user, with everything after each.

        The sequence follows when the next thing is said: as far as its memory can go back, nothing is read again.

        Raises
        ------
        InvalidArgument
            So much was not said. Nothing was changed.
        """
        turns = [i for i, message in enumerate(self.messages) if message.get("role") == "user"]
        if not isinstance(n, int) or not 0 <= n <= len(turns):
            raise InvalidArgument(f"n={n!r} must be from 0 to {len(turns)}, the number of things the user said")
        self._finish()
        if n:
            del self.messages[turns[-n] :]

    def _read(self, tokens: list[int], progress: Progress | None) -> None:
        """Make the sequence hold these tokens."""
        memory, held = self.ctx.memory, self._held
        if memory.version(self._seq_id) != held.version or memory.seq_pos_max(self._seq_id) + 1 != len(held.tokens):
            # Somebody else was here.
            memory.seq_rm(self._seq_id)
            held.tokens = []
        n_same = self._go_back(_n_common(held.tokens, tokens))
        try:
            if len(tokens) > n_same:
                prefill(self.ctx, tokens[n_same:], seq_id=self._seq_id, pos0=n_same, logits=False, progress=progress)
        except CacheFull as error:
            error.add_note(f"the chat has {len(tokens)} tokens, the context {self.ctx.n_ctx} for all its sequences")
            raise
        finally:
            held.note(self.ctx, self._seq_id, tokens)
        self._keep(len(tokens))

    def _go_back(self, n: int) -> int:
        """Keep the first `n` tokens of what is held, or fewer, and return how many."""
        memory, n_held = self.ctx.memory, len(self._held.tokens)
        while self._turns and self._turns[-1][0] > n:
            self._turns.pop()[1].release()
        if n == n_held:
            return n
        if n > 0 and memory.can_rollback(self._seq_id, n_held - n) is not None:
            memory.seq_rm(self._seq_id, n, -1)
            return n
        while self._turns:
            n_then, checkpoint = self._turns[-1]
            try:
                checkpoint.restore()
                return n_then
            except StaleCheckpoint:
                self._turns.pop()[1].release()
        memory.seq_rm(self._seq_id)
        return 0

    def _keep(self, n: int) -> None:
        """Where a trim may not bring the beginning of a turn back, a small checkpoint does."""
        if not self._keeps_turns or self.ctx.memory.kind == "attention" or n == 0:
            return
        try:
            self._turns.append((n, self.ctx.checkpoint(self._seq_id, partial=True)))
        except (Unsupported, OutOfDeviceMemory, NoLease):
            return  # going back reads again
        if len(self._turns) > MOST_CHECKPOINTS:
            self._turns.pop(0)[1].release()

    def _finish(self) -> None:
        if self._reply is not None:
            self._reply.close()
            self._reply = None

    def __repr__(self) -> str:
        return f"<Conversation in sequence {self._seq_id}: {len(self.messages)} messages>"


class Reply(Iterator[str]):
    """An answer, as it is generated: its text in pieces by iteration. Made by `Conversation.say` and `stream`.

    Attributes
    ----------
    text : str
        What was generated so far.
    message : dict or None
        The answer as a message, with tool calls and reasoning apart; None while it goes on.
    generation : Generation
        Its tokens, and its sampler.
    """

    def __init__(
        self,
        ctx: Context,
        seq_id: int,
        tokens: list[int],
        generation: Generation,
        prompt: ChatPrompt,
        messages: list[dict[str, Any]],
    ) -> None:
        self.generation = generation
        self.text = ""
        self.message: dict[str, Any] | None = None
        self._ctx = ctx
        self._seq_id = seq_id
        self._tokens = tokens  # of the chat before it
        self._prompt = prompt
        self._messages = messages
        self._pieces: Iterator[str] = generation.text()

    def __next__(self) -> str:
        try:
            piece = next(self._pieces)
        except BaseException:  # StopIteration too: the answer is over
            self.close()
            raise
        self.text += piece
        return piece

    def read(self) -> str:
        """Wait for the rest, and return all of the text."""
        for _ in self:
            pass
        return self.text

    def json(self) -> Any:
        """Wait for the rest, and return the value that the message's content is the JSON of.

        The text may have more around it: what a model thought, or a fence of Markdown.

        Raises
        ------
        ValueError
            It is no JSON: no schema was asked for, or `max_tokens` cut it off.
        """
        self.read()
        try:
            return json.loads((self.message or {}).get("content") or "")
        except ValueError as error:
            error.add_note(f"the answer ended by {self.stop_reason!r} after {len(self.generation.tokens)} tokens")
            raise

    @property
    def stop_reason(self) -> StopReason | None:
        """As `Generation.stop_reason`."""
        return self.generation.stop_reason

    def close(self) -> None:
        """End the answer here: what was generated so far is the message. May be called twice."""
        if self.message is not None:
            return
        self._pieces = iter(())
        # If it was the last to write there: otherwise what is held is somebody else's to say.
        if self.generation.version == self._ctx.memory.version(self._seq_id):
            _held[self._ctx][self._seq_id].note(self._ctx, self._seq_id, [*self._tokens, *self.generation.tokens])
        self.message = self._as_message()
        self._messages.append(self.message)

    def _as_message(self) -> dict[str, Any]:
        plain = {"role": "assistant", "content": self.text}
        kept = set(self._prompt.preserved_tokens)
        text = self.text
        if kept:  # what tool calls and reasoning are told apart by
            text = _with_special(self._ctx.vocab, self.generation, kept)
        try:
            message = self._prompt.parse(text, partial=self.stop_reason != "end")
        except InvalidArgument:
            return plain
        return {"role": "assistant"} | message

    def __repr__(self) -> str:
        return f"<Reply: {len(self.text)} characters{'' if self.message is None else f', over: {self.stop_reason}'}>"


def stream(
    ctx: Context,
    messages: Sequence[Message],
    *,
    seq_id: int = 0,
    sampling: Sampling | None = None,
    template: str | None = None,
    max_tokens: int | None = None,
    json_schema: Mapping[str, Any] | None = None,
    grammar: str = "",
    stop: str | Iterable[str] = (),
    tools: Sequence[Message] = (),
    tool_choice: str = "auto",
    progress: Progress | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Reply:
    """Answer a chat that is given whole, as chat completion APIs do.

    What the sequence holds of it is not read again, where its memory can be trimmed; a `Conversation` goes back to
    earlier turns on every kind of memory.

    Parameters
    ----------
    ctx : Context
    messages : sequence of mapping
        The last one is what is answered.
    seq_id, sampling, template, chat_template_kwargs
        As for `Conversation`.
    max_tokens, json_schema, grammar, stop, tools, tool_choice, progress
        As for `Conversation.say`.

    Returns
    -------
    Reply
        ``for piece in reply``, ``reply.read()`` or ``reply.json()``.

    Raises
    ------
    InvalidArgument, InvalidGrammar, CacheFull
        As `Conversation.say`.
    """
    if not messages:
        raise InvalidArgument("there are no messages to answer")
    talk = Conversation(
        ctx, messages=messages[:-1], seq_id=seq_id, template=template, chat_template_kwargs=chat_template_kwargs
    )
    talk._keeps_turns = False  # nobody will rewind it
    return talk.say(
        messages[-1],
        max_tokens=max_tokens,
        sampling=sampling,
        json_schema=json_schema,
        grammar=grammar,
        stop=stop,
        tools=tools,
        tool_choice=tool_choice,
        progress=progress,
    )


class _Held:
    """The tokens that a sequence holds, as far as they were put there here, and its version then."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.version = -1

    def note(self, ctx: Context, seq_id: int, tokens: list[int]) -> None:
        self.tokens = tokens[: ctx.memory.seq_pos_max(seq_id) + 1]
        self.version = ctx.memory.version(seq_id)


# By sequence: two conversations in one, or `stream` again and again, read only what is new.
_held: WeakKeyDictionary[Context, dict[int, _Held]] = WeakKeyDictionary()


def _n_common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _with_special(vocab: Vocab, generation: Generation, kept: set[str]) -> str:
    """The text of a generation up to where it was stopped, those special tokens included."""
    decoder, special, stops = StreamDecoder(vocab), StreamDecoder(vocab, special=True), StopStrings(generation.stop)
    parts = []
    for token in generation.tokens:
        text = decoder.feed(token)
        shown = special.feed(token)
        parts.append(stops.feed(shown if shown in kept else text))
    return "".join(parts) + stops.flush()
