"""What guesses the tokens that come: the methods that every drafter has."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import islice
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from lloyal.errors import Busy, InvalidArgument
from lloyal.native.hidden import hidden_rows

if TYPE_CHECKING:
    from lloyal.context import Context
    from lloyal.llama import Vocab
    from lloyal.native.branch import BranchBase
    from lloyal.native.step import DraftSampler, Draws

__all__ = ["Alone", "Drafter", "Pick", "attach", "check_drafter", "check_vocab", "propose"]


class Alone:
    """``with lock, alone:`` gives `Busy` to a signal handler in its middle, where the lock lets the same thread in.

    With another lock that handler would wait for itself.
    """

    def __init__(self) -> None:
        self._entered: FrameType | None = None

    def __enter__(self) -> None:
        frame = mine = sys._getframe(1)
        while frame.f_back is not None and self._entered is not None:
            frame = frame.f_back
            if frame is self._entered:  # one that an exception has ended before it could say so is no longer there
                raise Busy("this drafter is in the middle of a call of the same thread: not from a signal handler")
        self._entered = mine

    def __exit__(self, *error: object) -> None:
        self._entered = None


class Pick:
    """The token that a text's branch has picked and not read yet, and what can be known of those behind it."""

    __slots__ = ("_branch", "_draws", "_ratio", "_sampler", "index")

    def __init__(self, branch: BranchBase, draws: Draws, index: int, ratio: bool) -> None:
        self._branch, self._draws, self._ratio = branch, draws, ratio
        self.index = index  #: among the branches of the step
        self._sampler: DraftSampler | None = None

    def sampler(self) -> DraftSampler:
        """A copy of the branch's sampler, whose ``sample(ctx, index)`` draws the next guess from an output of `ctx`.

        What it has drawn has to be proposed, up to the first token that ends the text.
        """
        if self._sampler is None:
            self._sampler = self._draws.sampler(self.index, self._ratio)
        return self._sampler

    def forced(self, after: str = "", most: int = 256) -> tuple[str, list[str]]:
        """The text that the grammar leaves no choice about, behind the token and the string `after`.

        Returns
        -------
        text : str
            At most `most` characters.
        choices : list of str
            The characters that may stand behind it, if they are few; none where the text may end.
        """
        return self._draws.forced(self.index, after, most)

    def hidden(self, layers: Sequence[int], begin: int) -> tuple[int, Any]:
        """Hidden rows of the tokens that the branch has read, from `begin` on: the inputs of some layers, side by side.

        A drafter that wants them has a method ``attach(ctx)`` too, which has the context keep them
        (`lloyal.native.hidden.keep_hidden`) before branches read.

        Returns
        -------
        first : int
            The token of the first row: later than `begin` if those before are gone.
        rows : ndarray of float32, shape (n, values)
        """
        return hidden_rows(self._branch, layers, begin)

    @property
    def made(self) -> DraftSampler | None:
        """The sampler, if somebody has asked for it."""
        return self._sampler


class Drafter(Protocol):
    """Guesses the next tokens of texts. A wrong guess costs time and changes nothing.

    One that wants to know more than tokens has a method ``guess(texts, n, picks)`` beside these, with a `Pick` for each
    text, which is called in place of `propose`. One with a method ``attach(ctx)`` is told the branches' context.
    """

    def check(self, vocab: Vocab) -> None:
        """`InvalidArgument` if it cannot guess tokens of this vocabulary."""

    def start(self) -> Any:
        """What it keeps of one text, of which it has heard nothing yet."""

    def feed(self, text: Any, tokens: Sequence[int]) -> None:
        """Tokens that the text goes on with."""

    def propose(self, texts: Sequence[Any], n: int) -> Sequence[Sequence[int]]:
        """At most `n` tokens for each text; none where it has no idea."""


def check_vocab(mine: Vocab, vocab: Vocab) -> None:
    """`InvalidArgument` unless they are of one size, with the same pieces."""
    some = range(0, vocab.n_tokens, max(1, vocab.n_tokens // 256))
    if mine.n_tokens != vocab.n_tokens or any(mine.token_to_piece(t) != vocab.token_to_piece(t) for t in some):
        raise InvalidArgument(
            f"the draft model has another vocabulary ({mine.n_tokens} tokens, not {vocab.n_tokens}): "
            "take a draft that was made for this model"
        )


def check_drafter(drafter: object) -> None:
    """`TypeError` unless it has the methods."""
    if isinstance(drafter, type):
        raise TypeError(f"{drafter!r} is a class: make one of it")
    for method in ("check", "start", "feed", "propose"):
        if not callable(getattr(drafter, method, None)):
            raise TypeError(f"{drafter!r} is no Drafter: it has no method {method}()")


def propose(drafter: Drafter, texts: Sequence[Any], n: int, picks: Sequence[Pick] | None = None) -> list[list[int]]:
    """Ask a drafter in the way it wants to be asked: `n` tokens at most for each text."""
    guess = None if picks is None else getattr(drafter, "guess", None)
    try:
        found = drafter.propose(texts, n) if guess is None or picks is None else guess(texts, n, list(picks))
    except StopIteration as error:  # a generator around it would end
        raise RuntimeError(f"{drafter!r} has raised StopIteration") from error
    guesses = _listed(drafter, found, len(texts) + 1)
    if len(guesses) != len(texts):
        raise InvalidArgument(f"{drafter!r} proposed for {len(guesses)} texts, there are {len(texts)}")
    return [_listed(drafter, guess, n) for guess in guesses]


def _listed(drafter: Drafter, found: Any, most: int) -> list[Any]:
    try:
        every = iter(found)
    except TypeError:
        raise TypeError(f"{drafter!r} proposed {found!r}: a list of tokens is needed for each text") from None
    return list(islice(every, most))


def attach(drafter: Drafter, ctx: Context) -> None:
    """Tell a drafter the branches' context, if it asks for that."""
    if (tell := getattr(drafter, "attach", None)) is not None:
        tell(ctx)
