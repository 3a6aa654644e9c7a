"""Provenance: which content each row of each sequence holds, against a dictionary ``sequence -> {position: row}``.

Random operations run on a context and on the dictionary, where a row is a serial number for its content and one for its
cell: a decoded row is new, a fork carries both, a device state carries the content to another cell, shifting and
dividing make new content. Two rows must have equal ids exactly where their contents are equal.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lloyal
from lloyal import StateSeqFlags
from lloyal.errors import CacheFull, InvalidArgument, InvalidBatch, Unsupported
from tests.decode import feed
from tests.models import tiny, tokens

N_SEQ = 4
N_EXAMPLES = 2000 if os.environ.get("LLOYAL_TEST_FULL") else 60

seqs = st.integers(0, N_SEQ - 1)
positions = st.integers(-1, 24)
OPERATIONS = st.one_of(
    st.tuples(st.just("decode"), st.lists(st.tuples(seqs, st.integers(1, 5)), min_size=1, max_size=3)),
    st.tuples(st.just("decode_shared"), st.sets(seqs, min_size=2), st.integers(1, 3)),
    st.tuples(st.just("seq_rm"), st.integers(-1, N_SEQ - 1), positions, positions),
    st.tuples(st.just("seq_cp"), seqs, seqs, positions, positions),
    st.tuples(st.just("seq_keep"), seqs),
    st.tuples(st.just("seq_add"), seqs, positions, positions, st.integers(-6, 6)),
    st.tuples(st.just("seq_div"), seqs, positions, positions, st.integers(1, 3)),
    st.tuples(st.just("clear")),
    st.tuples(st.just("copy_state"), seqs, seqs, st.sampled_from([StateSeqFlags.NONE, StateSeqFlags.ON_DEVICE])),
)


@dataclasses.dataclass(frozen=True)
class Row:
    content: int
    cell: int


class Model:
    """The dictionary, and the rules of llama.h on it."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[int, Row]] = {seq: {} for seq in range(N_SEQ)}
        self.serial = itertools.count()

    def new_row(self) -> Row:
        return Row(next(self.serial), next(self.serial))

    def next_pos(self, seq: int) -> int:
        return max(self.rows[seq], default=-1) + 1

    def within(self, seq: int, p0: int, p1: int) -> dict[int, Row]:
        end = p1 if p1 >= 0 else 10**9
        return {pos: row for pos, row in sorted(self.rows[seq].items()) if max(p0, 0) <= pos < end}

    def shares_cells(self, seq: int, chosen: dict[int, Row]) -> bool:
        others = {row.cell for other, rows in self.rows.items() if other != seq for row in rows.values()}
        return any(row.cell in others for row in chosen.values())

    def bounds(self, seq: int) -> tuple[int, int]:
        return min(self.rows[seq], default=-1), max(self.rows[seq], default=-1)


