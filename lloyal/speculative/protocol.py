"""What guesses the tokens that come: the methods that every drafter has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from lloyal.llama import Vocab

__all__ = ["Drafter"]


class Drafter(Protocol):
    """Guesses the next tokens of texts. A wrong guess costs time and changes nothing."""

    def check(self, vocab: Vocab) -> None:
        """`InvalidArgument` if it cannot guess tokens of this vocabulary."""

    def start(self) -> Any:
        """What it keeps of one text, of which it has heard nothing yet."""

    def feed(self, text: Any, tokens: Sequence[int]) -> None:
        """Tokens that the text goes on with."""

    def propose(self, texts: Sequence[Any], n: int) -> Sequence[Sequence[int]]:
        """At most `n` tokens for each text; none where it has no idea."""
