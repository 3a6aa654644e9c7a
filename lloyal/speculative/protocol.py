"""What guesses the tokens that come: the methods that every drafter has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from lloyal.llama import Vocab

__all__ = ["Drafter", "Forcing", "check_drafter", "propose"]

#: ``forcing(after, most)`` of a branch: the text that its grammar leaves no choice about, behind the token that it has
#: picked and the string `after`, `most` characters at most; and what characters may stand behind it, if they are few.
Forcing = Callable[[str, int], tuple[str, list[str]]]


class Drafter(Protocol):
    """Guesses the next tokens of texts. A wrong guess costs time and changes nothing.

    One that asks grammars has ``propose_forced(texts, n, forcings)`` beside these, with a `Forcing` for each text; that
    is called in place of `propose`.
    """

    def check(self, vocab: Vocab) -> None:
        """`InvalidArgument` if it cannot guess tokens of this vocabulary."""

    def start(self) -> Any:
        """What it keeps of one text, of which it has heard nothing yet."""

    def feed(self, text: Any, tokens: Sequence[int]) -> None:
        """Tokens that the text goes on with."""

    def propose(self, texts: Sequence[Any], n: int) -> Sequence[Sequence[int]]:
        """At most `n` tokens for each text; none where it has no idea."""


def check_drafter(drafter: object) -> None:
    """`TypeError` unless it has the methods."""
    for method in ("check", "start", "feed", "propose"):
        if not callable(getattr(drafter, method, None)):
            raise TypeError(f"{drafter!r} is no Drafter: it has no method {method}()")


def propose(
    drafter: Drafter, texts: Sequence[Any], n: int, forcings: Sequence[Forcing] | None
) -> Sequence[Sequence[int]]:
    """Ask a drafter, with what grammars force if it wants to know."""
    ask = getattr(drafter, "propose_forced", None) if forcings is not None else None
    guesses: Sequence[Sequence[int]] = drafter.propose(texts, n) if ask is None else ask(texts, n, forcings)
    return guesses