class Run:
    """A context beside its model; every method is one operation on both."""

    def __init__(self, model: lloyal.Model) -> None:
        self.model = Model()
        self.ctx = lloyal.Context(model, n_ctx=256, n_batch=32, n_ubatch=32, n_seq_max=N_SEQ, n_threads=1)

    def decode(self, parts: list[tuple[int, int]]) -> None:
        parts = list({seq: (seq, n) for seq, n in parts}.values())
        try:
            feed(self.ctx, *((seq, self.model.next_pos(seq), tokens(n)) for seq, n in parts))
        except CacheFull:
            return
        for seq, n in parts:
            start = self.model.next_pos(seq)
            self.model.rows[seq].update({start + i: self.model.new_row() for i in range(n)})

    def decode_shared(self, sharers: set[int], n: int) -> None:
        # Tokens of several sequences at once are computed for the first one: all must hold the same rows.
        held = {tuple((pos, row.content) for pos, row in self.model.within(seq, 0, -1).items()) for seq in sharers}
        start = max(self.model.next_pos(seq) for seq in sharers)
        batch = lloyal.Batch()
        for i in range(n):
            batch.add(i, start + i, sorted(sharers), True)
        if len(held) > 1:
            with pytest.raises(InvalidBatch):
                self.ctx.decode(batch)
            return
        try:
            self.ctx.decode(batch)
        except CacheFull:
            return
        for i in range(n):
            row = self.model.new_row()
            for seq in sharers:
                self.model.rows[seq][start + i] = row

    def seq_rm(self, seq: int, p0: int, p1: int) -> None:
        self.ctx.memory.seq_rm(seq, p0, p1)
        for one in range(N_SEQ) if seq == -1 else [seq]:
            for pos in self.model.within(one, p0, p1):
                del self.model.rows[one][pos]

    def seq_cp(self, src: int, dst: int, p0: int, p1: int) -> None:
        taken = self.model.within(src, p0, p1)
        there = self.model.rows[dst]
        low, high = min(taken, default=0), max(taken, default=-1)
        others = [
            pos
            for pos, row in there.items()
            if low <= pos <= high and (pos not in taken or taken[pos].content != row.content)
        ]
        if src != dst and others:
            with pytest.raises(InvalidArgument):
                self.ctx.memory.seq_cp(src, dst, p0, p1)
            return
        self.ctx.memory.seq_cp(src, dst, p0, p1)
        if src != dst:
            there.update(taken)

    def seq_keep(self, seq: int) -> None:
        self.ctx.memory.seq_keep(seq)
        self.model.rows = {one: rows if one == seq else {} for one, rows in self.model.rows.items()}

    def change_positions(
        self, seq: int, p0: int, p1: int, call: Callable[[], None], where: Callable[[int], int], changes: bool
    ) -> None:
        moved = self.model.within(seq, p0, p1)
        rest = {pos: row for pos, row in self.model.rows[seq].items() if pos not in moved}
        target = {where(pos) for pos in moved}
        if len(target) < len(moved):
            return  # rows that share a position: the oracle of tests/fuzz holds those
        allowed = (
            not changes
            or not moved
            or (min(target) >= 0 and not target & set(rest) and not self.model.shares_cells(seq, moved))
        )
        if not allowed:
            with pytest.raises((InvalidArgument, Unsupported)):
                call()
            return
        call()
        if changes:
            self.model.rows[seq] = rest | {pos: self.model.new_row() for pos in target}

    def seq_add(self, seq: int, p0: int, p1: int, delta: int) -> None:
        self.change_positions(
            seq, p0, p1, lambda: self.ctx.memory.seq_add(seq, p0, p1, delta), lambda pos: pos + delta, delta != 0
        )

    def seq_div(self, seq: int, p0: int, p1: int, d: int) -> None:
        self.change_positions(
            seq, p0, p1, lambda: self.ctx.memory.seq_div(seq, p0, p1, d), lambda pos: pos // d, d != 1
        )

    def clear(self) -> None:
        self.ctx.memory.clear()
        self.model.rows = {seq: {} for seq in range(N_SEQ)}

    def copy_state(self, src: int, dst: int, flags: StateSeqFlags) -> None:
        source = dict(self.model.rows[src])
        if not source:
            return
        self.ctx.state_seq_set_data_ext(self.ctx.state_seq_get_data_ext(src, flags), dst, flags)
        # Bytes from outside carry no ids; a device state never left.
        new = {pos: self.model.new_row() for pos in source}
        if flags & StateSeqFlags.ON_DEVICE:
            new = {pos: Row(source[pos].content, row.cell) for pos, row in new.items()}
        self.model.rows[dst] = new

    def ids(self) -> dict[int, dict[int, tuple[int, int]]]:
        found: dict[int, dict[int, tuple[int, int]]] = {}
        for seq in range(N_SEQ):
            found[seq] = {}
            last = -1
            for begin, end, epoch, first in self.ctx.memory.provenance(seq):
                assert last <= begin < end, "runs are in order, disjoint and not empty"
                last = end
                found[seq].update({pos: (epoch, first + pos - begin) for pos in range(begin, end)})
        return found

    def check(self) -> None:
        ids = self.ids()
        content_of: dict[tuple[int, int], int] = {}
        id_of: dict[int, tuple[int, int]] = {}
        for seq, rows in self.model.rows.items():
            assert set(ids[seq]) == set(rows)
            assert (self.ctx.memory.seq_pos_min(seq), self.ctx.memory.seq_pos_max(seq)) == self.model.bounds(seq)
            for pos, row in rows.items():
                assert content_of.setdefault(ids[seq][pos], row.content) == row.content, "one id, two contents"
                assert id_of.setdefault(row.content, ids[seq][pos]) == ids[seq][pos], "one content, two ids"


@pytest.fixture(scope="module")
def llama() -> Iterator[lloyal.Model]:
    with lloyal.Model(tiny("llama")) as model:
        yield model


@settings(max_examples=N_EXAMPLES)
@given(operations=st.lists(OPERATIONS, min_size=1, max_size=25))
def test_ids_are_equal_exactly_where_the_content_is(llama: lloyal.Model, operations: list[tuple[Any, ...]]) -> None:
    run = Run(llama)
    with run.ctx:
        for operation, *arguments in operations:
            getattr(run, operation)(*arguments)
            run.check()


def test_ids_of_two_contexts_never_clash(llama: lloyal.Model) -> None:
    ids: list[set[tuple[int, int]]] = []
    for _ in range(2):
        run = Run(llama)
        with run.ctx:
            run.decode([(0, 5), (1, 5)])
            ids.append({one for rows in run.ids().values() for one in rows.values()})
    assert not ids[0] & ids[1]


def test_rows_decoded_one_by_one_are_one_run(llama: lloyal.Model) -> None:
    run = Run(llama)
    with run.ctx:
        for _ in range(20):
            run.decode([(0, 1), (1, 1)])
        assert [len(run.ctx.memory.provenance(seq)) for seq in (0, 1)] == [1, 1]


def test_a_fork_diverges_where_it_decodes(llama: lloyal.Model) -> None:
    run = Run(llama)
    with run.ctx:
        run.decode([(0, 5)])
        run.seq_cp(0, 1, -1, -1)
        run.decode([(0, 3), (1, 3)])
        ids = run.ids()
    same = [pos for pos in range(8) if ids[0][pos] == ids[1][pos]]
    assert same == [0, 1, 2, 3, 4]


def test_the_same_tokens_again_are_other_rows(llama: lloyal.Model) -> None:
    # The cell table would be identical; what follows a trim is still new.
    run = Run(llama)
    with run.ctx:
        run.decode([(0, 6)])
        before = run.ids()[0]
        run.seq_rm(0, 3, -1)
        run.decode([(0, 3)])
        after = run.ids()[0]
    assert [pos for pos in range(6) if before[pos] == after[pos]] == [0, 1, 2]
