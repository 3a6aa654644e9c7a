"""Damage the bytes of checkpoints: ``python -P fuzz_bytes.py ROOT MODEL SEED N`` prints what happened as JSON.

First N blobs with the checksum they had: each must be refused. Then N with the checksum made right again, so that the
parser behind it is reached: each is refused with `StateMismatch`, or what is accepted has a valid structure, can be
restored, decoded on, saved again and written again, and leaves the context able to compute what it computed before.
The address space may grow by `ROOM` bytes only: an allocation that damaged lengths ask for fails the test.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import resource
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

ROOM = 64 << 20
N_SEQ = 6
NUMBERS = (-1, 0, 1, 2, 7, 12, 15, 16, 255, 256, 2**31 - 2, 2**31 - 1, 2**31, 2**32, 2**63, 2**64 - 1, 2**64, 10**30)
VALUES: tuple[Any, ...] = (
    *NUMBERS,
    None,
    True,
    False,
    1.5,
    float("nan"),
    1e308,
    "",
    "x" * 100,
    "\x00",
    [],
    [[]],
    {},
    [1, 2],
)
NOT_JSON = (b"[" * 5000, b"{", b'"', b"1" * 6000, b"-", b"1e999", b"\xff\xfe", b"NaN", b"Infinity", b"\x00")


class Fuzz:
    def __init__(self, name: str, seed: int) -> None:
        import lloyal
        from lloyal.checkpoint import format as checkpoint_format
        from tests.models import tiny

        self.lloyal = lloyal
        self.module = checkpoint_format
        self.rng = random.Random(f"{name} {seed}")
        self.model = lloyal.Model(tiny(name))
        self.ctx = self.context(self.model, flash_attn=self.rng.random() < 0.5)
        self.blobs = self.samples(self.ctx)
        # of other models, and of other layouts of this one
        self.foreign: list[bytes] = []
        for other in {"llama", "gemma3", "mamba2", "lfm2"} - {name}:
            with lloyal.Model(tiny(other)) as model, self.context(model) as ctx:
                self.foreign += self.samples(ctx)
        with lloyal.Model(tiny(name, seed=1)) as model, self.context(model) as ctx:
            self.foreign += self.samples(ctx)
        with self.context(self.model, kv_unified=False) as ctx:
            self.foreign += self.samples(ctx)
        if name != "mamba2":
            with self.context(self.model, type_k="q8_0") as ctx:
                self.foreign += self.samples(ctx)
        self.expected = self.decodes()
        self.outcomes: Counter[str] = Counter()
        self.going_on = True

    def context(self, model: Any, **parameters: Any) -> Any:
        return self.lloyal.Context(
            model, **({"n_ctx": 256, "n_batch": 64, "n_ubatch": 32, "n_seq_max": N_SEQ, "n_threads": 1} | parameters)
        )

    def feed(self, ctx: Any, seq_id: int, pos: int, tokens: list[int]) -> None:
        batch = self.lloyal.Batch()
        batch.extend(tokens, pos, seq_id, "last")
        ctx.decode(batch)

    def samples(self, ctx: Any) -> list[bytes]:
        """Full and partial ones; of no rows, of one run of rows, and of two."""
        found = []
        with ctx.checkpoint(3) as empty:
            found.append(empty.to_bytes())
        self.feed(ctx, 0, 0, [5, 6, 7, 8, 9, 10, 11])
        for partial in (False, True):
            with ctx.checkpoint(partial=partial) as checkpoint:
                checkpoint.tokens = [5, 6, 7, 8, 9, 10, 11]
                found.append(checkpoint.to_bytes())
        self.feed(ctx, 1, 0, [9] * 20)
        self.feed(ctx, 0, 7, [4] * 20)
        for seq_id in (0, 1):
            with ctx.checkpoint(seq_id) as checkpoint:
                found.append(checkpoint.to_bytes())
        return found

    def decodes(self) -> bytes:
        """What the context computes from nothing."""
        self.ctx.memory.clear()
        self.feed(self.ctx, 1, 0, [3, 1, 4, 1, 5])
        self.feed(self.ctx, 2, 0, [2, 7, 1])
        return self.ctx.logits(copy=True).tobytes()

    # Damage that keeps the checksum.

    def damaged(self) -> bytes:
        rng = self.rng
        data = bytearray(rng.choice(self.blobs))
        what = rng.randrange(6)
        if what == 0:
            for _ in range(rng.choice((1, 1, 1, 2, 8))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif what == 1:
            del data[rng.randrange(len(data)) :]
        elif what == 2:
            # an end of another one
            other = rng.choice(self.blobs + self.foreign)
            data = data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]
        elif what == 3:
            start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
            data[start:end] = rng.randbytes(rng.choice((0, 1, end - start, 300)))
        elif what == 4:
            return rng.choice(self.foreign)
        else:
            other = rng.choice(self.blobs + self.foreign)
            n = min(len(data), len(other), rng.choice((20, 52, 60, 400)))
            data[:n] = other[:n]
        return bytes(data)

    def run_damaged(self, n: int) -> int:
        done = 0
        while done < n:
            data = self.damaged()
            if data in self.blobs:
                continue
            done += 1
            try:
                self.lloyal.Checkpoint.from_bytes(self.ctx, data)
            except self.lloyal.errors.StateMismatch:
                continue
            raise AssertionError(f"accepted damaged bytes: {data!r}")
        return done

    # Damage with a checksum that is right.

    def taken_apart(self, data: bytes) -> tuple[Any, bytes]:
        size = self.module.PREFIX.size
        n_header = self.module.PREFIX.unpack_from(data)[2]
        start = size + self.module.DIGEST_SIZE
        return json.loads(data[start : start + n_header]), data[start + n_header : -self.module.SIGNATURE_SIZE]

    def sealed(self, header: bytes, payload: bytes) -> bytes:
        rng = self.rng
        lengths = [len(header), len(payload)]
        version = self.module.VERSION
        if rng.random() < 0.03:
            lengths[rng.randrange(2)] = rng.choice((0, 1, 2**31, 2**32 - 1, max(0, lengths[0] - 1), lengths[0] + 1))
        if rng.random() < 0.1:
            version = 1
        if rng.random() < 0.01:
            version = rng.choice((0, 3, 2**32 - 1))
        signature = bytes(self.module.SIGNATURE_SIZE) if version > 1 else b""
        prefix = self.module.PREFIX.pack(self.module.MAGIC, version, lengths[0] & 0xFFFFFFFF, lengths[1])
        digest = hashlib.blake2b(prefix, digest_size=self.module.DIGEST_SIZE)
        digest.update(header)
        digest.update(payload)
        digest.update(signature)
        return prefix + digest.digest() + header + payload + signature

    def forged(self) -> bytes:
        rng = self.rng
        header, payload = self.taken_apart(rng.choice(self.blobs if rng.random() < 0.9 else self.foreign))
        for _ in range(rng.choice((1, 1, 2, 3))):
            what = rng.randrange(8)
            if what == 0 and payload:
                damaged = bytearray(payload)
                for _ in range(rng.choice((1, 10, 1000))):
                    damaged[rng.randrange(len(damaged))] = rng.choice((0, 0xFF, 0x7C, 0x7F, rng.randrange(256)))
                payload = bytes(damaged)
            elif what == 1:
                payload = rng.choice((payload[: rng.randrange(len(payload) + 1)], payload + b"\x00", payload * 2, b""))
            elif what == 2:
                header[rng.choice([*header, "more"])] = copy.deepcopy(rng.choice(VALUES))
            elif what == 3:
                header.pop(rng.choice([*header, "more"]), None)
            elif what == 4 and isinstance(header.get("rows"), list):
                self.change_rows(header["rows"])
            elif what == 5:
                inner = header.get(rng.choice(("fingerprint", "layout")))
                if isinstance(inner, dict) and inner:
                    inner[rng.choice(list(inner))] = copy.deepcopy(rng.choice(VALUES))
            elif what == 6:
                header["partial"] = rng.choice((True, False))
            elif what == 7:
                header["window_begin"] = rng.choice((0, 1, 11, 12, 27, 28, *NUMBERS))
                header["seq_id"] = rng.choice((0, 1, 2, 3, 4, 200, 255))
        encoded = json.dumps(header, separators=(",", ":")).encode()
        if rng.random() < 0.1:
            damaged = bytearray(encoded)
            where = rng.randrange(len(damaged))
            damaged[where : where + rng.choice((0, 1, 5))] = rng.choice((*NOT_JSON, rng.randbytes(4)))
            encoded = bytes(damaged)
        return self.sealed(encoded, payload)

    def change_rows(self, rows: list[Any]) -> None:
        rng = self.rng
        what = rng.randrange(7)
        runs = [run for run in rows if isinstance(run, list) and len(run) == 4 and all(type(v) is int for v in run)]
        if what == 0 and runs:
            rng.choice(runs)[rng.randrange(4)] = rng.choice(VALUES)
        elif what == 1 and runs:
            # the same rows at other positions
            by = rng.choice((1, 5, 100, 2**31 - 40, 2**31 - 28))
            for run in runs:
                run[0] += by
                run[1] += by
        elif what == 2 and runs:
            # split, with a hole or without
            run = rng.choice(runs)
            middle = (run[0] + run[1]) // 2
            gap = rng.choice((0, 0, 1, 1000))
            first = rng.choice((run[2:], [run[2], run[3] + middle - run[0]], [rng.getrandbits(64), 0]))
            rows.append([middle + gap, run[1] + gap, *first])
            run[1] = middle
        elif what == 3:
            rows.append(rng.choice(([0, 5, 0, 0], [27, 30, 1, 1], [2**31 - 2, 2**31 - 1, 2**64 - 1, 2**64 - 2**31])))
        elif what == 4 and rows:
            rows.pop(rng.randrange(len(rows)))
        elif what == 5:
            rng.shuffle(rows)
        elif runs:
            run = rng.choice(runs)
            run[2:] = rng.choice(([0, 0], [2**64 - 1, 2**64 - 2**31], [run[2], 2**32 - 3], [run[2] ^ 1, run[3]]))

    def run_forged(self, n: int) -> None:
        for i in range(n):
            data = self.forged()
            try:
                checkpoint = self.lloyal.Checkpoint.from_bytes(self.ctx, data)
            except self.lloyal.errors.StateMismatch:
                self.outcomes["refused"] += 1
            else:
                self.use(checkpoint, len(data))
            if i % 100 == 0:
                if not self.going_on:
                    # Free cells are masked by arithmetic: NaN in them would shine through. (Made-up numbers that were
                    # decoded on may overflow, as they may in any model: then the memory must be cleared first.)
                    for seq_id in range(N_SEQ):
                        self.ctx.memory.seq_rm(seq_id)
                    self.feed(self.ctx, 0, 0, [3, 1, 4, 1, 5])
                    assert np.isfinite(self.ctx.logits()).all(), "rows of a sequence that is gone spoil others"
                self.going_on = not self.going_on
                assert self.decodes() == self.expected, "the context computes something else than before"
                assert len(self.ctx.checkpoints) == 0
                assert self.ctx.checkpoints.nbytes == 0

    def use(self, checkpoint: Any, size: int) -> None:
        errors, ctx = self.lloyal.errors, self.ctx
        rows = checkpoint._rows_native()
        assert checkpoint.n_tokens == sum(end - begin for begin, end, _, _ in rows)
        ends = [end for _, end, _, _ in rows]
        assert all(last - 1 <= begin < end for last, (begin, end, _, _) in zip([1, *ends], rows, strict=False))
        assert (checkpoint.pos_min, checkpoint.pos_max) == ((rows[0][0], rows[-1][1] - 1) if rows else (-1, -1))
        assert checkpoint.nbytes <= size
        again = self.lloyal.Checkpoint.from_bytes(ctx, checkpoint.to_bytes())
        assert again._rows_native() == rows
        again.release()
        dest = self.rng.choice((None, 0, 1, 2, 3))
        before = ctx.memory.provenance(0 if dest is None else dest)
        try:
            checkpoint.restore(dest)
        except (errors.CacheFull, errors.StaleCheckpoint, errors.InvalidArgument) as error:
            self.outcomes[f"accepted, restore raised {type(error).__name__}"] += 1
            assert ctx.memory.provenance(0 if dest is None else dest) == before
        else:
            self.outcomes["accepted and restored"] += 1
            seq_id = checkpoint.seq_id if dest is None else dest
            assert [tuple(run) for run in ctx.memory.provenance(seq_id)] == [tuple(run) for run in rows]
            try:
                if self.going_on:
                    self.feed(ctx, seq_id, checkpoint.pos_max + 1, [1, 2])
            except (errors.InvalidArgument, errors.InvalidBatch, errors.CacheFull) as error:
                self.outcomes[f"restored, decode raised {type(error).__name__}"] += 1
            with ctx.checkpoint(seq_id, where=self.rng.choice(("device", "host", "cells"))) as saved:
                saved.restore(seq_id)
            if self.rng.random() < 0.5:
                ctx.memory.seq_rm(seq_id)
        checkpoint.release()


def main() -> None:
    root, name, seed, n = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    sys.path.append(root)
    fuzz = Fuzz(name, seed)
    fuzz.run_damaged(50)
    fuzz.run_forged(50)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        limit = pages * resource.getpagesize() + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    fuzz.outcomes.clear()
    print(json.dumps({"damaged": fuzz.run_damaged(n)}))
    fuzz.run_forged(n)
    print(json.dumps({"forged": dict(fuzz.outcomes)}))


if __name__ == "__main__":
    main()
