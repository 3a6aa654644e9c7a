"""Rows here and there in caches of every layout, on the CPU and a device that cannot be read: saved and brought back.

    python -P tests/fuzz/rows.py --seconds 600 --seed 7

The rows are random bytes. What llama.cpp writes of the sequences says whether one is wrong; the exit code is 1 if so.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from serve import find_tests

find_tests(Path(__file__).parents[2])

import lloyal  # noqa: E402
from tests.gpu.cells import LAYOUTS, N_CELLS, Cells, write_model  # noqa: E402
from tests.rpc import server  # noqa: E402


def history(cells: Cells, rng: random.Random, n_steps: int) -> str | None:
    """Checkpoints of random rows, restored into random holes; what is wrong, if anything is."""
    ctx = cells.ctx
    for step in range(n_steps):
        ctx.memory.clear()
        n_rows = rng.randint(2, 60)
        others = cells.put(1, rng.randint(n_rows * 3, N_CELLS - 8))
        cells.make_holes(1, n_rows)
        expected = cells.put(0, n_rows)
        where = rng.choice(["device", "host"])
        with ctx.checkpoint(0, where=where) as checkpoint:
            kept = rng.choice([0, rng.randint(1, n_rows)])
            ctx.memory.seq_rm(0, kept)
            cells.make_holes(1, rng.randint(n_rows, 2 * n_rows))
            others = cells.state(1)
            source = checkpoint.to_host() if rng.random() < 0.3 else checkpoint
            source.restore(rng.choice([0, 2]) if kept == 0 else 0)
            seq_id = 0 if ctx.memory.seq_pos_max(0) == n_rows - 1 else 2
            if cells.state(seq_id) != expected:
                return f"step {step}: {n_rows} rows from {where}, {kept} kept: other bytes than before"
            if cells.state(1) != others:
                return f"step {step}: {n_rows} rows from {where}, {kept} kept: another sequence changed"
            if source is not checkpoint:
                source.release()
        if ctx.checkpoints.nbytes:
            return f"step {step}: {ctx.checkpoints.nbytes} bytes are left"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", default="0")
    arguments = parser.parse_args()
    began = time.monotonic()
    n = 0
    with server() as endpoint, tempfile.TemporaryDirectory() as folder:
        rpc = lloyal.llama.rpc_device(endpoint)
        paths = {width: write_model(Path(folder) / f"{width}.gguf", width) for width in (1, 2)}
        while time.monotonic() - began < arguments.seconds:
            rng = random.Random(f"{arguments.seed} {n}")
            layout = rng.choice(LAYOUTS)
            place, devices = rng.choice([("cpu", []), ("rpc", rpc)])
            options: dict[str, Any] = {"type_k": layout.type_k, "type_v": layout.type_v, "flash_attn": layout.flash}
            with lloyal.Model(paths[layout.n_kv_heads], devices=devices) as model:
                with lloyal.Context(model, n_ctx=N_CELLS, n_seq_max=5, n_ubatch=32, n_threads=1, **options) as ctx:
                    wrong = history(Cells(ctx, rng.randrange(1 << 30)), rng, 6 if place == "cpu" else 2)
            n += 1
            if wrong:
                print(f"found after {time.monotonic() - began:.1f} s")
                print(f"--seed {arguments.seed!r}, history {n - 1}: {layout} on {place}: {wrong}")
                return 1
    print(f"{n} histories in {time.monotonic() - began:.0f} s, nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
