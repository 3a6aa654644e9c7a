# Written by tools/stubs.py from vocab.pyx.
"""Vocabularies: text to tokens and back."""

from collections.abc import Iterable
from lloyal.llama.enums import TokenAttr, VocabType

__all__ = ["Vocab"]

class Vocab:
    """The vocabulary of a model (``llama_vocab``). Get it from `Model.vocab`; it keeps the weights alive."""

    @property
    def n_tokens(self) -> int: ...
    def __len__(self) -> int: ...
    @property
    def type(self) -> VocabType:
        """Kind of tokenizer."""
    def tokenize(self, text: str | bytes, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Turn text into tokens.

        Parameters
        ----------
        text : str or bytes
        add_special : bool
            Add BOS and EOS where the model asks for them.
        parse_special : bool
            Read ``<|im_start|>`` and the like as tokens; leave it off for text that is not yours.

        Returns
        -------
        list of int

        Raises
        ------
        Unsupported
            The model has no tokenizer.
        InvalidArgument
            The text is longer than 64 MiB, takes the tokenizer too long, or holds bytes that cannot be UTF-8 (most stray bytes are read as U+FFFD).
        """
    def detokenize(self, tokens: Iterable[int], remove_special: bool = False, unparse_special: bool = True) -> str:
        """Turn tokens into text, invalid UTF-8 replaced; use `token_to_piece` for the bytes of one token.

        Parameters
        ----------
        tokens : iterable of int
        remove_special : bool
            Leave out BOS and EOS at the ends.
        unparse_special : bool
            Write special tokens as text.
        """
    def token_to_piece(self, token: int, special: bool = True) -> bytes:
        """The bytes of one token, which need not be whole UTF-8 characters.

        Parameters
        ----------
        token : int
        special : bool
            Write a special token as text; otherwise it gives no bytes.
        """
    def text(self, token: int) -> str:
        """The entry of the vocabulary as the file spells it."""
    def score(self, token: int) -> float: ...
    def attr(self, token: int) -> TokenAttr: ...
    def is_eog(self, token: int) -> bool:
        """True if the token ends a generation (EOS, EOT and the like)."""
    def is_control(self, token: int) -> bool:
        """True for tokens that are not text."""
    @property
    def bos(self) -> int | None: ...
    @property
    def eos(self) -> int | None: ...
    @property
    def eot(self) -> int | None: ...
    @property
    def sep(self) -> int | None: ...
    @property
    def nl(self) -> int | None: ...
    @property
    def pad(self) -> int | None: ...
    @property
    def mask(self) -> int | None: ...
    @property
    def fim(self) -> dict[str, int | None]:
        """Fill-in-the-middle tokens: pre, suf, mid, pad, rep, sep."""
    @property
    def add_bos(self) -> bool: ...
    @property
    def add_eos(self) -> bool: ...
    @property
    def add_sep(self) -> bool: ...
    @property
    def suppress_tokens(self) -> list[int]:
        """Tokens the model asks never to sample."""
    def __repr__(self) -> str: ...
