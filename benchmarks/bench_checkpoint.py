"""What a checkpoint costs, against C++ twins: llama.cpp's ON_DEVICE flag, memcpy, seq_cp.

    python benchmarks/bench_checkpoint.py [--rounds N] [--json FILE]

A llama with thin layers and cache rows as wide as a 1 B model's (64 MiB at 16 k tokens), and the embedded hybrid. One
thread, both sides in turns, steady state against steady state. After restores the bytes of the state are compared.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from states import N_VOCAB, CacheState, in_lockstep, scattered, write_thin_model
from twins import Blocks, Library, Twin, arguments

import lloyal
from lloyal import Checkpoint, Context, Model, StateSeqFlags
from lloyal.bench import Side, Timing, alternate, ratio, timed
from lloyal.native import checkpoint as native

ON_DEVICE = int(StateSeqFlags.ON_DEVICE)
PARTIAL_ON_DEVICE = int(StateSeqFlags.ON_DEVICE | StateSeqFlags.PARTIAL_ONLY)
STEP = 256
N_CHECKPOINTS = 64
RUNS = (1, 16, 128, 1024, 4096)
N_TOGETHER, N_ROWS = 64, 1000  # sequences in lockstep, and rows of each


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--tokens", "-n", type=int, default=N_CHECKPOINTS * STEP, help=f"a multiple of {N_CHECKPOINTS}")
    options = parser.parse_args()
    library = Library(options.twins, thread_time=options.thread_time)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(library, write_thin_model(Path(folder) / "thin.gguf"), options.tokens, options.rounds)
        bench.run()
    if options.json:
        options.json.write_text(json.dumps(bench.figures, indent=2) + "\n")
    return 0


def context(model: Model, n_ctx: int) -> Context:
    return Context(model, n_ctx=n_ctx, n_batch=2048, n_ubatch=512, n_seq_max=8, n_threads=1)


def fresh_tokens(n: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, N_VOCAB, n).tolist()


class Bench:
    def __init__(self, library: Library, path: Path, n_tokens: int, rounds: int) -> None:
        self.library, self.path, self.n_tokens, self.rounds = library, path, n_tokens, rounds
        self.n_ctx = int(n_tokens * 1.1) // 256 * 256
        self.timed = partial(timed, clock=library.clock)
        self.figures: dict[str, Any] = {"tokens": n_tokens, "n_ctx": self.n_ctx}

    def run(self) -> None:
        with Model(self.path) as model, context(model, self.n_ctx) as ctx:
            print(f"{self.n_tokens} tokens, n_ctx {self.n_ctx}, n_seq_max 8, {ctx.memory.kind}")
            many = self.many(ctx, "thin llama")
            self.twin = self.open_twin(ctx.state_get_data())
            self.whole = ctx.state_get_data()
            self.other = CacheState.of_context(self.whole).with_other_rows().to_bytes()
            self.last_of_many(ctx, many)
            self.restores(ctx, many)
            for checkpoint in many:
                checkpoint.release()
            ctx.checkpoints.trim()
            self.saves(ctx)
            self.cells(ctx)
            self.fragmented(ctx)
            self.twin.close()
            self.lockstep(model)
        for name in ("nano-hybrid",):
            with Model(lloyal.models.path(name)) as model, context(model, self.n_ctx) as ctx:
                for checkpoint in self.many(ctx, name):
                    checkpoint.release()
                self.partial(ctx, name)

    def open_twin(self, state: bytes) -> Twin:
        twin = self.library.open(self.path, n_ctx=self.n_ctx, n_batch=2048, n_seq_max=8)
        twin.set_state(state)
        return twin

    def saver(self, ctx: Context) -> Side:
        """Seconds of one save; giving it up is not counted."""

        def side() -> float:
            taken: list[Checkpoint] = []
            seconds = self.timed(lambda: taken.append(ctx.checkpoint(0)))
            taken[0].release()
            return seconds

        return side

    def raw_save(self) -> float:
        return self.twin.save(0, ON_DEVICE)

    # What is measured

    def many(self, ctx: Context, name: str) -> list[Checkpoint]:
        """Checkpoints along one sequence: their bytes against one full state."""
        step = self.n_tokens // N_CHECKPOINTS
        taken = []
        for i in range(N_CHECKPOINTS):
            lloyal.prefill(ctx, fresh_tokens(step, i), logits=False)
            taken.append(ctx.checkpoint(0))
        held = ctx.checkpoints.nbytes
        meta = ctx.checkpoints.meta_nbytes
        with ctx.checkpoint(0, partial=True) as partial:
            rows = partial.nbytes
        full = taken[-1].nbytes
        needed = full + (N_CHECKPOINTS - 1) * rows  # the attention rows once, what is recurrent each time
        self.row(
            f"{name}: bytes of {N_CHECKPOINTS}, of what is unavoidable",
            held / needed,
            1.02,
            state_bytes=full,
            held_bytes=held,
            recurrent_bytes=rows,
        )
        self.row(f"{name}: metadata, bytes per token", meta / self.n_tokens, 24, digits=1, meta_bytes=meta)
        return taken

    def saves(self, ctx: Context) -> None:
        with ctx.checkpoint(0) as checkpoint:
            size = checkpoint.nbytes
        blocks = Blocks(self.library, size)
        copies = self.twin.copies(0)
        sides = {"ours": self.saver(ctx), "raw": self.raw_save, "memcpy": blocks.copy, "copies": copies.run}
        result = alternate(sides, self.rounds, warm_up=2)
        if not blocks.equal():
            raise SystemExit("memcpy copied nothing")
        blocks.close()
        copies.close()
        self.ratio_row("full save / raw flag", result["ours"], result["raw"], 1.03, state_bytes=size)
        self.ratio_row("full save, speed of memcpy", result["memcpy"], result["ours"], 0.75, at_least=True)
        self.ratio_row("  its copy alone, speed of memcpy", result["memcpy"], result["copies"], 0.85, at_least=True)
        self.first_saves(ctx)

    def first_saves(self, ctx: Context) -> None:
        """Each side allocates: our pool is emptied, the raw flag gets a new context, which never frees its buffer."""

        def ours() -> float:
            ctx.checkpoints.trim()
            return self.saver(ctx)()

        def raw() -> float:
            twin = self.open_twin(self.whole)
            try:
                return twin.save(0, ON_DEVICE)
            finally:
                twin.close()

        result = alternate({"ours": ours, "raw": raw}, max(5, self.rounds // 3))
        self.ratio_row("first full save / first of raw flag", result["ours"], result["raw"], 1.03)

    def restores(self, ctx: Context, many: list[Checkpoint]) -> None:
        expected = ctx.state_seq_get_data(0)
        pieces = many[-1]
        with ctx.checkpoint(0, where="host") as parked:
            for checkpoint in many[:-1]:
                checkpoint.release()
            pieces_segments = pieces.n_segments
            ctx.state_set_data(self.whole)  # fresh rows, so that the next checkpoint shares nothing with `pieces`
            with ctx.checkpoint(0) as single:
                self.twin.save(0, ON_DEVICE)

                def over(checkpoint: Checkpoint) -> Side:
                    def side() -> float:
                        ctx.state_set_data(self.other)
                        return self.timed(checkpoint.restore)

                    return side

                def empty() -> float:
                    ctx.memory.seq_rm(0)
                    return self.timed(single.restore)

                def raw_empty() -> float:
                    self.twin.seq_rm(0)
                    return self.twin.restore(0, ON_DEVICE)

                def missing() -> float:
                    ctx.memory.seq_rm(0)
                    single.restore()
                    ctx.memory.seq_rm(0, self.n_tokens - 512)
                    return self.timed(single.restore)

                raw = lambda: self.twin.restore(0, ON_DEVICE)  # noqa: E731
                result = alternate({"ours": over(single), "raw": raw, "pieces": over(pieces)}, self.rounds)
                self.ratio_row("full restore / raw flag", result["ours"], result["raw"], 1.03)
                self.ratio_row(f"  from {pieces_segments} chunks / raw flag", result["pieces"], result["raw"], 1.10)
                self.check(ctx, expected, "full restore")
                result = alternate({"ours": empty, "raw": raw_empty}, self.rounds)
                self.ratio_row("full restore into an empty sequence / raw flag", result["ours"], result["raw"], 1.03)
                self.check(ctx, expected, "restore into an empty sequence")
                result = alternate({"ours": missing, "raw": raw}, self.rounds)
                self.ratio_row("restore, 512 rows missing / full raw restore", result["ours"], result["raw"], 0.15)
                self.check(ctx, expected, "restore of missing rows")
            parked.restore()
            self.check(ctx, expected, "restore from the host")
        if self.twin.seq_state(0)[8:] != expected[8:]:
            raise SystemExit("the twin's state is not ours")

    def last_of_many(self, ctx: Context, many: list[Checkpoint]) -> None:
        """The 64th save, again and again: it is released, so its rows are missing each time."""
        many.pop().release()

        result = alternate({"ours": self.saver(ctx), "raw": self.raw_save}, self.rounds)
        name = f"save {N_CHECKPOINTS} of {N_CHECKPOINTS} / raw flag's full save"
        self.ratio_row(name, result["ours"], result["raw"], 0.35)
        many.append(ctx.checkpoint(0))

    def cells(self, ctx: Context) -> None:
        def take() -> float:
            taken: list[Checkpoint] = []
            seconds = self.timed(lambda: taken.append(ctx.checkpoint(0, where="cells")))
            taken[0].release()
            return seconds

        def bare() -> float:
            seconds = self.twin.seq_cp(0, 7)
            self.twin.seq_rm(7)
            return seconds

        result = alternate({"ours": take, "bare": bare}, self.rounds * 2)
        self.ratio_row("cells / bare seq_cp", result["ours"], result["bare"], 1.05)
        with ctx.checkpoint(0, where="cells") as held:
            self.twin.seq_cp(0, 7)

            def bare_back() -> float:
                return self.twin.seq_rm(0) + self.twin.seq_cp(7, 0)

            result = alternate({"ours": lambda: self.timed(held.restore), "bare": bare_back}, self.rounds * 2)
            self.ratio_row("cells restore / bare seq_rm and seq_cp", result["ours"], result["bare"], 1.05)
            self.twin.seq_rm(7)

    def partial(self, ctx: Context, name: str) -> None:
        """Both sides from Python, by the wall: a thread's clock takes as long as they do."""
        expected = ctx.state_seq_get_data(0)
        blob = b""

        def save() -> float:
            taken: list[Checkpoint] = []
            seconds = timed(lambda: taken.append(ctx.checkpoint(0, partial=True)))
            taken[0].release()
            return seconds

        def raw_save() -> float:
            nonlocal blob
            began = time.perf_counter()
            blob = ctx.state_seq_get_data_ext(0, PARTIAL_ON_DEVICE)
            return time.perf_counter() - began

        result = alternate({"ours": save, "raw": raw_save}, self.rounds * 8, warm_up=8)
        self.ratio_row(f"{name}: partial save / raw flag", result["ours"], result["raw"], 1.0)

        def restore() -> float:
            go_on()
            return timed(checkpoint.restore)

        def raw_restore() -> float:
            go_on()
            return timed(lambda: ctx.state_seq_set_data_ext(blob, 0, PARTIAL_ON_DEVICE))

        def go_on() -> None:
            lloyal.prefill(ctx, [1, 2, 3, 4], logits=False)

        with ctx.checkpoint(0, partial=True) as checkpoint:
            ours = alternate({"ours": restore}, self.rounds * 2, warm_up=2)["ours"]
            self.check(ctx, expected, f"{name}: partial restore")
            # The raw call makes the rows fresh, and our partial checkpoint stale with them: its rounds come last.
            raw = alternate({"raw": raw_restore}, self.rounds * 2, warm_up=2)["raw"]
            self.check(ctx, expected, f"{name}: raw partial restore")
        self.ratio_row(f"{name}: partial restore / raw flag", ours, raw, 1.0)

    def fragmented(self, ctx: Context) -> None:
        """Two sequences in random runs of cells: cost against their number, and after compact()."""
        table = []
        base = CacheState.of_context(self.whole)
        for n_runs in RUNS:
            state = scattered(base, n_runs)
            data = state.to_bytes()
            ctx.state_set_data(data)
            self.twin.set_state(data)
            other = state.with_other_rows().to_bytes()
            expected = CacheState.of_sequence(ctx.state_seq_get_data(0))
            rounds = max(5, self.rounds // 2)
            save = alternate({"ours": self.saver(ctx), "raw": self.raw_save}, rounds)
            with ctx.checkpoint(0) as checkpoint:

                def over(checkpoint: Checkpoint = checkpoint, other: bytes = other) -> float:
                    ctx.state_set_data(other)
                    return self.timed(checkpoint.restore)

                restore = alternate({"ours": over, "raw": lambda: self.twin.restore(0, ON_DEVICE)}, rounds)
                if not CacheState.of_sequence(ctx.state_seq_get_data(0)).same_rows(expected):
                    raise SystemExit(f"the restore of {n_runs} runs gave other bytes")
            compact = self.timed(ctx.compact)
            after = alternate({"ours": self.saver(ctx)}, rounds)["ours"]
            line = {
                "runs": state.n_runs(0),
                "rows": len(state.cells) // 2,
                "save_seconds": save["ours"].median,
                "raw_save_seconds": save["raw"].median,
                "restore_seconds": restore["ours"].median,
                "raw_restore_seconds": restore["raw"].median,
                "compact_seconds": compact,
                "save_after_compact_seconds": after.median,
            }
            table.append(line)
            print(
                f"  {line['runs']:5} runs of {line['rows']} rows: save {ms(save['ours'])}, raw {ms(save['raw'])}; "
                f"restore {ms(restore['ours'])}, raw {ms(restore['raw'])}; "
                f"compact {compact * 1e3:.1f} ms, then save {ms(after)}",
                flush=True,
            )
        self.figures["fragmented"] = table
        ctx.state_set_data(self.whole)

    def lockstep(self, model: Model) -> None:
        """One of many sequences that were decoded together, against the same rows side by side."""
        base = CacheState.of_context(self.whole)
        options: dict[str, Any] = {"n_ctx": N_TOGETHER * N_ROWS, "n_seq_max": N_TOGETHER + 2, "n_threads": 1}
        with Context(model, **options) as together, Context(model, **options) as apart:
            together.state_set_data(in_lockstep(base, N_TOGETHER, N_ROWS).to_bytes())
            apart.state_set_data(in_lockstep(base, N_TOGETHER, N_ROWS, side_by_side=True).to_bytes())
            turn = itertools.cycle(range(N_TOGETHER))  # another each round: nobody's rows are in the processor's cache

            def saver(ctx: Context) -> Side:
                def side() -> float:
                    taken: list[Checkpoint] = []
                    seconds = self.timed(lambda: taken.append(ctx.checkpoint(next(turn))))
                    taken[0].release()
                    return seconds

                return side

            def restorer(ctx: Context) -> Side:
                def side() -> float:
                    seq_id = next(turn)
                    with ctx.checkpoint(seq_id) as checkpoint:
                        ctx.memory.seq_rm(seq_id)
                        return self.timed(checkpoint.restore)

                return side

            name = f"one of {N_TOGETHER} in lockstep, {N_ROWS} rows"
            result = alternate({"together": saver(together), "apart": saver(apart)}, 2 * self.rounds, warm_up=2)
            self.ratio_row(f"{name}: save / side by side", result["together"], result["apart"], 1.5)
            result = alternate({"together": restorer(together), "apart": restorer(apart)}, 2 * self.rounds, warm_up=2)
            self.ratio_row("  restore / side by side", result["together"], result["apart"], 1.5)
            operations: dict[str, int] = {}
            expected = together.state_seq_get_data(5)
            taken: list[Checkpoint] = []
            operations["save"] = counted(lambda: taken.append(together.checkpoint(5)))
            together.memory.seq_rm(5)
            operations["restore"] = counted(taken[0].restore)
            taken[0].release()
            if together.state_seq_get_data(5) != expected:
                raise SystemExit("one in lockstep: the state has other bytes than before")
            for what, n in operations.items():
                self.row(f"  operations of a {what}, a tensor", n / len(base.rows), 4)

    # How it is told

    def check(self, ctx: Context, expected: bytes, what: str) -> None:
        if ctx.state_seq_get_data(0) != expected:
            raise SystemExit(f"{what}: the state has other bytes than before")

    def ratio_row(self, name: str, of: Timing, to: Timing, bar: float, *, at_least: bool = False, **extra: Any) -> None:
        quotient = ratio(of, to)
        extra |= {"seconds": of.as_json(), "to_seconds": to.as_json(), "quartiles": quotient.spread}
        note = f"{ms(of)} / {ms(to)}"
        self.row(name, quotient.median, bar, at_least=at_least, note=note, spread=quotient.spread, **extra)

    def row(
        self,
        name: str,
        value: float,
        bar: float,
        *,
        at_least: bool = False,
        note: str = "",
        digits: int = 3,
        spread: tuple[float, float] | None = None,
        **extra: Any,
    ) -> None:
        met = value >= bar if at_least else value <= bar
        between = f" [{spread[0]:.3f} {spread[1]:.3f}]" if spread else ""
        sign = ">=" if at_least else "<="
        verdict = "met" if met else "MISSED"
        print(f"{name:52} {value:8.{digits}f}{between} {sign} {bar:g}: {verdict}  {note}", flush=True)
        self.figures[name.strip()] = {"value": value, "bar": bar, "at_least": at_least, "met": met, **extra}


def counted(work: Callable[[], object]) -> int:
    """Allocations and copies of one call."""
    armed = 10**9
    native.fault_arm(armed)
    try:
        work()
        return armed - native.fault_remaining()
    finally:
        native.fault_arm(-1)


def ms(timing: Timing) -> str:
    return f"{timing.median * 1e3:.4g} ms"


if __name__ == "__main__":
    sys.exit(main())
