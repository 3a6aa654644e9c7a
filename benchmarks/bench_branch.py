"""What branches cost: steps of 1, 16 and 64 against a C++ twin, the sampler chain, forks, seats, parking.

    python benchmarks/bench_branch.py [--model FILE] [--rounds N]

The model is the embedded nano unless another is named. One thread. The twin shares a prompt's cells among N sequences
and decodes a batch with a token of each: as it is without picking anything what llama-batched-bench measures with
``-pps -kvu``, it also picks greedily, and by a chain (penalties, top-k, top-p, temperature, distribution).
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from twins import Library, arguments, sample_seconds

import lloyal
from lloyal import BranchStore, Sampling
from lloyal.bench import Timing, alternate, ratio, timed

GREEDY = Sampling(temperature=0)
CHAIN = Sampling(temperature=0.8, top_k=40, top_p=0.95, min_p=0, repeat_penalty=1.1, seed=1)
N_CTX = 4096
GBNF = 'root ::= "{" [^{}]* "}"'


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, default=Path(lloyal.models.path("nano")))
    parser.add_argument("--contexts", type=int, default=5, help="each with as many rounds")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", "-n", type=int, default=32, help="steps of one round")
    parser.add_argument("--branches", type=int, nargs="*", default=[1, 16, 64])
    options = parser.parse_args()
    library = Library(options.twins, thread_time=options.thread_time)
    figures: dict[str, Any] = {"model": options.model.name}
    with lloyal.Model(options.model, use_extra_bufts=False) as model:
        figures["steps"] = steps(model, library, options)
        figures["speed_up"] = speed_up(figures["steps"])
        figures["chain"] = chain_cost(model, library)
        figures["generate_8"] = generate_8(model, library, options)
        figures["forks"] = forks(model)
        figures["parking"] = parking(model)
    report(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2, default=str) + "\n")
    return 0


def context(model: lloyal.Model, n_seq_max: int, n_ctx: int = N_CTX) -> lloyal.Context:
    return lloyal.Context(
        model, n_ctx=n_ctx, n_batch=512, n_ubatch=512, n_seq_max=n_seq_max, n_threads=1, n_threads_batch=1
    )


def steps(model: lloyal.Model, library: Library, options: Any) -> dict[str, Any]:
    """Both sides in one context, and several contexts: which pages a cache gets is worth 20 %, as long as it lives."""
    prompt = model.vocab.tokenize('def fibonacci(n):\n    """Return the n-th number."""\n')
    found = {}
    for n in options.branches:
        values: dict[str, tuple[float, ...]] = {}
        same = []
        for _ in range(options.contexts):
            with context(model, n + 1) as ctx:
                same.append(ours(ctx, prompt, n, options.tokens, GREEDY, library)[1]
                            == twins(ctx, prompt, n, options.tokens, "greedy", library)[1])  # fmt: skip

                def twin(picking: str, ctx: lloyal.Context = ctx, n: int = n) -> float:
                    return twins(ctx, prompt, n, options.tokens, picking, library)[0]

                def our(sampling: Sampling, ctx: lloyal.Context = ctx, n: int = n) -> float:
                    return ours(ctx, prompt, n, options.tokens, sampling, library)[0]

                measured = alternate(
                    {
                        "none, c++": partial(twin, "none"), "greedy, c++": partial(twin, "greedy"),
                        "chain, c++": partial(twin, "chain"), "greedy": partial(our, GREEDY),
                        "chain": partial(our, CHAIN),
                    },
                    options.rounds,
                )  # fmt: skip
            values = {name: (*values.get(name, ()), *timing.values) for name, timing in measured.items()}
        timings = {name: Timing(seconds) for name, seconds in values.items()}
        found[n] = {
            "same_tokens": all(same),
            "tokens_per_second": {name: n * options.tokens / t.median for name, t in timings.items()},
            "greedy / none, c++": ratio(timings["none, c++"], timings["greedy"]).as_json(),
            "greedy / greedy, c++": ratio(timings["greedy, c++"], timings["greedy"]).as_json(),
            "chain / chain, c++": ratio(timings["chain, c++"], timings["chain"]).as_json(),
        }
    return found


def twins(
    ctx: lloyal.Context, prompt: list[int], n: int, count: int, picking: str, library: Library
) -> tuple[float, list[list[int]]]:
    twin = library.borrow(ctx)
    measured = twin.branches(prompt, n, count, picking)
    twin.close()
    return measured


def ours(
    ctx: lloyal.Context, prompt: list[int], n: int, count: int, sampling: Sampling, library: Library
) -> tuple[float, list[list[int]]]:
    """Seconds of `count` steps of `n` branches of one prompt, and their tokens."""
    with BranchStore(ctx) as store:
        root = store.create(prompt, sampling=sampling)
        branches = root.fork(n, seed=0)
        for branch in branches:
            branch.detach()
            if sampling is not GREEDY:
                branch.set_bias(dict.fromkeys(ends(ctx), -np.inf))
        root.prune()
        tokens: list[list[int]] = []

        def loop() -> None:
            for _ in range(count):
                tokens.append(store.step(branches))

        seconds = timed(loop, library.clock)
    return seconds, np.asarray(tokens).T.tolist()


def ends(ctx: lloyal.Context) -> list[int]:
    return [token for token in range(ctx.vocab.n_tokens) if ctx.vocab.is_eog(token)]


def speed_up(found: dict[int, Any]) -> dict[str, Any]:
    """Tokens a second of many branches by those of one, here and where nothing is picked."""
    if 1 not in found:
        return {}
    one = found[1]["tokens_per_second"]
    return {
        str(n): {side: f["tokens_per_second"][side] / one[side] for side in ("none, c++", "greedy")}
        for n, f in found.items()
        if n > 1
    }


def chain_cost(model: lloyal.Model, library: Library) -> dict[str, Any]:
    """One pick by the chain, from rows as long as those of a large model."""
    found = {}
    for n_vocab in (model.vocab.n_tokens, 49152):
        row = np.random.default_rng(0).normal(0, 3, n_vocab).astype(np.float32)
        timings = alternate(
            {
                "c++": lambda row=row: sample_seconds(library, "twin", row, 50),
                "ours": lambda row=row: sample_seconds(library, "lloyal", row, 50),
            },
            21,
        )
        found[n_vocab] = {
            "microseconds": {name: t.median * 1e6 for name, t in timings.items()},
            "ours / c++": ratio(timings["c++"], timings["ours"]).as_json(),
        }
    return found


def generate_8(model: lloyal.Model, library: Library, options: Any) -> dict[str, Any]:
    """`generate(n=8)` against stepping eight branches by hand."""
    prompt = model.vocab.tokenize("def fibonacci(n):\n")
    with context(model, 9) as ctx:

        def generated() -> float:
            texts = lloyal.generate(ctx, prompt, n=8, max_tokens=options.tokens, sampling=CHAIN)
            seconds = timed(lambda: list(texts), library.clock)
            texts.close()
            return seconds

        def by_hand() -> float:
            def run() -> None:
                with BranchStore(ctx) as store:
                    root = store.create(prompt, sampling=CHAIN)
                    branches = root.fork(8, seed=1)
                    for branch in branches:
                        branch.detach()
                    root.prune()
                    for _ in range(options.tokens):
                        branches = [branch for branch in branches if not branch.ended]
                        if branches:
                            store.step(branches)

            return timed(run, library.clock)

        timings = alternate({"generate": generated, "store": by_hand}, options.rounds)
    return {"generate / store": ratio(timings["store"], timings["generate"]).as_json()}


def forks(model: lloyal.Model) -> dict[str, Any]:
    """Microseconds of a lazy fork, of giving it a sequence beside a bare seq_cp, and of taking over."""
    found: dict[str, Any] = {}
    for n_ctx, cells in ((2048, 1024), (17408, 16384), (66560, 65536)):
        with context(model, 4, n_ctx) as ctx, BranchStore(ctx) as store:
            # Rows without the reading: their content does not matter here.
            root = store.create(fast_rows(ctx, cells), sampling=CHAIN, grammar=GBNF)
            lazy = [timed(root.fork) for _ in range(200)]
            for fork in root.children:
                fork.prune()
            seated, copied, over = [], [], []
            for _ in range(9):
                fork = root.fork()
                seated.append(timed(fork.resume))
                fork.prune()
                copied.append(timed(lambda seq=root.seq_id: ctx.memory.seq_cp(seq, 0)))
                ctx.memory.seq_rm(0)
                heir = root.fork()
                heir.detach()
                root.prune()
                over.append(timed(heir.resume))
                root = heir
            found[str(cells)] = {
                name: float(np.median(values)) * 1e6
                for name, values in (("fork", lazy), ("resume", seated), ("seq_cp", copied), ("take over", over))
            }
            start = time.perf_counter()
            many = root.fork(10_000)
            found[str(cells)]["fork, of 10000"] = (time.perf_counter() - start) / 10_000 * 1e6
            for fork in many:
                fork.prune()
    return found


def fast_rows(ctx: lloyal.Context, n: int) -> list[int]:
    return np.random.default_rng(0).integers(0, ctx.vocab.n_tokens // 2, n).tolist()


def parking(model: lloyal.Model) -> dict[str, Any]:
    """Parking and resuming a branch with 64 tokens of its own, of kin with 8192, against a whole save and restore."""
    with context(model, 8, 20480) as ctx, BranchStore(ctx) as store:
        root = store.create(fast_rows(ctx, 8192), sampling=CHAIN)
        branches = root.fork(2)
        store.decode_scatter([(branch, fast_rows(ctx, 64)) for branch in branches])
        keeper, other = branches
        with keeper.checkpoint("device"):
            park, resume = [], []
            for _ in range(9):
                park.append(timed(other.park))
                resume.append(timed(other.resume))
        whole_save, whole_restore = [], []
        for _ in range(9):
            start = time.perf_counter()
            kept = ctx.checkpoint(root.seq_id)
            whole_save.append(time.perf_counter() - start)
            ctx.memory.seq_cp(root.seq_id, 0)
            ctx.memory.seq_rm(0)
            kept.release()
        with BranchStore(ctx) as alone:
            del alone
        kept = ctx.checkpoint(root.seq_id)
        store.close()
        for _ in range(9):
            ctx.memory.seq_rm(0)
            whole_restore.append(timed(lambda: kept.restore(0)))
        kept.release()
    figures = {
        "park": park, "resume": resume, "whole save": whole_save, "whole restore": whole_restore,
    }  # fmt: skip
    medians = {name: float(np.median(values)) * 1e6 for name, values in figures.items()}
    return medians | {
        "ratio": (medians["park"] + medians["resume"]) / (medians["whole save"] + medians["whole restore"])
    }


def report(figures: dict[str, Any]) -> None:
    for n, found in figures["steps"].items():
        speeds = ", ".join(f"{name} {value:.0f}" for name, value in found["tokens_per_second"].items())
        print(f"{n:3} branches, tokens/s: {speeds}; same tokens: {found['same_tokens']}")
        for name in ("greedy / none, c++", "greedy / greedy, c++", "chain / chain, c++"):
            low, high = found[name]["quartiles"]
            print(f"      {name:22} {found[name]['median']:.3f} [{low:.3f} {high:.3f}]")
    for n, found in figures["speed_up"].items():
        print(f"{n} branches by one: {found['greedy']:.2f} here, {found['none, c++']:.2f} where nothing is picked")
    for n_vocab, found in figures["chain"].items():
        micro = found["microseconds"]
        print(
            f"chain at {n_vocab}: ours {micro['ours']:.1f} us, c++ {micro['c++']:.1f} us, "
            f"{found['ours / c++']['median']:.3f}"
        )
    print(f"generate(n=8) / store: {figures['generate_8']['generate / store']['median']:.3f}")
    for cells, found in figures["forks"].items():
        print(f"{cells:>6} cells: " + ", ".join(f"{name} {value:.1f} us" for name, value in found.items()))
    print("parking 64 of 8256 rows: " + ", ".join(f"{name} {value:.3g}" for name, value in figures["parking"].items()))


if __name__ == "__main__":
    sys.exit(main())
