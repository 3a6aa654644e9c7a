"""Leases of sequence ids."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import lloyal
from lloyal import errors
from lloyal.kv import Tenancy
from tests.decode import feed
from tests.models import tiny


@pytest.fixture
def ctx(new_context: Callable[..., lloyal.Context]) -> lloyal.Context:
    with lloyal.Model(tiny("llama")) as model:
        return new_context(model, n_seq_max=4)


def test_leases_come_from_the_top_and_skip_written_ids(ctx: lloyal.Context) -> None:
    tenancy = Tenancy(ctx)
    assert tenancy is Tenancy(ctx)
    feed(ctx, (3, 0, [1, 2]), (0, 0, [3]))
    assert tenancy.available == 2
    assert (tenancy.acquire(), tenancy.acquire()) == (2, 1)
    with pytest.raises(errors.NoLease, match="n_seq_max"):
        tenancy.acquire()
    tenancy.release(2)
    assert tenancy.acquire() == 2
    tenancy.evict_all()
    assert tenancy.leased == frozenset()
    assert tenancy.available == 2


def test_raw_decode_into_a_leased_id_raises(ctx: lloyal.Context) -> None:
    tenancy = Tenancy(ctx)
    seq = tenancy.acquire()
    batch = lloyal.Batch()
    batch.add(1, 0, seq, logits=True)
    with pytest.raises(errors.NoLease, match=f"sequence {seq}"):
        ctx.decode(batch)
    tenancy.decode(batch)
    assert ctx.memory.seq_pos_max(seq) == 0
    tenancy.evict(seq)
    assert ctx.memory.seq_pos_max(seq) == -1
    tenancy.decode(batch)
    tenancy.release(seq)
    assert ctx.memory.seq_pos_max(seq) == -1
    ctx.decode(batch)


def test_retain_releases_the_others(ctx: lloyal.Context) -> None:
    tenancy = Tenancy(ctx)
    a, b, c = (tenancy.acquire() for _ in range(3))
    tenancy.retain(b)
    assert tenancy.leased == {b}
    with pytest.raises(errors.NoLease, match=f"sequence {a} is not leased"):
        tenancy.release(a)
    with pytest.raises(errors.NoLease):
        tenancy.retain([b, c])
    assert tenancy.leased == {b}
    with tenancy.lease() as seq:
        assert seq in tenancy.leased
    assert tenancy.leased == {b}
