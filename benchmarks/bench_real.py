"""A real model, against other bindings and upstream's own program: reading, generating, keeping the state.

    python benchmarks/bench_real.py [--peer NAME=PYTHON]... [--llama-bench PROGRAM] [--also NAME=VALUE,...]...

SmolLM2-135M-Instruct (tools/real_model.py) in several file types, one thread, each library as it is by default and in
a process of its own (real_side.py). They take turns, and each round gives one ratio. The text counts from 0 upwards:
no side ends it early, and whoever has lost the state does not know the number. Prints Markdown: what lloyal does, and
for each other side its figure, then the median of lloyal's divided by it and its quartiles.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Self

import lloyal
from lloyal.bench import Timing, alternate, ratio

HERE = Path(__file__).resolve().parent
TYPES = ("q4_1", "q8_0", "q4_0", "q4_k_m", "f16")
LENGTHS = (1000, 4000, 8000)
PEERS = ("llama-cpp-python", "cyllama")
N_SHORT = 16  # tokens of a prompt
N_CHECKED = 16  # tokens that must be the same after a restore
WAYS = {"device": "checkpoint", "host": "checkpoint, host", "bytes": "to_bytes", "raw": "state_seq_get_data"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--types", nargs="+", default=TYPES, help="states are measured with the first: all have the same"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--prompt", type=int, default=512, help="tokens to read")
    parser.add_argument("--tokens", "-n", type=int, default=128, help="tokens to generate")
    parser.add_argument("--depth", type=int, default=1000, help="tokens before them, the second time")
    parser.add_argument("--lengths", type=int, nargs="*", default=LENGTHS, help="tokens of the states, ascending")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=PYTHON", help=f"NAME: {' or '.join(PEERS)}"
    )
    parser.add_argument("--llama-bench", type=Path, help="upstream's program, best of the same commit")
    parser.add_argument(
        "--also", action="append", default=[], metavar="NAME=VALUE,...", help="lloyal once more, with these"
    )
    parser.add_argument(
        "--flash-attn", action="append", default=[], choices=("on", "off"), help="short for --also flash_attn=..."
    )
    parser.add_argument("--thread-time", action="store_true", help="count the processor time of each process")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    bench = Bench(parser.parse_args())
    try:
        bench.run()
    finally:
        if bench.options.json:
            bench.options.json.write_text(json.dumps(bench.figures, indent=2) + "\n")
    return 1 if bench.n_wrong else 0


class Worker:
    """A library in a process of its own."""

    def __init__(self, name: str, python: str, **settings: Any) -> None:
        command = [python, str(HERE / "real_side.py"), name, json.dumps(settings)]
        self.name = name
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self.answer("start")

    def answer(self, to: str) -> dict[str, Any]:
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise SystemExit(f"{self.name} ended with exit status {self.process.wait()}, asked to {to}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        print(json.dumps({"do": do, **request}), file=self.process.stdin, flush=True)
        return self.answer(do)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.communicate()  # the end of its input is its end


class LlamaBench:
    """Upstream's program. Its tokens are random, and it picks none."""

    def __init__(self, program: Path, path: Path) -> None:
        self.command = [str(program), "-m", str(path), "-t", "1", "-r", "1", "-o", "json"]
        self.about: dict[str, Any] = {}

    def ask(self, do: str, *, keep: int, n: int = 0, tokens: Iterable[int] = (), **other: Any) -> dict[str, Any]:
        n_read = len(list(tokens))
        sizes = ["-p", str(n_read), "-n", str(n), "-d", str(keep)]
        done = subprocess.run([*self.command, *sizes], check=True, capture_output=True, text=True)
        return {"seconds": (n_read + n) / float(json.loads(done.stdout)[0]["avg_ts"])}


AnySide = Worker | LlamaBench


@dataclasses.dataclass(frozen=True)
class Unit:
    """How seconds are shown."""

    name: str
    per_second: float = 1
    is_speed: bool = False  # so many a second

    def show(self, timing: Timing) -> str:
        return f"{1 / timing.median if self.is_speed else timing.median * self.per_second:.4g}"

    def ratio(self, ours: Timing, other: Timing) -> Timing:
        return ratio(other, ours) if self.is_speed else ratio(ours, other)


SECONDS, MS, PACE = Unit("s"), Unit("ms", 1e3), Unit("tokens/s", is_speed=True)


