# cython: language_level=3
"""Vocabularies: text to tokens and back."""

from libc.stdint cimport int32_t
from libcpp.string cimport string
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core
cimport lloyal._cpp.model as cmodel
cimport lloyal.libllama.llama as c
from lloyal.llama.args cimport as_int32
from lloyal.llama.status cimport check

from lloyal.errors import InvalidArgument, Unsupported
from lloyal.llama.enums import TokenAttr, VocabType

__all__ = ["Vocab"]

cdef object _KEY = object()  # a bare __new__ would make one that points nowhere


cdef Vocab wrap_vocab(core.ModelHandle handle):
    cdef Vocab vocab = Vocab.__new__(Vocab, _KEY)
    vocab.handle = handle
    vocab.ptr = c.llama_model_get_vocab(handle.get().ptr)
    vocab.n_tokens = c.llama_vocab_n_tokens(vocab.ptr)
    return vocab


cdef class Vocab:
    """The vocabulary of a model (``llama_vocab``). Get it from `Model.vocab`; it keeps the weights alive."""

    def __cinit__(self, key=None):
        if key is not _KEY:
            raise TypeError("Vocab cannot be made directly: use Model.vocab")

    def __len__(self):
        return self.n_tokens

    @property
    def type(self) -> VocabType:
        """Kind of tokenizer."""
        return VocabType(c.llama_vocab_type(self.ptr))

    cdef int check_token(self, object token) except -1:
        cdef int32_t id = as_int32(token, "token")
        if id < 0 or id >= self.n_tokens:
            raise InvalidArgument(f"token {id} is outside the vocabulary of {self.n_tokens}")
        return id

    cdef int check_type(self) except -1:
        if c.llama_vocab_type(self.ptr) == c.LLAMA_VOCAB_TYPE_NONE:
            raise Unsupported("this model has no tokenizer (tokenizer.ggml.model is \"none\")")
        return 0

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
        cdef bytes data
        cdef const char* start
        cdef size_t size
        cdef bint special = add_special
        cdef bint parse = parse_special
        cdef vector[c.llama_token] tokens
        cdef core.Status status
        if isinstance(text, str):
            try:
                data = text.encode()
            except UnicodeEncodeError as error:
                raise InvalidArgument(f"text[{error.start}]={text[error.start]!r} is half a surrogate pair: it has no UTF-8")
        elif isinstance(text, (bytes, bytearray, memoryview)):
            data = bytes(text)
        else:
            raise TypeError(f"text must be str or bytes, not {type(text).__name__}")
        start = data
        size = len(data)
        with nogil:
            status = cmodel.tokenize(self.ptr, start, size, special, parse, tokens)
        check(status)
        return [tokens[i] for i in range(tokens.size())]

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
        cdef vector[c.llama_token] ids
        cdef string out
        cdef bint remove = remove_special
        cdef bint unparse = unparse_special
        cdef core.Status status
        for token in tokens:
            ids.push_back(self.check_token(token))
        with nogil:
            status = cmodel.detokenize(self.ptr, ids, remove, unparse, out)
        check(status)
        return out.decode("utf-8", "replace")

    def token_to_piece(self, token: int, special: bool = True) -> bytes:
        """The bytes of one token, which need not be whole UTF-8 characters.

        Parameters
        ----------
        token : int
        special : bool
            Write a special token as text; otherwise it gives no bytes.
        """
        cdef string out
        cdef int32_t id = self.check_token(token)
        cdef core.Status status = cmodel.token_to_piece(self.ptr, id, bool(special), out)
        check(status)
        return out

    def text(self, token: int) -> str:
        """The entry of the vocabulary as the file spells it."""
        cdef int32_t id = self.check_token(token)
        self.check_type()
        return c.llama_vocab_get_text(self.ptr, id).decode("utf-8", "replace")

    def score(self, token: int) -> float:
        cdef int32_t id = self.check_token(token)
        self.check_type()
        return c.llama_vocab_get_score(self.ptr, id)

    def attr(self, token: int) -> TokenAttr:
        cdef int32_t id = self.check_token(token)
        self.check_type()
        return TokenAttr(c.llama_vocab_get_attr(self.ptr, id))

    def is_eog(self, token: int) -> bool:
        """True if the token ends a generation (EOS, EOT and the like)."""
        cdef int32_t id = self.check_token(token)
        return c.llama_vocab_is_eog(self.ptr, id)

    def is_control(self, token: int) -> bool:
        """True for tokens that are not text."""
        cdef int32_t id = self.check_token(token)
        return c.llama_vocab_type(self.ptr) != c.LLAMA_VOCAB_TYPE_NONE and c.llama_vocab_is_control(self.ptr, id)

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
