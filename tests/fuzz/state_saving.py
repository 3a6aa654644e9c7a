"""Operations that keep a state and bring it back: raw states, files, checkpoints, compaction, budgets."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np

import lloyal
from lloyal.checkpoint import format as checkpoint_format
from lloyal.errors import StaleCheckpoint
from tests.fuzz.state_model import EMPTY, Content, edited, fresh
from tests.fuzz.state_ops import Args, Op, a_sequence, any_side, fault, op
from tests.fuzz.state_oracle import embedding
from tests.fuzz.state_world import Side, Violation, World

PARTIAL, DEVICE = 1, 2


class Raw:
    """What `state_seq_get_data_ext` gave."""

    def __init__(self, side: Side, seq: int, flags: int, blob: bytes, number: int) -> None:
        self.side, self.seq, self.flags, self.blob, self.number = side, seq, flags, blob, number
        self.content = side.seqs[seq]
        self.runs = side.ctx.memory.provenance(seq)

    def release(self) -> None:
        pass


class Whole:
    """What `state_get_data` gave."""

    def __init__(self, side: Side, blob: bytes) -> None:
        self.side, self.blob = side, blob
        self.contents = list(side.seqs)

    def release(self) -> None:
        pass


class File:
    def __init__(self, side: Side, seq: int | None, path: Any) -> None:
        self.side, self.path = side, path
        self.contents = list(side.seqs)
        self.seq = seq

    def release(self) -> None:
        self.path.unlink(missing_ok=True)


class Kept:
    """A checkpoint."""

    def __init__(self, side: Side, checkpoint: lloyal.Checkpoint, content: Content) -> None:
        self.side, self.checkpoint, self.content = side, checkpoint, content
        self.runs = checkpoint._rows_native()

    def release(self) -> None:
        lease = self.checkpoint.lease if not self.checkpoint.released else None
        self.checkpoint.release()
        if lease is not None and self.side.held.pop(lease, None):
            self.side.seqs[lease] = EMPTY


def names(w: World, kind: type) -> list[str]:
    return [name for name, saved in w.saved.items() if isinstance(saved, kind)]


def leaves_out(w: World, flags: int) -> bool:
    return bool(flags & PARTIAL) and (w.config.has_state or w.config.has_window)


@op
class Get(Op):
    weight = 2.5

    def propose(self, w: World, rng: random.Random) -> Args | None:
        side = any_side(w, rng)
        flags = rng.choice((0, 0, 1, 1, 2, 2, 3))
        return {"side": side.which, "seq": a_sequence(side, rng, 0.9), "flags": flags, "to": w.new_name()}

    def apply(self, w: World, side: int, seq: int, flags: int, to: str) -> None:
        if side >= len(w.sides) or seq >= w.sides[side].n_seq:
            return
        s = w.sides[side]
        got: list[bytes] = []
        if w.attempt(f"get {flags}", lambda: got.append(s.ctx.state_seq_get_data_ext(seq, flags))) is None:
            if flags & DEVICE:
                s.device_saves[seq] = s.device_saves.get(seq, 0) + 1
            old = names(w, Raw)
            if len(old) > 8:
                del w.saved[old[0]]
            w.saved[to] = Raw(s, seq, flags, got[0], s.device_saves.get(seq, 0))


@op
class Set(Op):
    weight = 3.0

    def propose(self, w: World, rng: random.Random) -> Args | None:
        found = names(w, Raw)
        if not found:
            return None
        name = rng.choice(found)
        side = w.saved[name].side if rng.random() < 0.85 else any_side(w, rng)
        dest = rng.choice((w.saved[name].seq, rng.randrange(side.n_seq)))
        return {"name": name, "side": side.which, "dest": dest}

    def apply(self, w: World, name: str, side: int, dest: int) -> None:
        if name not in w.saved or side >= len(w.sides) or dest >= w.sides[side].n_seq:
            return
        s, raw = w.sides[side], w.saved[name]
        there = s.seqs[dest]
        call = lambda: s.ctx.state_seq_set_data_ext(raw.blob, dest, raw.flags)  # noqa: E731
        error = w.attempt(f"set {raw.flags}", call)
        if error is not None:
            w.emptied(s, error, dest)
            last = raw.side is s and s.device_saves.get(raw.seq) == raw.number
            known = not leaves_out(w, raw.flags) or same_ids(s, dest, raw.runs)
            if isinstance(error, StaleCheckpoint) and last and known:
                raise Violation("refused", f"the last device state of sequence {raw.seq}: {error}")
            return
        if raw.flags & DEVICE and (raw.side is not s or s.device_saves.get(raw.seq) != raw.number):
            raise Violation("accepted", f"a device state of sequence {raw.seq} that was saved again since")
        if dest in s.held:
            raise Violation("accepted", f"a state into sequence {dest}, which holds a checkpoint")
        if leaves_out(w, raw.flags) and w.config.kind != "recurrent" and not continues(there, raw.content):
            # Rows of the one under the window or state of the other: whoever asks for that gets it, and nobody else.
            if raw.flags & DEVICE:
                raise Violation("accepted", f"a partial device state onto sequence {dest}, which holds other rows")
            s.ctx.memory.seq_rm(dest)
            s.seqs[dest] = EMPTY
            return
        # What lies on the device is known for what it was.
        s.seqs[dest] = raw.content if raw.flags & DEVICE else read_back(w, raw.content)


def read_back(w: World, content: Content) -> Content:
    """The same rows in other cells: what a checkpoint held is not held any more."""
    if w.config.kind != "recurrent" or content.begin == 0:
        return dataclasses.replace(content)
    # A state in llama.cpp's own form of recurrent memory does not say where it began.
    return Content(tuple((pos, fresh()) for pos in range(content.end)), content.recipe, content.state)


def same_ids(side: Side, seq: int, runs: list[Any]) -> bool:
    """True if the sequence holds those rows by their ids; rows that came in past lloyal have ids of their own."""
    end = runs[-1][1] if runs else 0
    here = [(b, min(e, end), *ids) for b, e, *ids in side.ctx.memory.provenance(seq) if b < end]
    return here == [tuple(run) for run in runs]


def continues(there: Content, content: Content) -> bool:
    """True if the rows up to the end of `content` are its rows."""
    return there.between(0, content.end) == content.rows


@op
class Context_State(Op):
    weight = 0.6

    def propose(self, w: World, rng: random.Random) -> Args | None:
        found = names(w, Whole)
        if found and rng.random() < 0.6:
            return {"side": any_side(w, rng).which, "name": rng.choice(found)}
        return {"side": any_side(w, rng).which, "to": w.new_name()}

    def apply(self, w: World, side: int, name: str | None = None, to: str = "") -> None:
        if side >= len(w.sides) or (name is not None and name not in w.saved):
            return
        s = w.sides[side]
        if name is None:
            got: list[bytes] = []
            if w.attempt("state_get_data", lambda: got.append(s.ctx.state_get_data())) is None:
                w.saved[to] = Whole(s, got[0])
            return
        whole = w.saved[name]
        error = w.attempt("state_set_data", lambda: s.ctx.state_set_data(whole.blob))
        if error is None:
            s.seqs = [read_back(w, content) for content in whole.contents[: s.n_seq]]
            s.seqs += [EMPTY] * (s.n_seq - len(whole.contents))
            if any(content.rows for content in whole.contents[s.n_seq :]):
                raise Violation("accepted", "a state with more sequences than this context has")
        else:
            w.emptied(s, error)


@op
class Sequence_File(Op):
    weight = 0.5

    def propose(self, w: World, rng: random.Random) -> Args | None:
        side = any_side(w, rng)
        found = names(w, File)
        if found and rng.random() < 0.6:
            return {"side": side.which, "name": rng.choice(found), "seq": rng.randrange(side.n_seq)}
        whole = rng.random() < 0.3
        return {"side": side.which, "seq": None if whole else a_sequence(side, rng, 0.9), "to": w.new_name()}

    def apply(self, w: World, side: int, seq: int | None, name: str | None = None, to: str = "") -> None:
        if side >= len(w.sides) or (seq or 0) >= w.sides[side].n_seq or (name is not None and name not in w.saved):
            return
        s = w.sides[side]
        if name is None:
            path = w.folder / f"{to}.state"
            if seq is None:
                error = w.attempt("state_save_file", lambda: s.ctx.state_save_file(path))
            else:
                error = w.attempt("state_seq_save_file", lambda: s.ctx.state_seq_save_file(path, seq))
            if error is None:
                w.saved[to] = File(s, seq, path)
            return
        file = w.saved[name]
        if file.seq is None:
            error = w.attempt("state_load_file", lambda: s.ctx.state_load_file(file.path))
        else:
            error = w.attempt("state_seq_load_file", lambda: s.ctx.state_seq_load_file(file.path, seq))
        if error is not None:
            w.emptied(s, error, seq)
        elif file.seq is None:
            s.seqs = [read_back(w, content) for content in file.contents[: s.n_seq]]
            s.seqs += [EMPTY] * (s.n_seq - len(file.contents))
        else:
            s.seqs[seq] = read_back(w, file.contents[file.seq])


@op
class Checkpoint(Op):
    weight = 4.0

    def propose(self, w: World, rng: random.Random) -> Args | None:
        side = any_side(w, rng)
        return {
            "side": side.which,
            "seq": a_sequence(side, rng, 0.95),
            "where": rng.choice(("device", "device", "device", "host", "cells", "auto")),
            "partial": rng.random() < 0.3,
            "fault": rng.randint(0, 5) if rng.random() < 0.08 else None,
            "to": w.new_name(),
        }

    def apply(self, w: World, side: int, seq: int, where: str, partial: bool, fault: int | None, to: str) -> None:
        if side >= len(w.sides) or seq >= w.sides[side].n_seq:
            return
        s = w.sides[side]
        old = names(w, Kept)
        if len(old) > 8:
            w.saved.pop(old[0]).release()
        made: list[lloyal.Checkpoint] = []
        with inject(fault):
            what = f"checkpoint {where}{' partial' if partial else ''}{' fault' if fault is not None else ''}"
            error = w.attempt(what, lambda: made.append(s.ctx.checkpoint(seq, where=where, partial=partial)))
        if error is not None:
            return
        kept = Kept(s, made[0], s.seqs[seq])
        w.saved[to] = kept
        if made[0].lease is not None:
            if s.seqs[made[0].lease].rows:
                raise Violation("accepted", f"cells leased in sequence {made[0].lease}, which is in use")
            s.held[made[0].lease] = to
            s.seqs[made[0].lease] = kept.content
        elif not partial and made[0].n_tokens != kept.content.n:
            raise Violation("checkpoint", f"{made[0].n_tokens} rows, the sequence holds {kept.content.n}")


inject = fault


@op
class Restore(Op):
    weight = 6.0

    def propose(self, w: World, rng: random.Random) -> Args | None:
        found = names(w, Kept)
        if not found:
            return None
        name = rng.choice(found)
        kept = w.saved[name]
        side = kept.side if rng.random() < 0.85 else any_side(w, rng)
        dest = rng.choice((kept.checkpoint.seq_id, rng.randrange(side.n_seq)))
        return {
            "name": name,
            "side": side.which,
            "dest": dest,
            "fault": rng.randint(0, 5) if rng.random() < 0.08 else None,
        }

    def apply(self, w: World, name: str, side: int, dest: int, fault: int | None) -> None:
        if name not in w.saved or side >= len(w.sides) or dest >= w.sides[side].n_seq:
            return
        s, kept = w.sides[side], w.saved[name]
        checkpoint: lloyal.Checkpoint = kept.checkpoint
        partial, where = checkpoint.partial, checkpoint.where
        there = s.seqs[dest]
        other = s is not kept.side
        with inject(fault):
            what = f"restore {where}{' partial' if partial else ''}{' elsewhere' if other else ''}"
            what += " fault" if fault is not None else ""
            error = w.attempt(what, lambda: checkpoint.restore(dest, ctx=s.ctx if other else None))
        if error is None:
            left_out = partial and where != "cells" and leaves_out(w, PARTIAL) and w.config.kind != "recurrent"
            if left_out and w.config.readable and not continues(there, kept.content):
                raise Violation("accepted", f"a partial checkpoint onto sequence {dest}, which holds other rows")
            if dest in s.held:
                raise Violation("accepted", f"a restore into sequence {dest}, which holds a checkpoint")
            s.seqs[dest] = kept.content
            return
        w.emptied(s, error, dest)
        if isinstance(error, StaleCheckpoint):
            # Memory without a part to leave out still asks for the rows of a partial one.
            if where != "cells" and not checkpoint.evicted and (not partial or same_ids(s, dest, kept.runs)):
                raise Violation("refused", f"{checkpoint!r}: {error}")
            if where == "cells" and not other and kept.content is s.seqs[checkpoint.lease] and not partial:
                raise Violation("refused", f"{checkpoint!r}, whose cells are there: {error}")


@op
class Convert(Op):
    """`from_bytes(to_bytes())` into any context, and `to_host`."""

    weight = 2.0

    def propose(self, w: World, rng: random.Random) -> Args | None:
        found = names(w, Kept)
        if not found:
            return None
        how = rng.choice(("bytes", "host"))
        return {"name": rng.choice(found), "how": how, "side": any_side(w, rng).which, "to": w.new_name()}

    def apply(self, w: World, name: str, how: str, side: int, to: str) -> None:
        if name not in w.saved or side >= len(w.sides):
            return
        s, kept = w.sides[side], w.saved[name]
        if checkpoint_is_stale(kept):
            return
        made: list[lloyal.Checkpoint] = []
        if how == "host":
            error = w.attempt("to_host", lambda: made.append(kept.checkpoint.to_host()))
            s = kept.side
        else:
            data: list[bytes] = []
            error = w.attempt("to_bytes", lambda: data.append(kept.checkpoint.to_bytes()))
            if error is None:
                error = w.attempt("from_bytes", lambda: made.append(lloyal.Checkpoint.from_bytes(s.ctx, data[0])))
        if error is None:
            w.saved[to] = Kept(s, made[0], kept.content)


@op
class Edit(Op):
    """The bytes of a checkpoint changed, or said to be rows of another sequence, with the checksum made again."""

    weight = 1.0

    def propose(self, w: World, rng: random.Random) -> Args | None:
        found = [name for name in names(w, Kept) if not w.saved[name].checkpoint.partial]
        if not found:
            return None
        side = any_side(w, rng)
        claim = a_sequence(side, rng) if rng.random() < 0.5 else None
        return {"name": rng.choice(found), "side": side.which, "claim": claim, "to": w.new_name()}

    def apply(self, w: World, name: str, side: int, claim: int | None, to: str) -> None:
        if name not in w.saved or side >= len(w.sides) or (claim or 0) >= w.sides[side].n_seq:
            return
        s, kept = w.sides[side], w.saved[name]
        if checkpoint_is_stale(kept) or not kept.content.rows:
            return
        data: list[bytes] = []
        if w.attempt("to_bytes", lambda: data.append(kept.checkpoint.to_bytes())) is not None:
            return
        header, payload = checkpoint_format.decode(memoryview(data[0]))
        content = kept.content
        if claim is None:
            changed = np.frombuffer(bytes(payload), np.uint8).copy()
            changed[::2] ^= 1  # the last bit of every value, whatever its type
            payload = changed.tobytes()
            content = edited(content)
        else:
            positions = set(content.positions())
            if not positions <= set(s.seqs[claim].positions()):
                return
            runs = [(b, e, *ids) for b, e, *ids in s.ctx.memory.provenance(claim)]
            header["rows"] = [
                (max(b, low), min(e, high), epoch, first + max(b, low) - b)
                for low, high in spans(sorted(positions))
                for b, e, epoch, first in runs
                if max(b, low) < min(e, high)
            ]
        made: list[lloyal.Checkpoint] = []
        again = checkpoint_format.encode(header, payload)
        what = "from_bytes edited" if claim is None else "from_bytes claimed"
        if w.attempt(what, lambda: made.append(lloyal.Checkpoint.from_bytes(s.ctx, again))) is None:
            w.saved[to] = Kept(s, made[0], content)


def spans(positions: list[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for pos in positions:
        if found and found[-1][1] == pos:
            found[-1] = (found[-1][0], pos + 1)
        else:
            found.append((pos, pos + 1))
    return found


def checkpoint_is_stale(kept: Kept) -> bool:
    """Its cells were taken away: what it gives then is its own affair."""
    lease = kept.checkpoint.lease
    return kept.checkpoint.evicted or (lease is not None and kept.side.seqs[lease] is not kept.content)


@op
class Release(Op):
    weight = 1.5

    def propose(self, w: World, rng: random.Random) -> Args | None:
        return {"name": rng.choice(sorted(w.saved))} if w.saved else None

    def apply(self, w: World, name: str) -> None:
        if name in w.saved:
            w.saved.pop(name).release()


@op
class Compact(Op):
    weight = 0.7

    def propose(self, w: World, rng: random.Random) -> Args | None:
        return {"side": any_side(w, rng).which, "fault": rng.randint(0, 12) if rng.random() < 0.15 else None}

    def apply(self, w: World, side: int, fault: int | None) -> None:
        if side >= len(w.sides):
            return
        s = w.sides[side]
        with inject(fault):
            error = w.attempt("compact fault" if fault is not None else "compact", s.ctx.compact)
        if error is not None:
            lost = [note for note in getattr(error, "__notes__", ()) if "is in ctx.checkpoints only" in note]
            if lost and fault is None:
                raise Violation("compact", f"{error}: {lost}")
            for note in lost:
                s.seqs[int(note.split()[1])] = EMPTY


@op
class Budget(Op):
    weight = 0.5

    def propose(self, w: World, rng: random.Random) -> Args | None:
        what = rng.choice(("trim", "budget", "none", "none", "pin"))
        return {"side": any_side(w, rng).which, "what": what, "share": rng.random() * 1.5, "evict": rng.random() < 0.6}

    def apply(self, w: World, side: int, what: str, share: float, evict: bool) -> None:
        if side >= len(w.sides):
            return
        checkpoints = w.sides[side].ctx.checkpoints
        if what == "trim":
            w.attempt("trim", checkpoints.trim)
        elif what == "pin":
            for checkpoint in checkpoints:
                checkpoint.pinned = evict
        else:
            checkpoints.evict = evict
            checkpoints.budget = None if what == "none" else int(checkpoints.nbytes * share)


@op
class Child(Op):
    """A context of the prediction head on top of this one: what is done with it leaves its parent alone."""

    weight = 1.0

    def propose(self, w: World, rng: random.Random) -> Args | None:
        if w.config.model != "qwen35-mtp":
            return None
        side = any_side(w, rng)
        return {"side": side.which, "seq": a_sequence(side, rng), "tokens": [rng.randrange(64) for _ in range(4)]}

    def apply(self, w: World, side: int, seq: int, tokens: list[int]) -> None:
        if side >= len(w.sides) or seq >= w.sides[side].n_seq:
            return
        s = w.sides[side]
        with lloyal.Context(
            w.model, type="mtp", parent=s.ctx, n_ctx=256, n_batch=64, n_seq_max=s.n_seq, n_threads=1
        ) as child:
            batch = lloyal.llama.BatchExt(child)
            for pos, number in enumerate(tokens):
                at = batch.add_token(seq, number)
                batch.set_pos(at, pos)
                batch.set_embd_token(at, embedding(number)[0])

            def call() -> None:
                child.process("decode", batch)
                with child.checkpoint(seq) as checkpoint:
                    child.memory.seq_rm(seq)
                    checkpoint.restore()
                child.memory.clear()

            w.attempt("child", call)
