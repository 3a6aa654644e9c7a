"""The cache of a context: what one does to its sequences, and sequence ids as a resource.

`Tenancy` leases ids, so that two users of one context never write the same one. The functions are short names for what
`Context.memory` and the context's state methods do; what cannot be done raises. Nothing here knows about sampling.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import index
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from lloyal.errors import CacheFull, DecodeFailed, InvalidArgument, NoLease
from lloyal.llama import Batch, BatchExt, build_info
from lloyal.native import lease as native

if TYPE_CHECKING:
    from lloyal.llama import Context
    from lloyal.llama.context import BufferLike, StrPath

__all__ = [
    "FileData",
    "Tenancy",
    "build_info",
    "cache_type",
    "clear_all",
    "clear_and_reseed",
    "clear_metadata",
    "global_state_load",
    "global_state_save",
    "global_state_size",
    "pos_max",
    "read_file",
    "remove_range",
    "seq_cp",
    "seq_keep",
    "state_load",
    "state_save",
    "state_size",
    "write_file",
]

_tenancies: WeakKeyDictionary[Context, Tenancy] = WeakKeyDictionary()
_making = Lock()


class Tenancy:
    """Leases of sequence ids, one Tenancy per context: `Tenancy(ctx)` returns the same object every time.

    Ids that raw calls have written count as taken, leases are handed out from the top, and `Context.decode` into a
    leased id raises `NoLease`; use `decode` here. A checkpoint with ``where="cells"`` leases an id the same way.

    Parameters
    ----------
    ctx : Context
        Not kept alive by it.
    """

    _leased: set[int]

    def __new__(cls, ctx: Context) -> Tenancy:
        with _making:
            tenancy = _tenancies.get(ctx)
            if tenancy is None:
                tenancy = super().__new__(cls)
                tenancy._leased = set()
                _tenancies[ctx] = tenancy
            return tenancy

    def __init__(self, ctx: Context) -> None:
        from weakref import ref

        self._ctx = ref(ctx)

    @property
    def _context(self) -> Context:
        ctx = self._ctx()
        if ctx is None:
            raise NoLease("the context of this Tenancy is gone")
        return ctx

    def acquire(self) -> int:
        """Lease a free sequence id.

        Raises
        ------
        NoLease
            Every id is leased or holds tokens.
        """
        seq_id: int = native.lease_acquire(self._context)
        self._leased.add(seq_id)
        return seq_id

    def release(self, seq_id: int) -> None:
        """Give an id back and empty its sequence.

        Raises
        ------
        NoLease
            It was not leased here.
        """
        self._check(seq_id)
        self._leased.discard(seq_id)
        native.lease_release(self._context, seq_id)

    def evict(self, seq_id: int) -> None:
        """Empty a leased sequence and keep the lease."""
        self._check(seq_id)
        self._context.memory.seq_rm(seq_id)

    def retain(self, seq_ids: int | Iterable[int]) -> None:
        """Release every lease but these."""
        keep = {seq_ids} if isinstance(seq_ids, int) else set(seq_ids)
        for seq_id in keep:
            self._check(seq_id)
        for seq_id in sorted(self._leased - keep):
            self.release(seq_id)

    def evict_all(self) -> None:
        """Release every lease."""
        for seq_id in sorted(self._leased):
            self.release(seq_id)

    def decode(self, batch: Batch) -> None:
        """`Context.decode` for batches that write leased ids."""
        native.decode_as_tenant(self._context, batch)

    def process(self, batch: BatchExt) -> None:
        """``Context.process("decode", batch)`` for batches that write leased ids."""
        native.process_as_tenant(self._context, batch)

    @contextmanager
    def lease(self) -> Iterator[int]:
        """A lease for a ``with`` block."""
        seq_id = self.acquire()
        try:
            yield seq_id
        finally:
            if seq_id in self._leased:
                self.release(seq_id)

    @property
    def available(self) -> int:
        """Ids that could be leased now."""
        return int(native.lease_available(self._context))

    @property
    def leased(self) -> frozenset[int]:
        """The ids leased here; those of checkpoints are not among them."""
        return frozenset(self._leased)

    def _check(self, seq_id: int) -> None:
        if not isinstance(seq_id, int):
            raise InvalidArgument(f"seq_id={seq_id!r} must be an integer")
        if seq_id not in self._leased:
            raise NoLease(f"sequence {seq_id} is not leased; leased are {sorted(self._leased) or 'none'}")

    def __repr__(self) -> str:
        return f"<Tenancy: {len(self._leased)} leased, {self.available} available>"


# One sequence


def remove_range(ctx: Context, seq_id: int, p0: int = 0, p1: int = -1) -> None:
    """Remove positions ``[p0, p1)`` of a sequence; -1 is its end. Raises like `Memory.seq_rm`."""
    ctx.memory.seq_rm(seq_id, p0, p1)


def pos_max(ctx: Context, seq_id: int) -> int:
    """The highest position of a sequence; -1 if it is empty, so that the next token goes to ``pos_max + 1``."""
    return ctx.memory.seq_pos_max(seq_id)


def seq_cp(ctx: Context, src: int, dst: int, p0: int = 0, p1: int = -1) -> None:
    """Copy positions ``[p0, p1)`` of a sequence to another; -1 is its end. Raises like `Memory.seq_cp`."""
    ctx.memory.seq_cp(src, dst, p0, p1)


def seq_keep(ctx: Context, seq_id: int) -> None:
    """Remove every other sequence, those of leases included."""
    ctx.memory.seq_keep(seq_id)


def state_size(ctx: Context, seq_id: int) -> int:
    """Bytes that `state_save` gives.

    Raises
    ------
    InvalidArgument
        The sequence is empty.
    """
    _check_filled(ctx, seq_id)
    return ctx.state_seq_get_size(seq_id)


def state_save(ctx: Context, seq_id: int) -> bytes:
    """The state of one sequence, in llama.cpp's format.

    Raises
    ------
    InvalidArgument
        The sequence is empty.
    """
    _check_filled(ctx, seq_id)
    return ctx.state_seq_get_data(seq_id)


def state_load(ctx: Context, seq_id: int, data: BufferLike) -> int:
    """Put what `state_save` gave into a sequence, in place of what it holds, and return the bytes read.

    It never touches another sequence; for a whole context there is `global_state_load`. Logits are not part of a state:
    decode a token before they are asked for.

    Raises
    ------
    StateMismatch
        Another layout, or damaged bytes. The sequence is empty afterwards.
    NoLease
        It holds the cells of a checkpoint.
    """
    return ctx.state_seq_set_data(data, seq_id)


class FileData(NamedTuple):
    """What `read_file` found beside the state it restored."""

    tokens: list[int]
    bytes_read: int


def write_file(ctx: Context, seq_id: int, path: StrPath, tokens: Iterable[int] = ()) -> int:
    """Write the state of a sequence and its tokens to a file of llama.cpp's format, and return its size in bytes.

    Raises
    ------
    InvalidArgument
        The sequence is empty.
    OSError
        The file cannot be written.
    """
    _check_filled(ctx, seq_id)
    return ctx.state_seq_save_file(path, seq_id, tokens)


def read_file(ctx: Context, seq_id: int, path: StrPath) -> FileData:
    """Put what `write_file` wrote into a sequence, in place of what it holds.

    Logits are not in the file: decode a token before they are asked for.

    Raises
    ------
    StateMismatch
        A truncated file, or another model's.
    OSError
        There is no such file, or it cannot be read.
    """
    tokens = ctx.state_seq_load_file(path, seq_id)
    return FileData(tokens, os.path.getsize(path))


def _check_filled(ctx: Context, seq_id: int) -> None:
    if ctx.memory.seq_pos_max(seq_id) < 0:
        raise InvalidArgument(f"sequence {seq_id} is empty: there is no state to save")


# The whole context


def global_state_size(ctx: Context) -> int:
    """Bytes that `global_state_save` gives."""
    return ctx.state_get_size()


def global_state_save(ctx: Context) -> bytes:
    """The state of all sequences, in llama.cpp's format."""
    return ctx.state_get_data()


