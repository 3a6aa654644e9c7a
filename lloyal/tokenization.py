"""Text out of tokens as they arrive, and tokens of a text that goes on.

A token is bytes, not text: one character can be spread over several tokens, and a stop string can begin in one and end
in another. The two classes here hold back exactly what is undecided. They know nothing of contexts or sampling.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from lloyal.errors import InvalidArgument
from lloyal.llama import Vocab

__all__ = ["StopStrings", "StreamDecoder", "stop_strings", "tokens_behind"]


class StreamDecoder:
    """Tokens to text, one at a time, never splitting a character.

    The pieces put together are the text of the tokens put together, bytes that are not UTF-8 replaced by U+FFFD as
    `Vocab.detokenize` does. Text that goes on after a prompt is what this is for: a leading space is kept, and
    tokenizers that tidy spaces afterwards (WordPiece) are not imitated. It keeps the model's vocabulary alive.

    Parameters
    ----------
    vocab : Vocab
    special : bool
        Write control tokens such as ``<|im_end|>`` as text; otherwise they give none.
    """

    def __init__(self, vocab: Vocab, *, special: bool = False) -> None:
        self._vocab = vocab
        self._special = special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """Take one token and return the text that is certain now: empty while a character is unfinished.

        Raises
        ------
        InvalidArgument
            The token is not in the vocabulary.
        """
        return self._decoder.decode(self._vocab.token_to_piece(token, self._special))

    def flush(self) -> str:
        """End the text: an unfinished character comes out as U+FFFD. The decoder is then as new."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def stop_strings(stop: str | Iterable[str]) -> tuple[str, ...]:
    """Strings that end a text, of which there may be a single one."""
    return (stop,) if isinstance(stop, str) else tuple(stop)


class StopStrings:
    """Cut a stream of text at the first of some strings, holding back what may be the start of one.

    The string that is complete first ends the text, of several complete at once the one that began first: how the text
    was cut into pieces does not matter.

    Parameters
    ----------
    strings : iterable of str
        None of them empty; with none at all the text passes through.

    Attributes
    ----------
    found : str or None
        The string that ended the text.
    """

    def __init__(self, strings: Iterable[str] = ()) -> None:
        self._strings = stop_strings(strings)
        if not all(self._strings):
            raise InvalidArgument("a stop string is empty: it would end the text before it begins")
        self._held = ""
        self.found: str | None = None

    def feed(self, text: str) -> str:
        """Take a piece and return the text before any stop string that is certain now; nothing once one was found."""
        if self.found is not None:
            return ""
        self._held += text
        hits = [
            (begin + len(string), begin, string) for string in self._strings if (begin := self._held.find(string)) >= 0
        ]
        if hits:
            _, end, self.found = min(hits)
            certain, self._held = self._held[:end], ""
        else:
            end = len(self._held) - self._longest_start()
            certain, self._held = self._held[:end], self._held[end:]
        return certain

    def flush(self) -> str:
        """End the text: what was held back turned out to be no stop string."""
        rest, self._held = self._held, ""
        return rest

    def _longest_start(self) -> int:
        """Length of the longest tail of the held text that a stop string begins with."""
        longest = max(map(len, self._strings), default=0)
        for size in range(min(longest - 1, len(self._held)), 0, -1):
            tail = self._held[-size:]
            if any(string.startswith(tail) for string in self._strings):
                return size
        return 0


def tokens_behind(vocab: Vocab, text: str | bytes, *, parse_special: bool = False) -> list[int]:
    """The tokens of a text that goes on behind another: some tokenizers put a space before a beginning."""
    tokens = vocab.tokenize(text, add_special=False, parse_special=parse_special) if text else []
    spaced = text.startswith(" " if isinstance(text, str) else b" ")  # type: ignore[arg-type]
    if not tokens or not vocab.token_to_piece(tokens[0], True).startswith(b" ") or spaced:
        return tokens
    behind_line = "\n" + text if isinstance(text, str) else b"\n" + text
    tokens = vocab.tokenize(behind_line, add_special=False, parse_special=parse_special)
    before = b""
    while tokens and before.strip(b" ") != b"\n":
        before += vocab.token_to_piece(tokens.pop(0), True)
    return tokens
