"""What a call costs: the token loop against a C++ twin, taking logits, filling a batch.

    python benchmarks/bench_call.py [--model FILE] [--llama-bench PROGRAM]

Without --model it generates llama.cpp's own 4.5 MiB test model (tools/archs). The loop is: pick the largest logit,
decode it, one thread. Both sides run in turns and must give the same tokens.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from twins import ROOT, Library, arguments

import lloyal
from lloyal.bench import alternate, ratio, timed

PROMPT = list(range(1, 17))
N_CTX = 512
BAR_LOOP, BAR_VIEW, BAR_FILL = 0.97, 2e-6, 1e-4


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--llama-bench", type=Path, help="upstream's program, to show its tg beside the loop")
    parser.add_argument("--rounds", type=int, default=201)
    parser.add_argument("--tokens", "-n", type=int, default=64, help="of one round")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.model or generated_model(Path(folder))
        figures = measure(path, Library(options.twins, thread_time=options.thread_time), options.rounds, options.tokens)
        if options.llama_bench:
            figures["llama_bench_tokens_per_second"] = llama_bench(options.llama_bench, path)
    report(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def generated_model(folder: Path) -> Path:
    command = [sys.executable, "-P", str(ROOT / "tools" / "archs"), str(folder), "--arch", "^llama$", "--as-generated"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / "llama-dense.gguf"


def measure(path: Path, library: Library, rounds: int, n: int) -> dict[str, object]:
    with (
        lloyal.Model(path, use_extra_bufts=False) as model,
        lloyal.Context(model, n_ctx=N_CTX, n_batch=512, n_ubatch=512, n_seq_max=1, n_threads=1) as ctx,
    ):
        twin = library.borrow(ctx)  # in the same pages

        def python() -> float:
            return python_loop(ctx, n, library.clock)[0]

        def plain() -> float:
            ctx.memory.clear()
            return twin.generate(PROMPT, n)[0]

        loop = alternate({"python": python, "c++": plain}, rounds)
        tokens = python_loop(ctx, n, library.clock)[1]
        ctx.memory.clear()
        expected = twin.generate(PROMPT, n)[1]
        if tokens != expected:
            raise SystemExit(f"the two sides disagree: {tokens} and {expected}")
        view = alternate({"view": lambda: take_views(ctx)}, 41)["view"]
        fill = alternate({"int32": lambda: fill_batch(np.int32), "int64": lambda: fill_batch(np.int64)}, 41)
    twin.close()
    return {
        "model_bytes": path.stat().st_size,
        "tokens": n,
        "same_tokens": True,
        "loop": {name: timing.as_json() for name, timing in loop.items()},
        "speed_of_python": ratio(loop["c++"], loop["python"]).as_json(),
        "logits_view_seconds": view.as_json(),
        "fill_2000_seconds": {name: timing.as_json() for name, timing in fill.items()},
    }


def python_loop(ctx: lloyal.Context, n: int, clock: Callable[[], float]) -> tuple[float, list[int]]:
    """As `twin_generate`: seconds of the loop, and its tokens."""
    ctx.memory.clear()
    batch = lloyal.Batch()
    batch.extend(PROMPT, 0, 0, "last")
    ctx.decode(batch)
    tokens: list[int] = []

    def loop() -> None:
        for pos in range(len(PROMPT), len(PROMPT) + n):
            token = ctx.logits().argmax()
            tokens.append(token)
            batch.clear()
            batch.add(token, pos, 0, True)
            ctx.decode(batch)
        ctx.synchronize()

    return timed(loop, clock), tokens


def take_views(ctx: lloyal.Context, n: int = 1000) -> float:
    """Seconds of taking one view of the logits."""

    def loop() -> None:
        for _ in range(n):
            ctx.logits()

    return timed(loop) / n


def fill_batch(kind: type[np.integer]) -> float:
    tokens = np.arange(2000, dtype=kind)
    batch = lloyal.Batch()
    batch.extend(tokens, 0, 0)
    batch.clear()
    return timed(lambda: batch.extend(tokens, 0, 0))


def llama_bench(program: Path, path: Path) -> float:
    command = [program, "-m", path, "-t", "1", "-p", "0", "-n", "32", "-r", "20", "-o", "json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)[0]["avg_ts"])


def report(figures: dict[str, object]) -> None:
    def seconds(timing: dict[str, object]) -> float:
        return float(timing["median"])  # type: ignore[arg-type]

    loop = figures["loop"]
    n = figures["tokens"]
    for name in ("python", "c++"):
        print(f"token loop, {name:7} {n / seconds(loop[name]):9.0f} tokens/s")
    if "llama_bench_tokens_per_second" in figures:
        print(f"llama-bench tg      {figures['llama_bench_tokens_per_second']:9.0f} tokens/s")
    low, high = figures["speed_of_python"]["quartiles"]
    speed = seconds(figures["speed_of_python"])
    print(f"python / c++        {speed:9.3f} [{low:.3f} {high:.3f}], bar {BAR_LOOP}: {verdict(speed >= BAR_LOOP)}")
    view = seconds(figures["logits_view_seconds"])
    print(f"logits view         {view * 1e6:9.2f} us, bar {BAR_VIEW * 1e6:.0f}: {verdict(view < BAR_VIEW)}")
    for name, timing in figures["fill_2000_seconds"].items():
        fill = seconds(timing)
        print(f"fill 2000, {name:8} {fill * 1e6:9.1f} us, bar {BAR_FILL * 1e6:.0f}: {verdict(fill < BAR_FILL)}")


def verdict(good: bool) -> str:
    return "met" if good else "MISSED"


if __name__ == "__main__":
    sys.exit(main())