def global_state_load(ctx: Context, data: BufferLike) -> int:
    """Put what `global_state_save` gave in place of all sequences, and return the bytes read.

    Raises
    ------
    StateMismatch
        Another layout, or damaged bytes. The context is empty afterwards.
    """
    return ctx.state_set_data(data)


def clear_all(ctx: Context) -> None:
    """Forget every sequence and zero the buffers."""
    ctx.memory.clear(data=True)


def clear_metadata(ctx: Context) -> None:
    """Forget every sequence; the buffers keep their bytes, which nothing reads any more."""
    ctx.memory.clear(data=False)


def clear_and_reseed(ctx: Context, sinks: Sequence[int], tail: Sequence[int], n_batch: int | None = None) -> int:
    """Forget every sequence, then read a text's first tokens and its last ones into sequence 0, from position 0 on.

    A text that has outgrown the cache goes on this way: positions are without a gap, since everything is computed
    again. Give the same sinks, the very first tokens, every time. The logits of the last token are there afterwards.
    Branches read their own tokens again when they go on.

    Parameters
    ----------
    ctx : Context
    sinks, tail : sequence of int
        One of them may be empty.
    n_batch : int, optional
        Most tokens decoded at once, by default the context's.

    Returns
    -------
    int
        The position after them, for the next token.

    Raises
    ------
    InvalidArgument
        There is nothing to reseed, or a token is outside the vocabulary. Nothing was changed.
    CacheFull
        They are more than a sequence can hold. Nothing was changed.
    NoLease
        Sequence 0 is leased. Nothing was changed if a `Tenancy` leased it; otherwise the context is empty.
    DecodeFailed
        The sequence does not end where it should, or llama.cpp failed.
    """
    tokens = [index(token) for token in (*sinks, *tail)]
    if not tokens:
        raise InvalidArgument("there are no tokens to reseed: give sinks, a tail, or both")
    size = ctx.n_batch if n_batch is None else index(n_batch)
    if not 1 <= size <= ctx.n_batch:
        raise InvalidArgument(f"n_batch={n_batch} must be from 1 to the context's {ctx.n_batch}")
    n_vocab = ctx.vocab.n_tokens
    for token in tokens:
        if not 0 <= token < n_vocab:
            raise InvalidArgument(f"token {token} is outside the vocabulary of {n_vocab}")
    if len(tokens) > ctx.n_ctx_seq:
        raise CacheFull(f"{len(sinks)} + {len(tail)} tokens are more than the {ctx.n_ctx_seq} a sequence can hold")
    if 0 in Tenancy(ctx).leased:
        raise NoLease("sequence 0 is leased: release it before the context is reseeded")
    clear_all(ctx)
    batch = Batch()
    for begin in range(0, len(tokens), size):
        end = min(begin + size, len(tokens))
        batch.clear()
        batch.extend(tokens[begin:end], begin, 0, "last" if end == len(tokens) else False)
        ctx.decode(batch)
    if pos_max(ctx, 0) != len(tokens) - 1:
        raise DecodeFailed(f"sequence 0 ends at position {pos_max(ctx, 0)}, {len(tokens)} tokens were read")
    return len(tokens)


# Names

# Numbers of ggml.h, by the names that `ContextParams.type_k` takes; the tests hold them against the package `gguf`.
_CACHE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30}


def cache_type(name: str) -> int:
    """ggml's number of a type that a cache can have (``enum ggml_type``), by the name that `ContextParams` takes.

    Raises
    ------
    InvalidArgument
        There is no such cache type.
    """
    if name not in _CACHE_TYPES:
        raise InvalidArgument(f"cache type {name!r} must be one of {', '.join(_CACHE_TYPES)}")
    return _CACHE_TYPES[name]
