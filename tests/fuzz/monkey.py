"""The API monkey: random calls of everything public, with arguments that are right, wrong, at the edge, or lie.

    python -P tests/fuzz/monkey.py --seconds 60 --seed 1

The oracle knows nothing about what a call should do. The process must not die or hang (10 s a line, 6 GiB), no
context, sampler or batch may be left busy, and what is raised must be one of `lloyal.errors` or a builtin that blames
the argument.
A finding is printed as the lines that bring it back, as few as could be found. `--replay FILE` runs such lines again.
"""

from __future__ import annotations

import argparse
import sys
import time
import types
from pathlib import Path
from typing import Any

if not __package__:  # started as a script: `tests` without the checkout on the path, where lloyal/ is not compiled
    _tests = types.ModuleType("tests")
    _tests.__path__ = [str(Path(__file__).resolve().parents[1])]
    sys.modules["tests"] = _tests

from tests.fuzz.harness import Worker, shrink

LINES = 120  # of a history


class Monkey:
    def __init__(self, seed: str) -> None:
        self.seed = seed
        self.worker = Worker("monkey_worker", 120.0)
        self.histories = 0
        self.lines = 0

    def run(self, seconds: float, most: int | None = None) -> tuple[list[str], dict[str, Any]] | None:
        """Play; the lines of the first history that went wrong, and what happened."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and (most is None or self.histories < most):
            done, lines = self.worker.ask({"seed": f"{self.seed}/{self.histories}", "n": LINES})
            self.histories += 1
            self.lines += len(lines)
            if done["problem"]:
                return lines, done["problem"]
        return None

    def fails(self, lines: list[str]) -> dict[str, Any] | None:
        """What happens when lines run in a process of their own."""
        self.worker.stop()
        done, _ = self.worker.ask({"lines": lines})
        problem: dict[str, Any] | None = done["problem"]
        return problem

    def shrink(self, lines: list[str], problem: dict[str, Any], seconds: float) -> list[str]:
        """Fewer lines that end the same way; all of them where they do not do so every time."""

        def same(less: list[str]) -> bool:
            again = self.fails(less)
            return again is not None and again["kind"] == problem["kind"]

        return shrink(lines, same, seconds) if same(lines) else lines

    def close(self) -> None:
        self.worker.close()


def show(lines: list[str], problem: dict[str, Any]) -> str:
    return "\n".join([f"# {problem['kind']}", problem["message"], "", *lines])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--no-shrink", action="store_true")
    parser.add_argument("--keep-going", action="store_true", help="list what is found, a line each")
    parser.add_argument("--replay", type=Path, help="a file of lines")
    options = parser.parse_args()
    monkey = Monkey(options.seed)
    start = time.monotonic()
    n_found = 0
    try:
        if options.replay:
            lines = [line for line in options.replay.read_text().splitlines() if line and line[0] != "#"]
            problem = monkey.fails(lines)
            print(show(lines, problem) if problem else "nothing happened")
            return int(problem is not None)
        while options.keep_going and time.monotonic() - start < options.seconds:
            if more := monkey.run(options.seconds - (time.monotonic() - start)):
                lines, problem = more
                n_found += 1
                last = problem["message"].strip().splitlines()
                print(f"{problem['kind']}: {lines[-1][:200]}\n    {last[0][:100]} ... {last[-1][:160]}", flush=True)
        found = None if options.keep_going else monkey.run(options.seconds)
        took = time.monotonic() - start
        print(f"{monkey.lines} lines in {monkey.histories} histories, {took:.0f} s, seed {options.seed}", flush=True)
        if found is None:
            print(f"{n_found} found")
            return int(n_found > 0)
        print(f"found after {took:.1f} s")
        lines, problem = found
        if not options.no_shrink:
            lines = monkey.shrink(lines, problem, 120.0)
        print(show(lines, problem))
        return 1
    finally:
        monkey.close()


if __name__ == "__main__":
    sys.exit(main())
