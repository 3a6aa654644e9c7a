"""Guesses where a grammar leaves no choice: the names in a JSON object, the rest of a word."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from lloyal.errors import InvalidArgument, InvalidGrammar

if TYPE_CHECKING:
    from lloyal.llama import Vocab
    from lloyal.speculative.protocol import Pick

__all__ = ["Forced"]

SPACE = re.compile(r'(?<=([{}\[\],:"]))(\s*)(?=(\S))')  # in JSON, and what stands around it
TAIL = 32  # characters kept of a text; longer white space is not learned
LONGEST = 8  # characters that a guessed token has at most, as a bound on the text that is looked at
KEPT = 4096  # texts whose tokens are remembered


class Forced:
    """Guesses what the grammar of a branch forces, spelled as the model's vocabulary does.

    A grammar forces text, rarely tokens: a name can be spelled by several. So the forced text is tokenized, as the
    model has learned to read and write it. Grammars of JSON allow white space between all parts: where that is the only
    choice it is guessed to be as it was between such parts before, in any text.
    """

    class Text:
        """How a text ends."""

        __slots__ = ("last", "tail")

        def __init__(self) -> None:
            self.tail = ""
            self.last = b""  # the bytes of the last token

    def __init__(self) -> None:
        self._vocab: Vocab | None = None
        self._pieces: dict[int, bytes] = {}
        self._space: dict[tuple[str, str], str] = {}  # what was last between two characters
        self._spelled: dict[tuple[bytes, str], list[int]] = {}

    def check(self, vocab: Vocab) -> None:
        """All texts must be of one vocabulary."""
        if self._vocab is not None and self._vocab.n_tokens != vocab.n_tokens:
            raise InvalidArgument(
                f"it guesses tokens of another vocabulary ({self._vocab.n_tokens} tokens, not {vocab.n_tokens}): "
                "make another Forced()"
            )
        if vocab is not self._vocab:
            self._pieces.clear()
            self._spelled.clear()
        self._vocab = vocab

    def start(self) -> Forced.Text:
        """A text without tokens."""
        return self.Text()

    def feed(self, text: Forced.Text, tokens: Sequence[int]) -> None:
        """Learn where white space stands."""
        if not tokens:
            return
        new = b"".join([self._piece(token) for token in tokens])
        text.last = self._piece(tokens[-1])
        whole = text.tail + new.decode(errors="replace")
        for found in SPACE.finditer(whole):
            self._space[found[1], found[3]] = found[2]
        text.tail = whole[-TAIL:]

    def propose(self, texts: Sequence[Forced.Text], n: int) -> list[list[int]]:
        """Nothing: without a grammar nothing is forced."""
        return [[] for _ in texts]

    def guess(self, texts: Sequence[Forced.Text], n: int, picks: Sequence[Pick]) -> list[list[int]]:
        """The tokens of what is forced."""
        return [self._behind(text, n, pick) for text, pick in zip(texts, picks, strict=True)]

    def _behind(self, text: Forced.Text, n: int, pick: Pick) -> list[int]:
        with suppress(InvalidGrammar):  # too much to look at
            return self._spell(text.last, self._run(text, LONGEST * n, pick))[:n]
        return []

    def _run(self, text: Forced.Text, most: int, pick: Pick) -> str:
        """The text that is forced, and somewhat more than `most` characters of it at most."""
        run = ""
        while len(run) < most:
            part, choices = pick.forced(run, most - len(run))
            run += part
            solid = [choice for choice in choices if not choice.isspace()]
            if len(solid) != 1:
                break
            space = self._space.get(((run or text.tail)[-1:], solid[0]))
            if space is None or (space and space[0] not in choices):
                break
            run += space + solid[0]
        return run

    def _spell(self, last: bytes, run: str) -> list[int]:
        """Tokens of a text behind the bytes of the last token."""
        tokens = self._spelled.get((last, run))
        if tokens is None:
            if len(self._spelled) >= KEPT:
                self._spelled.clear()
            tokens = self._spelled[last, run] = self._tokenize(last, run.encode())
        return tokens

    def _tokenize(self, last: bytes, run: bytes) -> list[int]:
        vocab = self._checked()
        for before in (last, b""):  # behind the token itself, where that keeps it apart
            tokens = vocab.tokenize(before + run, add_special=False)
            pieces = [self._piece(token) for token in tokens]
            skip = sum(map(len, pieces)) - len(run)  # the last token, and a space that some vocabularies add
            while tokens and skip > 0:
                skip -= len(pieces[0])
                del tokens[0], pieces[0]
            if skip == 0 and b"".join(pieces) == run:
                return tokens
        return []

    def _piece(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._checked().token_to_piece(token, special=False)
        return piece

    def _checked(self) -> Vocab:
        if self._vocab is None:
            raise InvalidArgument("it has no vocabulary yet: check() one")
        return self._vocab
