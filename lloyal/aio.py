"""Many callers of one context in asyncio: one thread computes, in batches, what all of them have asked for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

from lloyal.branch import Branch, BranchStore
from lloyal.errors import Aborted, Busy, Closed, InvalidArgument
from lloyal.prompt import as_chat, check_max_tokens, one_grammar, tokens_of
from lloyal.sampling import Sampling, check_sampling
from lloyal.scheduler import (
    BUSY_SECONDS,
    QuickStops,
    Scheduler,
    StopReason,
    Text,
)
from lloyal.speculative import Drafter, Speculator, speculator_for
from lloyal.tokenization import StreamDecoder, stop_strings

if TYPE_CHECKING:
    from lloyal.context import Context
    from lloyal.llama import Sampler
    from lloyal.llama.common import ChatPrompt

__all__ = ["Engine", "TextStream"]


class Engine:
    """A thread that generates for many tasks of one event loop, all texts in one batch per step.

    ::

        async with lloyal.aio.Engine(ctx) as engine:
            async for piece in engine.generate("def "):
                ...

    Between steps new texts are let in and cancelled ones go; prompts are read in parts, so that the others go on. More
    texts than the context has sequences wait in a queue. It takes the context's `lock` for every step, so other threads
    can use the context in between if they ask for it too; one that does not makes the engine wait.

    Parameters
    ----------
    ctx : Context
        Kept alive by the engine.
    draft : Drafter or Speculator, optional
        Guesses what comes, so that a step gives several tokens: the same ones, sooner where it guesses well.
    """

    def __init__(self, ctx: Context, draft: Drafter | Speculator | None = None) -> None:
        self._ctx = ctx
        self._speculator = speculator_for(ctx, draft)
        # Who is to begin (True) or to be forgotten; None wakes the thread. Destructors may put into such a queue.
        self._inbox: SimpleQueue[tuple[_Client, bool] | None] = SimpleQueue()
        self._closing = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._done: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        if self._thread is not None:
            raise Closed("an engine is entered once: make another for its context")
        self._loop = asyncio.get_running_loop()
        self._done = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="lloyal-engine", daemon=True)
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End every text, with `Closed` for who waits for it, and free the sequences. Waits for the running step."""
        self._closing = True
        self._inbox.put(None)
        if self._done is not None and self._thread is not None:
            await asyncio.shield(self._done)
            self._thread.join()

    def generate(
        self,
        prompt: str | bytes | Sequence[int] | ChatPrompt,
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        grammar: str | Sampler | None = None,
        json_schema: Mapping[str, Any] | bool | str | None = None,
        stop: str | Iterable[str] = (),
    ) -> TextStream:
        """A new text, as an asynchronous iterator over its pieces; it takes its place in the queue now.

        Parameters are those of `lloyal.generate`. What is wrong with the prompt or the grammar is raised where the
        first piece is awaited. To be called in the engine's event loop.

        Raises
        ------
        Closed
            The engine is not open.
        InvalidArgument
            `max_tokens` is not positive, or a stop string is empty.
        """
        if self._thread is None or self._closing or self._error is not None:
            raise Closed("the engine is not open: use it in `async with lloyal.aio.Engine(ctx)`") from self._error
        check_max_tokens(max_tokens)
        sampling = Sampling() if sampling is None else sampling
        check_sampling(sampling)
        client = _Client(_Ask(prompt, sampling, grammar, json_schema, stop_strings(stop)), max_tokens)
        self._inbox.put((client, True))
        return TextStream(self, client)

    def _forget(self, client: _Client) -> None:
        self._inbox.put((client, False))

    # In the engine's thread

    def _run(self) -> None:
        scheduler: Scheduler | None = None
        try:
            scheduler = Scheduler(self._ctx, self._speculator)
            while not self._closing:
                self._take_mail(scheduler)
                if scheduler.idle or self._closing:
                    continue
                try:
                    with self._ctx.lock():
                        texts, tokens, over = scheduler.step()
                except (Busy, Aborted):  # nothing is lost
                    time.sleep(BUSY_SECONDS)
                    continue
                self._send(texts, tokens, over)
        except BaseException as error:
            self._error = error
        finally:
            texts = [] if scheduler is None else [*scheduler.waiting, *scheduler.reading, *scheduler.live]
            if scheduler is not None:
                scheduler.close()
            self._end_all(cast("list[_Client]", texts))

    def _take_mail(self, scheduler: Scheduler) -> None:
        """Everything that has come in; waits for something if there is nothing to do."""
        idle = scheduler.idle
        while idle or not self._inbox.empty():
            try:
                mail, idle = self._inbox.get(timeout=1.0), False
            except Empty:
                if cast("asyncio.AbstractEventLoop", self._loop).is_closed():  # and nobody has closed the engine
                    self._closing = True
                    return
                continue
            if mail is None:
                continue
            client, begin = mail
            if not begin:
                scheduler.remove(client)
                continue
            try:
                client.prepare(scheduler.store)
            except Exception as error:
                self._call(_deliver, [_Letter(client.box, "", [], True, None, error)])
            else:
                scheduler.add(client)

    def _send(self, texts: list[Text], tokens: list[int], over: list[Text]) -> None:
        given: dict[Text, list[int]] = {}
        for text, token in zip(texts, tokens, strict=True):
            given.setdefault(text, []).append(token)
        for text in over:
            given.setdefault(text, [])
        letters = [_letter(cast("_Client", text), mine) for text, mine in given.items()]
        if letters:
            self._call(_deliver, letters)

    def _end_all(self, clients: list[_Client]) -> None:
        self._closing = True
        while not self._inbox.empty():
            mail = self._inbox.get()
            if mail is not None and mail[1]:
                clients.append(mail[0])
        letters = []
        for client in clients:
            why = "was closed" if self._error is None else f"has stopped ({self._error})"
            error = Closed(f"the engine {why} before this text had ended")
            error.__cause__ = self._error
            letters.append(_Letter(client.box, "", [], True, None, error))
        self._call(self._finish, letters)

    def _finish(self, letters: list[_Letter]) -> None:
        _deliver(letters)
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _call(self, run: Any, letters: list[_Letter]) -> None:
        try:
            cast("asyncio.AbstractEventLoop", self._loop).call_soon_threadsafe(run, letters)
        except RuntimeError:  # the loop is closed: nobody waits any more
            self._closing = True

    def __repr__(self) -> str:
        state = "closed" if self._closing else "open" if self._thread is not None else "not entered"
        return f"<Engine, {state}>"