class State:
    """The first `n` tokens of the text in a side that has read them, kept and brought back in one way."""

    def __init__(self, side: Worker, way: str, text: list[int], n: int) -> None:
        self.side, self.way, self.n, self.next = side, way, n, text[n : n + 1]
        self.size = 0
        self.expected = self.go_on()

    def save(self) -> float:
        answer = self.side.ask("save", way=self.way)
        self.size = answer["bytes"]
        return float(answer["seconds"])

    def restore(self) -> float:
        return float(self.side.ask("restore", way=self.way)["seconds"])

    def comes_back(self) -> bool:
        self.restore()
        return self.go_on() == self.expected

    def go_on(self) -> list[int]:
        tokens: list[int] = self.side.ask("generate", keep=self.n, prompt=self.next, n=N_CHECKED)["tokens"]
        self.side.ask("trim", keep=self.n)
        return tokens


class Bench:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        longest = max([options.depth + options.tokens, options.prompt, *options.lengths]) + 2 * N_SHORT + N_CHECKED
        self.n_ctx = (longest + 255) // 256 * 256
        self.pythons = dict.fromkeys(PEERS, sys.executable) | dict(item.split("=", 1) for item in options.peer)
        if unknown := self.pythons.keys() - set(PEERS):
            raise SystemExit(f"--peer {', '.join(unknown)}: it knows {' and '.join(PEERS)}")
        self.also = [*options.also, *(f"flash_attn={value}" for value in options.flash_attn)]
        self.not_run: dict[str, str] = {}
        self.n_wrong = 0
        self.figures: dict[str, Any] = {"n_ctx": self.n_ctx, "not_run": self.not_run, "sides": {}, "rows": []}

    def run(self) -> None:
        files = model_files(self.options.types)
        text = counting(files[0], self.n_ctx)
        for i, (kind, path) in enumerate(zip(self.options.types, files, strict=True)):
            with ExitStack() as stack:
                sides = self.start(stack, path)
                if i == 0:
                    self.introduce(sides)
                    self.heading(sides)
                self.figures["sides"][kind] = {name: side.about for name, side in sides.items()}
                self.speeds(kind.upper(), sides, text)
        if self.options.lengths:
            with ExitStack() as stack:
                sides = self.start(stack, files[0])
                workers = {name: side for name, side in sides.items() if isinstance(side, Worker)}
                self.heading(workers)
                self.states(workers, text)

    def start(self, stack: ExitStack, path: Path) -> dict[str, AnySide]:
        """The sides that can run, lloyal first; of the others `not_run` says why."""
        sides: dict[str, AnySide] = {}

        def start(name: str, library: str, python: str, keywords: dict[str, Any]) -> None:
            settings = {"path": str(path), "n_ctx": self.n_ctx, "process_time": self.options.thread_time}
            try:
                worker = stack.enter_context(Worker(library, python, keywords=keywords, **settings))
            except FileNotFoundError:
                self.not_run[name] = f"there is no {python}"
                return
            if "missing" in worker.about:
                self.not_run[name] = worker.about["missing"]
            else:
                sides[name] = worker

        start("lloyal", "lloyal", sys.executable, {})
        for keywords in self.also:
            start(f"lloyal, {keywords}", "lloyal", sys.executable, dict(map(keyword, keywords.split(","))))
        for name, python in self.pythons.items():
            start(name, name, python, {})
        program = self.options.llama_bench
        if program is None or not program.exists():
            self.not_run["llama-bench"] = f"there is no {program}" if program else "not installed"
        elif self.options.thread_time:
            self.not_run["llama-bench"] = "it counts the wall"
        else:
            sides["llama-bench"] = LlamaBench(program.resolve(), path)
        return sides

    # What is measured

    def speeds(self, kind: str, sides: Mapping[str, AnySide], text: list[int]) -> None:
        n_read: int = self.options.prompt
        n, depth = self.options.tokens, self.options.depth

        def read(side: AnySide) -> float:
            return float(side.ask("read", keep=0, tokens=text[:n_read])["seconds"]) / n_read

        self.row(f"{kind}: read {n_read}", PACE, self.turns(sides, read))
        for keep in (0, depth):
            said: dict[AnySide, list[int]] = {}

            def generate(side: AnySide, keep: int = keep, said: dict[AnySide, list[int]] = said) -> float:
                answer = side.ask("generate", keep=keep, prompt=text[keep : keep + N_SHORT], n=n)
                said[side] = answer.get("tokens", [])
                return float(answer["seconds"]) / (len(said[side][1:]) or n)

            for side in sides.values():
                if keep and isinstance(side, Worker):
                    side.ask("read", keep=0, tokens=text[:keep])
            timings = self.turns(sides, generate)
            notes = {name: agreement(said[sides["lloyal"]], said[side]) for name, side in sides.items() if said[side]}
            self.row(f"{kind}: generate {n}" + (f" after {keep}" if keep else ""), PACE, timings, notes)

    def turns(self, sides: Mapping[str, AnySide], work: Callable[[AnySide], float]) -> dict[str, Timing]:
        return alternate({name: partial(work, side) for name, side in sides.items()}, self.options.rounds)

    def states(self, sides: Mapping[str, Worker], text: list[int]) -> None:
        seconds = dict.fromkeys(sides, 0.0)
        ways: dict[str, list[str]] = {name: side.ask("ways")["ways"] for name, side in sides.items()}
        for side in sides.values():
            side.ask("read", keep=0, tokens=text[:N_SHORT])  # the file comes into memory
        for begin, n in itertools.pairwise([0, *self.options.lengths]):
            for name, side in sides.items():
                seconds[name] += side.ask("read", keep=begin, tokens=text[begin:n])["seconds"]
            self.row(f"{n}: read", SECONDS, {name: Timing((taken,)) for name, taken in seconds.items()})
            states = {f"{name}/{way}": State(side, way, text, n) for name, side in sides.items() for way in ways[name]}
            saves = alternate({run: state.save for run, state in states.items()}, self.options.rounds)
            restores = alternate({run: state.restore for run, state in states.items()}, self.options.rounds)
            for way, call in WAYS.items():
                # A library with one way of its own has it beside each of ours.
                run_of = {name: f"{name}/{way if way in ways[name] else ways[name][0]}" for name in sides}
                notes = {name: f"{states[run].size / 1e6:.1f} MB" for name, run in run_of.items()}
                self.row(f"{n}: save, {call}", MS, {name: saves[run] for name, run in run_of.items()}, notes)
                notes = {name: f"reading / {seconds[name] / restores[run].median:.0f}" for name, run in run_of.items()}
                for name, run in run_of.items():
                    if not states[run].comes_back():
                        self.n_wrong += 1
                        notes[name] = "GOES ON WITH OTHER TOKENS"
                self.row(f"{n}: restore, {call}", MS, {name: restores[run] for name, run in run_of.items()}, notes)

    # How it is told

    def introduce(self, sides: Mapping[str, AnySide]) -> None:
        load = self.figures["load"] = os.getloadavg()[0]
        clock = "processor time" if self.options.thread_time else "the wall"
        print(f"One thread, {clock}, {self.options.rounds} rounds, n_ctx {self.n_ctx}, load {load:.1f}.")
        for name, side in sides.items():
            settings = ", ".join(f"{k} {v}" for k, v in side.about.get("settings", {}).items())
            print("-", name, side.about.get("version", ""), f"({settings})" if settings else "")
        for name, why in self.not_run.items():
            print(f"- {name}: not run: {why}")

    def heading(self, sides: Mapping[str, AnySide]) -> None:
        print(f"\n| | {' | '.join(sides)} |\n|{'---|' * (len(sides) + 1)}", flush=True)

    def row(self, name: str, unit: Unit, timings: dict[str, Timing], notes: Mapping[str, str] | None = None) -> None:
        ours = timings["lloyal"]
        cells, figures = [], {}
        for side, timing in timings.items():
            quotient = unit.ratio(ours, timing)
            note = (notes or {}).get(side, "")
            spread = " [{:.3f} {:.3f}]".format(*quotient.spread) if len(timing.values) > 1 else ""
            against = "" if side == "lloyal" else f"{quotient.median:.3f}{spread}"
            cells.append("; ".join(filter(None, (unit.show(timing), against, note))))
            figures[side] = {"seconds": timing.as_json(), "lloyal_by_it": quotient.as_json(), "note": note}
        print(f"| {name}, {unit.name} | {' | '.join(cells)} |", flush=True)
        self.figures["rows"].append({"name": name, "unit": unit.name, "sides": figures})


def model_files(types: Iterable[str]) -> list[Path]:
    command = [sys.executable, "-P", str(HERE.parent / "tools" / "real_model.py"), "--types", *types]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return list(map(Path, done.stdout.split("\n")[1:-1]))  # the first line is the file they are made of


def counting(path: Path, n: int) -> list[int]:
    with lloyal.Model(path, vocab_only=True) as model:
        return list(model.vocab.tokenize(" ".join(map(str, range(n)))))[:n]


def keyword(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def agreement(ours: list[int], tokens: list[int]) -> str:
    """What to say if two sides go on differently, as builds do whose sums differ in the last bit."""
    n_same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(ours, tokens, strict=False)))
    return "" if n_same == len(ours) == len(tokens) else f"the first {n_same} tokens are the same"


if __name__ == "__main__":
    sys.exit(main())
