"""The operations of a history: how each is chosen, made, and what it does to the lists.

An operation is a class in the table `OPS`. `propose` looks at the world and gives arguments (plain values, so that a
history can be printed and run again) or None; `apply` makes the call and says what must be true now. Arguments may
name what is no longer there, when a history is cut down: then `apply` does nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

import lloyal
from lloyal.native.checkpoint import abort_arm
from tests.fuzz.state_model import (
    EMPTY,
    END,
    Content,
    clash,
    computed,
    fresh,
    moved,
    removed,
    taken,
)
from tests.fuzz.state_oracle import embedding, tokens
from tests.fuzz.state_world import Side, Violation, World
from tests.models import N_VOCAB

Args = dict[str, Any]


class Op:
    """One kind of operation."""

    weight: ClassVar[float] = 1.0

    def propose(self, w: World, rng: random.Random) -> Args | None:
        raise NotImplementedError

    def apply(self, w: World, **args: Any) -> None:
        raise NotImplementedError


OPS: dict[str, Op] = {}


def op(kind: type[Op]) -> type[Op]:
    OPS[kind.__name__.lower()] = kind()
    return kind


def any_side(w: World, rng: random.Random) -> Side:
    return w.sides[-1] if rng.random() < 0.2 else w.sides[0]


def a_sequence(side: Side, rng: random.Random, filled: float = 0.7) -> int:
    """Most often one that holds something."""
    full = [seq for seq, content in enumerate(side.seqs) if content.rows]
    return rng.choice(full) if full and rng.random() < filled else rng.randrange(side.n_seq)


def a_range(content: Content, rng: random.Random) -> tuple[int, int]:
    """Tails, beginnings, middles, everything; sometimes past the ends."""
    begin, end = content.begin, max(content.end, 1)
    cut = [rng.randint(begin, end), rng.randint(begin, end)]
    # Near the end, where a window still has everything, and rings reach.
    near = max(begin, end - rng.randint(1, 6))
    return rng.choice(
        [(near, -1), (near, end), (min(cut), -1), (-1, max(cut)), (min(cut), max(cut)), (-1, -1), (min(cut), end + 3)]
    )


def bounds(p0: int, p1: int) -> tuple[int, int]:
    return max(p0, 0), END if p1 < 0 else p1


@op
class Decode(Op):
    """Rows of one or several sequences, or of several at once; some that must fail."""

    weight = 12.0

    def propose(self, w: World, rng: random.Random) -> Args | None:
        side = any_side(w, rng)
        free = [seq for seq in range(side.n_seq) if seq not in side.held] or [0]
        rng.shuffle(free)
        kind = "e" if rng.random() < 0.12 and w.config.tiny else "t"
        limit = side.config.n_batch
        most_parts = rng.choice((1, 1, 1, 2, 2, 3, 8))
        streams = w.config.has_window and w.config.has_state and not w.config.unified
        if "parts of streams" in w.avoid and streams:
            limit, most_parts = min(limit, side.config.n_ubatch), 1
        parts = []
        for seq in free[:most_parts]:
            most = rng.choice((1, 1, 2, 4, 8, 12, 20, 40, limit))
            n = min(rng.randint(1, most), limit)
            repeat = kind == "e" and w.config.mrope and rng.random() < 0.5
            gap = rng.choice((1, 5) if kind == "e" and w.config.mrope else (1, -1, 5)) if rng.random() < 0.03 else 0
            if not side.seqs[seq].rows and rng.random() < 0.1:
                gap = rng.choice((3, 10, 40))  # a sequence may begin anywhere
            parts.append({"seqs": [seq], "n": 1 if repeat else n, "gap": -1 if repeat else gap})
            limit -= n
            if limit < 1:
                break
        if (
            len(free) > 1
            and rng.random() < 0.12
            and not ("coupled n-grams" in w.avoid and "qwen4exp" in w.config.model)
        ):
            same = [seq for seq in free if side.seqs[seq].rows == side.seqs[free[0]].rows]
            level = [seq for seq in free if side.seqs[seq].end == side.seqs[free[0]].end]
            if rng.random() < 0.3:
                same = level
            together = same[: rng.randint(2, 4)]
            n = rng.randint(1, min(6, side.config.n_batch))
            parts = [{"seqs": together, "n": n, "gap": 0}]
        return {
            "side": side.which,
            "kind": kind,
            "parts": parts,
            "seed": rng.randrange(2**32),
            "order": rng.choice(("apart", "apart", "mixed", "turns")),
            "outputs": rng.random() < 0.6,
            "stop": int(2 ** rng.uniform(0, 11)) if rng.random() < 0.06 else -1,
        }

    def apply(
        self, w: World, side: int, kind: str, parts: list[Args], seed: int, order: str, outputs: bool, stop: int = -1
    ) -> None:
        if side >= len(w.sides):
            return
        s = w.sides[side]
        rng = random.Random(seed)
        rows: list[tuple[int, tuple[int, ...], int]] = []  # place in its part, sequences, position
        for part in parts:
            seqs = tuple(seq for seq in part["seqs"] if seq < s.n_seq)
            if seqs:
                start = max(0, s.seqs[seqs[0]].end + part["gap"])
                rows += [(i, seqs, start + i) for i in range(part["n"])]
        if order == "turns":
            rows.sort(key=lambda row: row[0])
        elif order == "mixed":
            queues = [[row for row in rows if row[1] == seqs] for seqs in dict.fromkeys(row[1] for row in rows)]
            rows = []
            while queues:
                queue = rng.choice(queues)
                rows.append(queue.pop(0))
                queues = [queue for queue in queues if queue]
        content = [rng.randrange(N_VOCAB) if kind == "t" else rng.randrange(64) for _ in rows]
        if not rows:
            return
        batch = lloyal.Batch()
        for (_, seqs, pos), value in zip(rows, content, strict=True):
            if kind == "t":
                batch.add(value, pos, seqs, outputs)
            elif len(seqs) == 1:
                batch.extend_embd(embedding(value), pos, seqs[0], outputs)
            else:
                return
        tenant = any(seq in s.tenants for _, seqs, _ in rows for seq in seqs)
        if not outputs:
            batch.set_logits(len(rows) - 1, True)
        decode = s.tenancy.decode if tenant else s.ctx.decode
        abort_arm(stop)  # at some node of its graphs
        error = w.attempt("decode", lambda: decode(batch))
        abort_arm(-1)
        if isinstance(error, lloyal.errors.Aborted) and stop >= 0:
            self.stopped(w, s, kind, rows, content)
            return
        if error is not None:
            if isinstance(error, (lloyal.errors.CacheFull, lloyal.errors.InvalidBatch, lloyal.errors.NoLease)):
                return
            if isinstance(error, lloyal.errors.DecodeFailed):
                raise Violation("error", f"decode: {error}") from error
            return
        self.record(w, s, kind, rows, content, outputs)

    def stopped(self, w: World, s: Side, kind: str, rows: list[Any], values: list[int]) -> None:
        """How much is left is for the memory to say; what it is must be right."""
        ends = [s.ctx.memory.seq_pos_max(seq) + 1 for seq in range(s.n_seq)]
        kept = [(row, value) for row, value in zip(rows, values, strict=True) if row[2] < ends[row[1][0]]]
        if kept:
            self.record(w, s, kind, [row for row, _ in kept], [value for _, value in kept], None)
        for seq, end in enumerate(ends):
            if end == 0:
                s.seqs[seq] = EMPTY

    def record(self, w: World, s: Side, kind: str, rows: list[Any], values: list[int], outputs: bool | None) -> None:
        indices: dict[int, list[int]] = {}
        for i, ((_, seqs, pos), value) in enumerate(zip(rows, values, strict=True)):
            row = fresh()
            leader = s.seqs[seqs[0]]
            together = computed(leader, pos, row, (kind, pos, value, s.adapter))
            for seq in seqs:
                own = s.seqs[seq]
                # llama.cpp lets it attend to what one of them holds, whichever its hash table gives first.
                if own.rows != leader.rows and own.recipe != leader.recipe:
                    raise Violation("accepted", f"one token for sequences {seqs}, which hold different content")
                s.seqs[seq] = taken(own, together, pos, pos + 1) if own.rows != leader.rows else together
                indices.setdefault(seq, []).append(i)
        if w.config.has_state:
            states: dict[tuple[int, ...], int] = {}
            for _, seqs, _ in rows:
                for seq in seqs:
                    states.setdefault(seqs, fresh())
                    c = s.seqs[seq]
                    s.seqs[seq] = Content(c.rows, c.recipe, states[seqs])
        for seq, at in indices.items() if outputs is not None else ():  # None: nothing was put out
            if not outputs:
                at = [i for i in at if i == len(rows) - 1]
            c = s.seqs[seq]
            # What a row of several sequences attends to, all of them hold: one look is enough.
            if at and rows[at[-1]][1][0] == seq:
                w.check_logits(np.stack([s.ctx.logits(i, copy=True) for i in at]), c)


@op
class Remove(Op):
    weight = 5.0

    def propose(self, w: World, rng: random.Random) -> Args | None:
        side = any_side(w, rng)
        seq = a_sequence(side, rng)
        p0, p1 = a_range(side.seqs[seq], rng)
        if rng.random() < 0.08:
            seq = -1
        return {"side": side.which, "seq": seq, "p0": p0, "p1": p1}

    def apply(self, w: World, side: int, seq: int, p0: int, p1: int) -> None:
        if side >= len(w.sides) or seq >= w.sides[side].n_seq:
            return
        s = w.sides[side]
        if w.attempt("seq_rm", lambda: s.ctx.memory.seq_rm(seq, p0, p1)) is None:
            for each in range(s.n_seq) if seq == -1 else (seq,):
                remove(w, s, each, *bounds(p0, p1))


def remove(w: World, s: Side, seq: int, p0: int, p1: int) -> None:
    before = s.seqs[seq]
    after = removed(before, p0, p1)
    if seq in s.held and s.ctx.memory.provenance(seq) == s.provenance[seq]:
        return  # the cells of a checkpoint may be left alone
    if before.state is not None and after.rows and after is not before and after.end == before.end:
        raise Violation("accepted", f"rows {p0} to {p1} of sequence {seq} were taken out, its state knows them")
    s.seqs[seq] = after


@op
class Rollback(Op):
    """`can_rollback` against what `seq_rm` then does."""

    weight = 3.0

    def propose(self, w: World, rng: random.Random) -> Args | None:
        side = any_side(w, rng)
        seq = a_sequence(side, rng, 0.95)
        n = rng.choice((0, 1, 1, 2, 3, 4, 6, 12, 30, side.seqs[seq].n))
        return {"side": side.which, "seq": seq, "n": n}

    def apply(self, w: World, side: int, seq: int, n: int) -> None:
        if side >= len(w.sides) or seq >= w.sides[side].n_seq:
            return
        s = w.sides[side]
        content = s.seqs[seq]
        how = s.ctx.memory.can_rollback(seq, n)
        if not content.rows or n == 0 or n > content.end - content.begin:
            return
        error = w.attempt(f"rollback {how}", lambda: s.ctx.memory.seq_rm(seq, content.end - n, -1))
        if error is None:
            after = removed(content, content.end - n, END)
            if how is None and after.rows and after is not content:
                raise Violation("rollback", f"can_rollback({seq}, {n}) is None, seq_rm did it")
            remove(w, s, seq, content.end - n, END)
        elif how is not None and not isinstance(error, lloyal.errors.NoLease):
            raise Violation("rollback", f"can_rollback({seq}, {n}) is {how!r}, seq_rm says {error}")


@op
class Copy(Op):
    weight = 6.0

    def propose(self, w: World, rng: random.Random) -> Args | None:
        side = any_side(w, rng)
        src = a_sequence(side, rng, 0.95)
        empty = [seq for seq, content in enumerate(side.seqs) if not content.rows]
        dst = rng.choice(empty) if empty and rng.random() < 0.4 else rng.randrange(side.n_seq)
        # Back onto what has rows in common with it: forks that were trimmed, decoded on, or lost some in the middle.
        held = set(side.seqs[src].rows)
        kin = [seq for seq, content in enumerate(side.seqs) if seq != src and not held.isdisjoint(content.rows)]
        if kin and rng.random() < 0.4:
            dst = rng.choice(kin)
        p0, p1 = a_range(side.seqs[src], rng) if rng.random() < 0.4 else (-1, -1)
        return {"side": side.which, "src": src, "dst": dst, "p0": p0, "p1": p1}

    def apply(self, w: World, side: int, src: int, dst: int, p0: int, p1: int) -> None:
        if side >= len(w.sides) or max(src, dst) >= w.sides[side].n_seq:
            return
        s = w.sides[side]
        if w.attempt("seq_cp", lambda: s.ctx.memory.seq_cp(src, dst, p0, p1)) is not None or src == dst:
            return
        source, there = s.seqs[src], s.seqs[dst]
        begin, end = bounds(p0, p1)
        if not source.between(begin, end):
            return
        if clash(there, source, begin, end):
            raise Violation("accepted", f"a copy of {src} onto {dst}, which holds other rows in that range")
        after = taken(there, source, begin, end)
        if w.config.has_state:
            # Taking the destination back to the source's state would be right, rows and all.
            have = [pos for b, e, *_ in s.ctx.memory.provenance(dst) for pos in range(b, e)]
            if after.rows != source.rows and have != source.positions():
                raise Violation("accepted", f"a copy of the state of {src} onto {dst}, which keeps other rows")
            after = source
        s.seqs[dst] = after


@op
class Keep(Op):
    weight = 0.4

    def propose(self, w: World, rng: random.Random) -> Args | None:
        side = any_side(w, rng)
        return {"side": side.which, "seq": a_sequence(side, rng)}

    def apply(self, w: World, side: int, seq: int) -> None:
        if side >= len(w.sides) or seq >= w.sides[side].n_seq:
            return
        s = w.sides[side]
        if w.attempt("seq_keep", lambda: s.ctx.memory.seq_keep(seq)) is None:
            for each in range(s.n_seq):
                if each != seq:
                    remove(w, s, each, 0, END)


@op
class Shift(Op):
    """`seq_add` and `seq_div`; often the usual shift that closes a hole."""

    weight = 3.0

    def propose(self, w: World, rng: random.Random) -> Args | None:
        side = any_side(w, rng)
        seq = a_sequence(side, rng, 0.95)
        content = side.seqs[seq]
        p0, p1 = a_range(content, rng)
        positions = sorted(set(content.positions()))
        holes = [(a, b) for a, b in itertools.pairwise(positions) if b > a + 1]
        if rng.random() < 0.15:
            return {"side": side.which, "seq": seq, "p0": p0, "p1": p1, "div": rng.choice((1, 2, 3))}
        delta = rng.choice((1, 2, -1, -2, 5, -5, 20))
        if holes and rng.random() < 0.7:
            a, b = rng.choice(holes)
            p0, p1, delta = b, -1, a + 1 - b
        elif content.begin > 0 and rng.random() < 0.5:
            p0, p1, delta = -1, -1, -content.begin
        return {"side": side.which, "seq": seq, "p0": p0, "p1": p1, "add": delta}

    def apply(
        self, w: World, side: int, seq: int, p0: int, p1: int, add: int | None = None, div: int | None = None
    ) -> None:
        if side >= len(w.sides) or seq >= w.sides[side].n_seq:
            return
        s = w.sides[side]
        memory = s.ctx.memory
        begin, end = bounds(p0, p1)
        if div is not None:
            error = w.attempt("seq_div", lambda: memory.seq_div(seq, p0, p1, div))
            step: tuple[Any, ...] = ("div", p0, p1, div)
        else:
            error = w.attempt("seq_add", lambda: memory.seq_add(seq, p0, p1, add))
            step = ("add", p0, p1, add)
        if error is not None or not s.seqs[seq].between(begin, end) or add == 0 or div == 1:
            return
        after = moved(s.seqs[seq], begin, end, step)
        if after is None:
            raise Violation("accepted", f"{step} moves rows of sequence {seq} onto others")
        s.seqs[seq] = after


@op
class Clear(Op):
    weight = 0.3

    def propose(self, w: World, rng: random.Random) -> Args | None:
        return {"side": any_side(w, rng).which, "data": rng.random() < 0.7}

    def apply(self, w: World, side: int, data: bool) -> None:
        if side < len(w.sides):
            s = w.sides[side]
            if w.attempt("clear", lambda: s.ctx.memory.clear(data)) is None:
                s.seqs = [EMPTY] * s.n_seq


@op
class Adapter(Op):
    weight = 0.7

    def propose(self, w: World, rng: random.Random) -> Args | None:
        if not w.config.adapters:
            return None
        return {"side": any_side(w, rng).which, "which": rng.choice((0, 1, 2))}

    def apply(self, w: World, side: int, which: int) -> None:
        if side < len(w.sides) and w.config.adapters:
            s = w.sides[side]
            chosen = [w.oracle.adapters[which - 1]] if which else []
            if w.attempt("set_adapters_lora", lambda: s.ctx.set_adapters_lora(chosen)) is None:
                s.adapter = which


@op
class Lease(Op):
    weight = 0.5

    def propose(self, w: World, rng: random.Random) -> Args | None:
        return {
            "side": any_side(w, rng).which,
            "what": rng.choice(("acquire", "acquire", "evict", "release", "retain")),
        }

    def apply(self, w: World, side: int, what: str) -> None:
        if side >= len(w.sides):
            return
        s = w.sides[side]
        if what == "acquire":
            got: list[int] = []
            if w.attempt("acquire", lambda: got.append(s.tenancy.acquire())) is None:
                if s.seqs[got[0]].rows or got[0] in s.held or got[0] in s.tenants:
                    raise Violation("accepted", f"a lease of {got[0]}, which is in use")
                s.tenants.add(got[0])
            return
        if not s.tenants:
            return
        seq = min(s.tenants)
        call = {"evict": s.tenancy.evict, "release": s.tenancy.release, "retain": s.tenancy.retain}[what]
        if w.attempt(what, lambda: call(seq)) is None:
            emptied = [seq] if what != "retain" else [other for other in s.tenants if other != seq]
            for each in emptied:
                s.seqs[each] = EMPTY
            if what != "evict":
                s.tenants.difference_update(emptied)


@contextlib.contextmanager
def fault(n: int | None) -> Iterator[None]:
    """The n-th allocation or copy from now on fails."""
    from lloyal.native import checkpoint as native

    if n is not None:
        native.fault_arm(n)
    try:
        yield
    finally:
        native.fault_arm(-1)


def long_start(config: Any, rng: random.Random, avoid: frozenset[str]) -> list[tuple[str, Args]]:
    """Operations that fill a good part of the cache, so that windows wrap and room runs out."""
    found = []
    n_left = rng.randint(config.n_ctx // 2, config.n_ctx)
    while n_left > 0:
        n = min(config.n_batch, n_left)
        if "parts of streams" in avoid and config.has_window:
            n = min(n, config.n_ubatch)
        seq = rng.randrange(min(2, config.n_seq_max))
        part = {"seqs": [seq], "n": n, "gap": 0}
        found.append(
            (
                "decode",
                {
                    "side": 0,
                    "kind": "t",
                    "parts": [part],
                    "seed": rng.randrange(2**32),
                    "order": "apart",
                    "outputs": False,
                },
            )
        )
        n_left -= n
    return found


__all__ = ["OPS", "Args", "Op", "a_sequence", "any_side", "fault", "long_start", "op", "tokens"]
