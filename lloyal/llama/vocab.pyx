# cython: language_level=3
"""Vocabularies: text to tokens and back."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int32_t
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core
cimport lloyal.libllama.llama as c

from lloyal.errors import InvalidArgument, Unsupported
from lloyal.llama.enums import TokenAttr, VocabType

__all__ = ["Vocab"]


cdef Vocab wrap_vocab(core.ModelHandle handle):
    cdef Vocab vocab = Vocab.__new__(Vocab)
    vocab.handle = handle
    vocab.ptr = c.llama_model_get_vocab(handle.get().ptr)
    vocab.n_tokens = c.llama_vocab_n_tokens(vocab.ptr)
    return vocab


cdef class Vocab:
    """The vocabulary of a model (``llama_vocab``). Get it from `Model.vocab`; it keeps the weights alive."""

    def __init__(self):
        raise TypeError("Vocab cannot be made directly: use Model.vocab")

    def __len__(self):
        return self.n_tokens

    @property
    def type(self) -> VocabType:
        """Kind of tokenizer."""
        return VocabType(c.llama_vocab_type(self.ptr))

    cdef int check_token(self, int token) except -1:
        if token < 0 or token >= self.n_tokens:
            raise InvalidArgument(f"token {token} is outside the vocabulary of {self.n_tokens}")
        return 0

    def tokenize(self, text, add_special=True, parse_special=False) -> list[int]:
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
            The text is longer than 2 GiB.
        """
        cdef bytes data = text.encode() if isinstance(text, str) else bytes(text)
        cdef const char* start = data
        cdef Py_ssize_t size = len(data)
        cdef bint special = add_special
        cdef bint parse = parse_special
        cdef vector[c.llama_token] tokens
        cdef int32_t n
        if c.llama_vocab_type(self.ptr) == c.LLAMA_VOCAB_TYPE_NONE:
            raise Unsupported("this model has no tokenizer (tokenizer.ggml.model is \"none\")")
        if size > 2**31 - 1024:
            raise InvalidArgument(f"the text has {size} bytes, the tokenizer takes less than 2 GiB")
        tokens.resize(size + 8)
        with nogil:
            n = c.llama_tokenize(self.ptr, start, <int32_t>size, tokens.data(), <int32_t>tokens.size(), special, parse)
            if n < 0 and n != -2147483648:
                tokens.resize(-n)
                n = c.llama_tokenize(self.ptr, start, <int32_t>size, tokens.data(), <int32_t>tokens.size(), special, parse)
        if n < 0:
            raise InvalidArgument(f"llama.cpp could not tokenize {size} bytes (code {n})")
        return [tokens[i] for i in range(n)]

    def detokenize(self, tokens, remove_special=False, unparse_special=True) -> str:
        """Turn tokens into text, invalid UTF-8 replaced; use `token_to_piece` for the bytes of one token.

        Parameters
        ----------
        tokens : iterable of int
        remove_special : bool
            Leave out BOS and EOS at the ends.
        unparse_special : bool
            Write special tokens as text.
        """
        cdef vector[c.llama_token] ids
        cdef bytearray text
        cdef char* buf
        cdef int32_t n
        cdef int32_t size
        cdef bint remove = remove_special
        cdef bint unparse = unparse_special
        for token in tokens:
            self.check_token(token)
            ids.push_back(token)
        if c.llama_vocab_type(self.ptr) == c.LLAMA_VOCAB_TYPE_NONE:
            raise Unsupported("this model has no tokenizer (tokenizer.ggml.model is \"none\")")
        size = <int32_t>ids.size() * 8 + 64
        while True:
            text = bytearray(size)
            buf = text
            with nogil:
                n = c.llama_detokenize(self.ptr, ids.data(), <int32_t>ids.size(), buf, size, remove, unparse)
            if n >= 0:
                return bytes(text[:n]).decode("utf-8", "replace")
            size = -n

    def token_to_piece(self, token, special=True) -> bytes:
        """The bytes of one token, which need not be whole UTF-8 characters.

        Parameters
        ----------
        token : int
        special : bool
            Write a special token as text; otherwise it gives no bytes.
        """
        cdef char small[128]
        cdef int32_t n
        cdef bytes out
        cdef char* buf
        self.check_token(token)
        if c.llama_vocab_type(self.ptr) == c.LLAMA_VOCAB_TYPE_NONE:
            raise Unsupported("this model has no tokenizer (tokenizer.ggml.model is \"none\")")
        n = c.llama_token_to_piece(self.ptr, token, small, sizeof(small), 0, special)
        if n >= 0:
            return small[:n]
        out = PyBytes_FromStringAndSize(NULL, -n)
        buf = out
        c.llama_token_to_piece(self.ptr, token, buf, -n, 0, special)
        return out

    def text(self, token) -> str:
        """The entry of the vocabulary as the file spells it."""
        self.check_token(token)
        if c.llama_vocab_type(self.ptr) == c.LLAMA_VOCAB_TYPE_NONE:
            raise Unsupported("this model has no tokenizer (tokenizer.ggml.model is \"none\")")
        return c.llama_vocab_get_text(self.ptr, token).decode("utf-8", "replace")

    def score(self, token) -> float:
        self.check_token(token)
        if c.llama_vocab_type(self.ptr) == c.LLAMA_VOCAB_TYPE_NONE:
            raise Unsupported("this model has no tokenizer (tokenizer.ggml.model is \"none\")")
        return c.llama_vocab_get_score(self.ptr, token)

    def attr(self, token) -> TokenAttr:
        self.check_token(token)
        if c.llama_vocab_type(self.ptr) == c.LLAMA_VOCAB_TYPE_NONE:
            raise Unsupported("this model has no tokenizer (tokenizer.ggml.model is \"none\")")
        return TokenAttr(c.llama_vocab_get_attr(self.ptr, token))

    def is_eog(self, token) -> bool:
        """True if the token ends a generation (EOS, EOT and the like)."""
        self.check_token(token)
        return c.llama_vocab_is_eog(self.ptr, token)

    def is_control(self, token) -> bool:
        """True for tokens that are not text."""
        self.check_token(token)
        return c.llama_vocab_type(self.ptr) != c.LLAMA_VOCAB_TYPE_NONE and c.llama_vocab_is_control(self.ptr, token)

    @property
    def bos(self) -> int | None:
        return _token_or_none(c.llama_vocab_bos(self.ptr))

    @property
    def eos(self) -> int | None:
        return _token_or_none(c.llama_vocab_eos(self.ptr))

    @property
    def eot(self) -> int | None:
        return _token_or_none(c.llama_vocab_eot(self.ptr))

    @property
    def sep(self) -> int | None:
        return _token_or_none(c.llama_vocab_sep(self.ptr))

    @property
    def nl(self) -> int | None:
        return _token_or_none(c.llama_vocab_nl(self.ptr))

    @property
    def pad(self) -> int | None:
        return _token_or_none(c.llama_vocab_pad(self.ptr))

    @property
    def mask(self) -> int | None:
        return _token_or_none(c.llama_vocab_mask(self.ptr))

    @property
    def fim(self) -> dict[str, int | None]:
        """Fill-in-the-middle tokens: pre, suf, mid, pad, rep, sep."""
        return {
            "pre": _token_or_none(c.llama_vocab_fim_pre(self.ptr)),
            "suf": _token_or_none(c.llama_vocab_fim_suf(self.ptr)),
            "mid": _token_or_none(c.llama_vocab_fim_mid(self.ptr)),
            "pad": _token_or_none(c.llama_vocab_fim_pad(self.ptr)),
            "rep": _token_or_none(c.llama_vocab_fim_rep(self.ptr)),
            "sep": _token_or_none(c.llama_vocab_fim_sep(self.ptr)),
        }

    @property
    def add_bos(self) -> bool:
        return c.llama_vocab_get_add_bos(self.ptr)

    @property
    def add_eos(self) -> bool:
        return c.llama_vocab_get_add_eos(self.ptr)

    @property
    def add_sep(self) -> bool:
        return c.llama_vocab_get_add_sep(self.ptr)

    @property
    def suppress_tokens(self) -> list[int]:
        """Tokens the model asks never to sample."""
        cdef int32_t n = 0
        cdef const c.llama_token* tokens = c.llama_vocab_get_suppress_tokens(self.ptr, &n)
        return [tokens[i] for i in range(n)]

    def __repr__(self):
        return f"<Vocab {self.type.name}: {self.n_tokens} tokens>"


cdef object _token_or_none(c.llama_token token):
    return None if token == c.LLAMA_TOKEN_NULL else token
