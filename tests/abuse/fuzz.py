"""Random abuse: ``python -P fuzz.py ROOT MODEL SEED STEPS`` runs operations with good and bad arguments on one context.

Errors of ours (and TypeError, ValueError) are expected; anything else, a dead process above all, is a finding. What the
operations leave behind must not matter: after a clear the context decodes like a fresh one, bit for bit.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parent))
from runner import find_tests

BAD_IDS = (-1, -2, 4, 255, 256, 2**31 - 1, -(2**31), 2**40)
BAD_POSITIONS = (-1, 2**31 - 1, 2**31 - 2, -(2**31), 2**40, 100_000)


class Fuzz:
    def __init__(self, model: str, seed: int, folder: Path) -> None:
        import lloyal
        from tests.models import N_VOCAB, tiny

        self.lloyal = lloyal
        self.n_vocab = N_VOCAB
        self.folder = folder
        self.rng = random.Random(f"{model} {seed}")
        self.model = lloyal.Model(tiny(model))
        self.params = self.parameters()
        self.ctx = lloyal.Context(self.model, **self.params)
        self.blobs: list[tuple[bytes, int]] = []
        self.rows: list[Any] = []
        self.checkpoints: list[Any] = []

    def parameters(self) -> dict[str, Any]:
        choose = self.rng.choice
        params: dict[str, Any] = {
            "n_ctx": choose([64, 256, 512]),
            "n_batch": choose([1, 7, 32, 256]),
            "n_ubatch": choose([1, 8, 32, 64]),
            "n_seq_max": choose([1, 2, 4]),
            "n_threads": 1,
            "kv_unified": choose([True, True, False]),
            "swa_full": choose([False, False, True]),
            "n_rs_seq": choose([0, 0, 4]),
            "embeddings": choose([False, False, False, True]),
            "flash_attn": choose(["auto", "on", "off"]),
        }
        if params["flash_attn"] == "on":
            params |= {"type_k": choose(["f16", "q8_0"]), "type_v": choose(["f16", "q4_0"])}
        if params["n_rs_seq"] and min(params["n_batch"], params["n_ubatch"]) < 8:
            params |= {"n_batch": 32, "n_ubatch": 32}
        return params

    def sequence(self) -> int:
        return self.rng.choice(BAD_IDS) if self.rng.random() < 0.1 else self.rng.randrange(self.params["n_seq_max"])

    def position(self) -> int:
        return self.rng.choice(BAD_POSITIONS) if self.rng.random() < 0.1 else self.rng.randrange(-1, 40)

    def token(self) -> int:
        return (
            self.rng.choice((-1, self.n_vocab, 2**31 - 1))
            if self.rng.random() < 0.01
            else self.rng.randrange(self.n_vocab)
        )

    def go_on(self) -> None:
        """Tokens where some sequences stand."""
        batch = self.lloyal.Batch()
        for seq in self.rng.sample(range(self.params["n_seq_max"]), self.rng.randint(1, self.params["n_seq_max"])):
            start = self.ctx.memory.seq_pos_max(seq) + 1
            batch.extend(
                [self.token() for _ in range(self.rng.randint(1, 12))],
                start,
                seq,
                self.rng.choice([True, False, "last"]),
            )
        self.ctx.decode(batch)

    def any_batch(self) -> None:
        batch = self.lloyal.Batch()
        for _ in range(self.rng.randint(0, 6)):
            seqs = [self.sequence() for _ in range(self.rng.choice([1, 1, 1, 2, 3, 0]))]
            batch.add(self.token(), self.position(), seqs, self.rng.random() < 0.5)
        self.rng.choice([self.ctx.decode, self.ctx.decode, self.ctx.encode])(batch)

    def embd_batch(self) -> None:
        batch = self.lloyal.Batch()
        width = self.model.n_embd + self.rng.choice([0, 0, 0, 1, -1])
        seq = self.sequence()
        start = self.ctx.memory.seq_pos_max(seq) + 1
        batch.extend_embd(
            np.full((self.rng.randint(1, 4), width), self.rng.choice([0.1, 0.1, np.nan]), np.float32), start, seq, True
        )
        self.ctx.decode(batch)

    def memory(self) -> None:
        memory = self.ctx.memory
        call: Callable[[], object] = self.rng.choice(
            [
                lambda: memory.seq_rm(self.sequence(), self.position(), self.position()),
                lambda: memory.seq_rm(
                    self.sequence(), memory.seq_pos_max(self.rng.randrange(self.params["n_seq_max"])), -1
                ),
                lambda: memory.seq_cp(self.sequence(), self.sequence()),
                lambda: memory.seq_cp(self.sequence(), self.sequence(), self.position(), self.position()),
                lambda: memory.seq_keep(self.sequence()),
                lambda: memory.seq_add(
                    self.sequence(), self.position(), self.position(), self.rng.choice([1, -1, 5, 2**31 - 1, -(2**31)])
                ),
                lambda: memory.seq_div(
                    self.sequence(), self.position(), self.position(), self.rng.choice([2, 3, 0, -1, 2**31 - 1])
                ),
                lambda: memory.can_rollback(self.sequence(), self.rng.randint(-1, 9)),
                lambda: memory.provenance(self.sequence()),
            ]
        )
        call()

    def save(self) -> None:
        flags = self.rng.choice([0, 1, 2, 3, 3, 4])
        seq = self.sequence()
        self.blobs.append((self.ctx.state_seq_get_data_ext(seq, flags), flags))
        del self.blobs[:-8]

    def restore(self) -> None:
        if not self.blobs:
            return
        data, flags = self.rng.choice(self.blobs)
        data = bytearray(data)
        if self.rng.random() < 0.7 and data:
            for _ in range(self.rng.choice([1, 1, 2, 8])):
                # mostly in front, where the counts and positions are
                at = self.rng.randrange(min(len(data), self.rng.choice([8, 24, 64, 400, len(data)])))
                data[at] = self.rng.choice([0, 1, 255, 127, data[at] ^ 1 << self.rng.randrange(8)])
            if self.rng.random() < 0.2:
                del data[self.rng.randrange(len(data)) :]
        if self.rng.random() < 0.1:
            flags = self.rng.choice([0, 1, 2, 3])
        self.ctx.state_seq_set_data_ext(data, self.sequence(), flags)

    def whole(self) -> None:
        data = bytearray(self.ctx.state_get_data())
        if self.rng.random() < 0.7:
            for _ in range(self.rng.choice([1, 2, 8])):
                data[self.rng.randrange(min(len(data), self.rng.choice([24, 64, 400, len(data)])))] = (
                    self.rng.randrange(256)
                )
        self.ctx.state_set_data(data)

    def file(self) -> None:
        path = self.folder / "state"
        self.ctx.state_seq_save_file(path, self.sequence(), [1, 2, 3])
        data = bytearray(path.read_bytes())
        data[self.rng.randrange(min(len(data), 60))] = self.rng.randrange(256)
        path.write_bytes(data)
        self.ctx.state_seq_load_file(path, self.sequence())

    def outputs(self) -> None:
        index = self.rng.choice([-1, 0, 1, 5, -5, 2**31 - 1])
        row = self.rng.choice([self.ctx.logits, self.ctx.embeddings])(index)
        self.rows.append(row)
        del self.rows[:-5]
        for row in self.rows:
            try:
                row.argmax()
            except self.lloyal.errors.NoLogits:
                continue

    def sample(self) -> None:
        with self.lloyal.Sampler.chain(self.lloyal.Sampler.top_k(3), self.lloyal.Sampler.dist(1)) as sampler:
            sampler.sample(self.ctx, self.rng.choice([-1, 0, 3, 500]))

    def checkpoint(self) -> None:
        if self.checkpoints and self.rng.random() < 0.6:
            self.rng.choice(self.checkpoints).restore(self.sequence())
            return
        where = self.rng.choice(["device", "host", "cells", "auto"])
        self.checkpoints.append(self.ctx.checkpoint(self.sequence(), where=where, partial=self.rng.random() < 0.3))
        if len(self.checkpoints) > 4:
            self.checkpoints.pop(self.rng.randrange(4)).release()

    def switch(self) -> None:
        self.rng.choice(
            [
                lambda: self.ctx.set_causal_attn(self.rng.random() < 0.8),
                lambda: self.ctx.set_embeddings(self.rng.random() < 0.3),
                self.ctx.abort,
                self.ctx.memory.clear,
            ]
        )()

    def run(self, steps: int) -> dict[str, int]:
        weighted = [
            (self.go_on, 8),
            (self.any_batch, 3),
            (self.embd_batch, 1),
            (self.memory, 6),
            (self.save, 3),
            (self.restore, 5),
            (self.whole, 1),
            (self.file, 1),
            (self.outputs, 2),
            (self.sample, 1),
            (self.checkpoint, 2),
            (self.switch, 1),
        ]
        calls = [call for call, weight in weighted for _ in range(weight)]
        counts: dict[str, int] = {}
        for step in range(steps):
            call = self.rng.choice(calls)
            print(step, call.__name__, flush=True)
            try:
                call()
            except (self.lloyal.errors.LloyalError, TypeError, ValueError) as error:
                counts[type(error).__name__] = counts.get(type(error).__name__, 0) + 1
            else:
                counts["done"] = counts.get("done", 0) + 1
        return counts

    def check(self) -> None:
        for checkpoint in self.checkpoints:
            checkpoint.release()
        self.ctx.set_causal_attn(True)
        self.ctx.set_embeddings(self.params["embeddings"])
        self.ctx.memory.clear()
        with self.lloyal.Context(self.model, **self.params) as fresh:
            for ctx in (self.ctx, fresh):
                for pos in range(6):
                    batch = self.lloyal.Batch()
                    batch.add(pos + 1, pos, 0, True)
                    ctx.decode(batch)
            output = "embeddings" if self.params["embeddings"] else "logits"
            far = float(np.max(np.abs(getattr(self.ctx, output)(copy=True) - getattr(fresh, output)(copy=True))))
        if far != 0.0:
            raise AssertionError(f"after a clear the context is off by {far}")


def main(root: str, model: str, seed: str, steps: str) -> None:
    find_tests(root)
    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(model, int(seed), Path(folder))
        print(fuzz.params, flush=True)
        print(fuzz.run(int(steps)), flush=True)
        fuzz.check()
    print("fine", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