class TextStream(AsyncIterator[str]):
    """A text as it is generated, in pieces that hold whole characters; made by `Engine.generate`.

    A text is given up, and its sequence free again, once the task that waits for it is cancelled, `aclose` is called,
    or nobody holds this object any more. A piece holds all that is there when it is asked for.

    Attributes
    ----------
    tokens : list of int
        The tokens so far, those of a stop string included.
    stop_reason : {None, "end", "length", "stop"}
        Why it is over.
    """

    def __init__(self, engine: Engine, client: _Client) -> None:
        self._engine = engine
        self._client = client
        self._box = client.box

    @property
    def tokens(self) -> list[int]:
        return self._box.tokens

    @property
    def stop_reason(self) -> StopReason | None:
        return self._box.stop_reason

    async def __anext__(self) -> str:
        box = self._box
        while not box.pieces:
            if box.over:
                error, box.error = box.error, None
                if error is not None:
                    raise error
                raise StopAsyncIteration
            if box.waiter is not None:
                raise RuntimeError("another task waits for this text already")
            box.waiter = asyncio.get_running_loop().create_future()
            try:
                await box.waiter
            except BaseException:
                self._give_up()
                raise
            finally:
                box.waiter = None
        text = "".join(box.pieces)
        box.pieces.clear()
        return text

    async def read(self) -> str:
        """The rest of it, once it is over."""
        return "".join([piece async for piece in self])

    async def aclose(self) -> None:
        """Give the text up; nothing if it is over."""
        self._give_up()

    def _give_up(self) -> None:
        box = self._box
        box.pieces.clear()
        if not box.over:
            box.over = True
            self._engine._forget(self._client)

    def __del__(self) -> None:
        if not self._box.over:
            self._give_up()

    def __repr__(self) -> str:
        return f"<TextStream: {len(self.tokens)} tokens{', over' if self._box.over else ''}>"


class _Ask(NamedTuple):
    """What a client asked for, as it asked."""

    prompt: Any
    sampling: Sampling
    grammar: str | Sampler | None
    json_schema: Mapping[str, Any] | bool | str | None
    stop: tuple[str, ...]


class _Box:
    """What has arrived for a client: touched in the event loop only."""

    __slots__ = ("error", "over", "pieces", "stop_reason", "tokens", "waiter")

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.tokens: list[int] = []
        self.stop_reason: StopReason | None = None
        self.error: BaseException | None = None
        self.over = False
        self.waiter: asyncio.Future[None] | None = None


class _Letter(NamedTuple):
    """What one step has brought a client."""

    box: _Box
    piece: str
    tokens: list[int]
    over: bool
    stop_reason: StopReason | None
    error: BaseException | None


class _Client(Text):
    """A text that somebody in the event loop waits for."""

    __slots__ = ("ask", "box")

    keeps_log_probs = False

    def __init__(self, ask: _Ask, max_tokens: int | None) -> None:
        super().__init__([], self._no_branch, max_tokens, ask.stop)
        self.ask = ask
        self.box = _Box()

    @staticmethod
    def _no_branch() -> Branch:
        raise Closed("the text was not prepared")

    def prepare(self, store: BranchStore) -> None:
        """Tokens, grammar and sampler: in the engine's thread, since long texts take their time."""
        prompt, sampling, grammar, json_schema, stop = self.ask
        vocab = store.ctx.vocab
        chat = as_chat(prompt)
        self.prompt = tokens_of(vocab, prompt, beginning=True)
        if not self.prompt:
            raise InvalidArgument("the prompt has no tokens: give at least one")
        rules = one_grammar(vocab, chat, grammar, json_schema)
        if chat is not None:
            self.stops = QuickStops((*stop, *chat.stops))
        self.make = lambda: store.create(self.prompt, sampling=sampling, grammar=rules, read=False)
        self.listen(StreamDecoder(vocab))


def _letter(client: _Client, tokens: list[int]) -> _Letter:
    piece = "".join(client.said)
    client.said.clear()
    return _Letter(client.box, piece, tokens, client.over, client.stop_reason, client.error)


def _deliver(letters: list[_Letter]) -> None:
    for box, piece, tokens, over, stop_reason, error in letters:
        if box.over:
            continue  # given up
        if piece:
            box.pieces.append(piece)
        box.tokens += tokens
        box.over, box.stop_reason, box.error = over, stop_reason, error
        if (piece or over) and box.waiter is not None and not box.waiter.done():
            box.waiter.set_result(None)
