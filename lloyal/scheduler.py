"""Texts that take turns in the sequences of a context: who waits, who is being read, who goes on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, cast

from lloyal.branch import Branch, BranchStore
from lloyal.errors import Aborted, Busy, CacheFull, NoLease
from lloyal.tokenization import StopStrings, StreamDecoder

if TYPE_CHECKING:
    from lloyal.context import Context
    from lloyal.speculative import Speculator

__all__ = ["Scheduler", "Text"]

BUSY_SECONDS = 0.001  # between two tries while a call of another thread is inside the context

StopReason = Literal["end", "length", "stop"]


class QuickStops(StopStrings):
    """The same, looking only at pieces in which one of the strings could begin or go on."""

    def __init__(self, strings: Iterable[str]) -> None:
        super().__init__(strings)
        self._beginnings = frozenset(string[0] for string in self._strings)

    def feed(self, text: str) -> str:
        if not self._held and self.found is None and self._beginnings.isdisjoint(text):
            return text
        return super().feed(text)


class Text:
    """One of many texts: what it begins with, when it stops, and how far it is.

    Parameters
    ----------
    prompt : list of int
    make : callable
        Makes its branch, with nothing read yet, once it is its turn.
    max_tokens : int or None
    stop : tuple of str
    index : int
    """

    __slots__ = (
        "branch",
        "decoder",
        "error",
        "index",
        "log_probs",
        "make",
        "max_tokens",
        "n_read",
        "prompt",
        "said",
        "stop_reason",
        "stops",
        "tokens",
    )

    #: Whether log-probabilities are read from the branch before it goes.
    keeps_log_probs = True

    def __init__(
        self,
        prompt: list[int],
        make: Callable[[], Branch],
        max_tokens: int | None = None,
        stop: tuple[str, ...] = (),
        index: int = 0,
    ) -> None:
        self.prompt = prompt
        self.make = make
        self.max_tokens = max_tokens
        self.index = index
        self.n_read = 0
        self.branch: Branch | None = None
        self.tokens: list[int] = []
        self.log_probs: list[float] = []
        self.stop_reason: StopReason | None = None
        self.error: Exception | None = None
        self.said: list[str] = []
        self.stops = QuickStops(stop)
        self.decoder: StreamDecoder | None = None  # None: nobody asks what the tokens say

    def listen(self, decoder: StreamDecoder) -> None:
        """From now on, and for the tokens so far, keep what they say in `said`."""
        if self.decoder is None:
            self.decoder = decoder
            for token in self.tokens:
                self.hear(token)
            if self.over:
                self.end_text()

    def hear(self, token: int) -> None:
        """What a token says; a stop string ends the text."""
        if self.decoder is not None:
            if piece := self.stops.feed(self.decoder.feed(token)):
                self.said.append(piece)
            if self.stops.found is not None:
                self.stop_reason = "stop"

    def end_text(self) -> None:
        """What was held back is certain now."""
        if self.decoder is not None and (piece := self.stops.feed(self.decoder.flush()) + self.stops.flush()):
            self.said.append(piece)

    @property
    def over(self) -> bool:
        return self.stop_reason is not None or self.error is not None


class Scheduler:
    """Texts that take turns in the sequences of a context: some wait, some are being read, the others go on.

    A text whose step fails alone ends with its `Text.error`, and the others go on. What is about all of them comes out
    of `step`, which can be called again.

    Parameters
    ----------
    ctx : Context
    speculator : Speculator, optional
        Steps are its: several tokens for a text at once.
    """

    def __init__(self, ctx: Context, speculator: Speculator | None = None) -> None:
        self.store = BranchStore(ctx)
        self._speculator = speculator
        self.waiting: deque[Text] = deque()
        self.reading: list[Text] = []
        self.live: list[Text] = []
        self._branches: list[Branch] = []  # of `live`: every step needs the list
        self._over: list[Text] = []
        self._is_eog = ctx.vocab.is_eog
        self._full = False  # nothing more fits before something has ended
        # llama.cpp computes n_ubatch at once: prompts in larger parts would only keep the others waiting.
        self._chunk = min(ctx.n_batch, ctx.n_ubatch)

    @property
    def idle(self) -> bool:
        """True if there is nothing to do."""
        return not (self.waiting or self.reading or self.live or self._over)

    def add(self, text: Text) -> None:
        """A text to begin when there is room."""
        self.waiting.append(text)

    def remove(self, text: Text) -> None:
        """Forget a text, wherever it is, and free its sequence. Nothing if it is over."""
        if text in self.waiting:
            self.waiting.remove(text)
        elif text in self.reading:
            self.reading.remove(text)
        elif text in self.live:
            i = self.live.index(text)
            del self.live[i], self._branches[i]
        self._release(text)

    def step(self) -> tuple[list[Text], list[int], list[Text]]:
        """Let texts in for which there is room, read a part of the prompts, and give every other text a token.

        Returns
        -------
        texts, tokens : list of Text, list of int
            Those that were given a token, and the tokens; with a speculator a text may be there several times.
        over : list of Text
            The texts that are over now.

        Raises
        ------
        Busy, Aborted
            Nothing is lost.
        """
        if self.waiting and not self._full:
            self._admit()
        if self.reading:
            self._read_some()
        go_on = self._go_on if self._speculator is None else self._go_on_by_guesses
        texts, tokens = go_on() if self.live else ([], [])
        over, self._over = self._over, []
        return texts, tokens, over

    def close(self) -> None:
        """Forget all texts."""
        self.waiting.clear()
        self.reading.clear()
        self.live.clear()
        self._branches.clear()
        self._over.clear()
        self.store.close()

    # Going on

    def _go_on(self) -> tuple[list[Text], list[int]]:
        tokens = self._step_live()
        live = self.live
        is_eog = self._is_eog
        over = False
        for text, token in zip(live, tokens, strict=True):
            if is_eog(token):
                text.stop_reason = "end"
                over = True
                continue
            own = text.tokens
            own.append(token)
            if text.decoder is not None:
                text.hear(token)
            if text.stop_reason is None:
                if len(own) != text.max_tokens:
                    continue
                text.stop_reason = "length"
            over = True
        if over:
            self._end_all(live)
            given = [(text, token) for text, token in zip(live, tokens, strict=True) if text.stop_reason != "end"]
            return [text for text, _ in given], [token for _, token in given]
        return live, tokens

    def _go_on_by_guesses(self) -> tuple[list[Text], list[int]]:
        """The same, where a step gives a text several tokens."""
        steps: list[list[int]] = self._step_live()
        live = self.live
        texts: list[Text] = []
        tokens: list[int] = []
        for text, made in zip(live, steps, strict=True):
            for token in made:
                if self._is_eog(token):
                    text.stop_reason = "end"
                    break
                text.tokens.append(token)
                texts.append(text)
                tokens.append(token)
                text.hear(token)
                if text.stop_reason is None and len(text.tokens) == text.max_tokens:
                    text.stop_reason = "length"
                if text.stop_reason is not None:
                    break  # what was read behind it goes with its branch
        if any(text.over for text in live):
            self._end_all(live)
        return texts, tokens

    def _step_live(self) -> list[Any]:
        """A token for each live text, or a list; fewer are live afterwards if some have failed or found no room."""
        step = self.store.step if self._speculator is None else self._speculator.step
        while self.live:
            try:
                return step(self._branches)
            except CacheFull as error:
                self._no_room(self.live[-1], error)  # those that came first are done first
            except (Busy, Aborted):
                raise
            except Exception as error:
                if len(self.live) > 1:
                    return self._step_apart(step)
                self._fail(self.live[0], error)
        return []

    def _step_apart(self, step: Callable[[list[Branch]], list[Any]]) -> list[Any]:
        """One by one, since one of them fails: it is to fail alone."""
        tokens: list[Any] = []
        waiting = list(self.live)
        while waiting:
            text = waiting[0]
            try:
                try:
                    tokens += step([cast("Branch", text.branch)])
                except CacheFull as error:
                    self._no_room(text, error)
            except (Busy, Aborted):
                time.sleep(BUSY_SECONDS)  # some have gone on already: there is no way back
                continue
            except Exception as error:
                self._fail(text, error)
            del waiting[0]
        return tokens

    def _no_room(self, text: Text, error: Exception) -> None:
        """A live text waits in a checkpoint until another has ended."""
        if len(self.live) == 1 and not self.reading:
            self._fail(text, error)
            return
        try:
            self.store.park(cast("Branch", text.branch))
        except (Busy, Aborted):
            raise
        except Exception as worse:
            self._fail(text, worse)
            return
        self._set_live([other for other in self.live if other is not text])
        self.waiting.appendleft(text)
        self._full = True

    # Letting in

    def _admit(self) -> None:
        while self.waiting:
            text = self.waiting[0]
            try:
                self._seat(text)
            except (NoLease, CacheFull) as error:
                if self.live or self.reading:
                    self._full = True
                    return
                self._fail(text, error)
            except (Busy, Aborted):
                raise
            except Exception as error:
                self._fail(text, error)
            else:
                self.waiting.popleft()
                if text.n_read < len(text.prompt):
                    self.reading.append(text)
                else:
                    self._set_live([*self.live, text])

    def _seat(self, text: Text) -> None:
        """A sequence of its own, with the rows it has."""
        if text.branch is None:
            text.branch = text.make()
        try:
            text.branch.resume()
        except NoLease:
            if self.live or self.reading or text.branch.state != "pending":
                raise
            self.store.park(text.branch)  # the only sequence holds the prompt, for all that wait
            text.branch.resume()

    def _read_some(self) -> None:
        room, parts = self._chunk, []
        for text in self.reading:
            part = text.prompt[text.n_read : text.n_read + room]
            parts.append((text, part))
            room -= len(part)
            if not room:
                break
        self._read(parts)

    def _read(self, parts: list[tuple[Text, list[int]]]) -> None:
        try:
            self.store.decode_scatter([(cast("Branch", text.branch), part) for text, part in parts])
        except CacheFull as error:
            text = self.reading[-1]
            if len(self.reading) == 1 and not self.live:
                self._fail(text, error)
            else:
                self.reading.remove(text)
                self._release(text)
                text.n_read = 0
                self.waiting.appendleft(text)
                self._full = True
        except (Busy, Aborted):
            raise
        except Exception as error:
            if len(parts) > 1:
                for text, part in parts:
                    if text in self.reading:
                        self._read([(text, part)])
            else:
                self._fail(parts[0][0], error)
        else:
            for text, part in parts:
                text.n_read += len(part)
            done = [text for text in self.reading if text.n_read == len(text.prompt)]
            if done:
                self.reading = [text for text in self.reading if text.n_read < len(text.prompt)]
                self._set_live([*self.live, *done])

    # Ending

    def _set_live(self, texts: list[Text]) -> None:
        self.live = texts
        self._branches = [cast("Branch", text.branch) for text in texts]

    def _end_all(self, texts: list[Text]) -> None:
        """Those of the live ones that are over."""
        self._set_live([text for text in texts if not text.over])
        for text in texts:
            if text.over:
                self._end(text)

    def _end(self, text: Text) -> None:
        text.end_text()
        if text.keeps_log_probs:
            text.log_probs = log_probs_of(text)
        self._release(text)
        self._over.append(text)

    def _fail(self, text: Text, error: Exception) -> None:
        text.error = error
        self.remove(text)
        self._over.append(text)

    def _release(self, text: Text) -> None:
        branch, text.branch = text.branch, None
        if branch is not None:
            branch.prune_subtree()
        self._full = False


def log_probs_of(text: Text) -> list[float]:
    """Of its tokens, by the model; while it has its branch."""
    if text.branch is None:
        return text.log_probs
    found = text.branch._tokens_native(len(text.prompt))
    return [log_prob for *_, log_prob in found[: len(text.tokens)]]
