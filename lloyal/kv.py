"""Sequence ids as a resource: leasing them, so that two users of one context never write the same one.

This module knows nothing about tokens or sampling.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from lloyal.errors import InvalidArgument, NoLease
from lloyal.native import lease as native

if TYPE_CHECKING:
    from lloyal.llama import Batch, Context

__all__ = ["Tenancy"]

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
