"""Texts that lie: templates, schemas, grammars, trigger patterns and texts to tokenize, made to blow up.

    python -P tests/fuzz/texts.py --seconds 60 --seed 1      random texts
    python -P tests/fuzz/texts.py --seed 1 --only 4711       one of them again, printed

The oracle: the process lives, each text ends within a second of its time (10 s by the clock) and 256 MiB, with
a result or an exception of ours, and one that takes longer than a signal needs ends at the signal. Exit code 1 if not.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import resource
import selectors
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 1.0  # of processor time
WALL_SECONDS = 10.0
MIB = 256  # above what the process held before
SIGNAL_AFTER = 0.1  # seconds of processor time
SIGNAL_WITHIN = 0.3


def find_tests() -> None:
    """Make ``tests`` importable without the checkout on the path, where ``lloyal/`` is not compiled."""
    if "tests" not in sys.modules:
        package = types.ModuleType("tests")
        package.__path__ = [str(ROOT / "tests")]
        sys.modules["tests"] = package


find_tests()

from tests.fuzz.harness import end_worker  # noqa: E402
from tests.fuzz.texts_make import MAKERS, Case  # noqa: E402


def make(seed: str, index: int, kinds: list[str]) -> Case:
    rng = random.Random(f"{seed} {index}")
    return MAKERS[kinds[index % len(kinds)]](rng)


class Finding(Exception):
    pass


# The worker: one case per line on stdin, one answer per line on stdout.


class Work:
    def __init__(self) -> None:
        import lloyal

        names = [lloyal.models.path(name) for name in ("nano", "nano-draft")]
        vocabularies = sorted((ROOT / "vendor/llama.cpp/models").glob("ggml-vocab-*.gguf"))
        self.paths = [str(path) for path in (*names, *vocabularies)]
        self.models: dict[str, Any] = {}
        self.run(json.loads('{"kind": "template", "text": "{{ 1 }}"}'))  # what is made once

    def model(self, path: str) -> Any:
        import lloyal

        if path not in self.models:
            self.models[path] = lloyal.Model(path, vocab_only=True)
        return self.models[path]

    def run(self, case: Case) -> Any:
        """One call; if it returns a tuple, those come next, each a call with limits of its own."""
        import numpy as np

        import lloyal
        import lloyal.chat
        import lloyal.grammar

        text, kind = case["text"], case["kind"]
        nano = self.model(self.paths[0])
        if kind == "template":
            messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
            tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
            return lloyal.chat.apply_template(nano, messages, template=text, tools=[tool] * (len(text) % 2)).prompt
        if kind == "schema":
            made = lloyal.grammar.from_json_schema(text)
            return (lambda: lloyal.Sampler.grammar(nano.vocab, made),)
        if kind == "grammar" and not case["lazy"]:
            sampler = lloyal.Sampler.grammar(nano.vocab, text)
            zeros = np.zeros(len(nano.vocab), np.float32)
            return (
                lambda: sampler.apply(zeros).token,
                lambda: sampler.clone().set_state(sampler.state()),
                *self.say(sampler, case["said"]),
            )
        if kind == "grammar":
            lazy = lloyal.Sampler.grammar_lazy_patterns(nano.vocab, text, "root", case["lazy"])
            return self.say(lazy, case["said"])
        if kind == "pattern":
            sampler = lloyal.Sampler.grammar_lazy_patterns(nano.vocab, "root ::= .*", "root", [text])
            return (*self.say(sampler, case["said"]), sampler.reset)
        if kind == "override":
            return lloyal.Model(self.paths[1], tensor_buft_overrides={text: "CPU"}).close()
        vocab = self.model(self.paths[case["model"] % len(self.paths)]).vocab
        return vocab.tokenize(text, parse_special=case["special"])

    def say(self, sampler: Any, text: str) -> tuple[Callable[[], Any], ...]:
        tokens = self.model(self.paths[0]).vocab.tokenize(text, False)
        return tuple(lambda token=token: sampler.accept(token) for token in tokens)  # type: ignore[misc]


def peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1])
    raise RuntimeError("no VmHWM")


def timed(work: Callable[[], Any]) -> dict[str, Any]:
    Path("/proc/self/clear_refs").write_text("5")
    before, start, wall = peak(), time.process_time(), time.monotonic()
    signalled = []

    def on_signal(*_: object) -> None:
        signalled.append(time.process_time() - start)
        raise KeyboardInterrupt

    signal.signal(signal.SIGPROF, on_signal)
    more = None
    try:
        more = work()
        end = "result"
    except KeyboardInterrupt:
        end = "KeyboardInterrupt"
    except BaseException as error:
        end = f"{type(error).__module__}.{type(error).__name__}: {str(error)[:150]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    seconds = time.process_time() - start
    late = seconds - signalled[0] if signalled else 0.0
    found = {
        "end": end,
        "seconds": seconds,
        "wall": time.monotonic() - wall,
        "mib": (peak() - before) / 1024,
        "late": late,
    }
    for call in more if isinstance(more, tuple) else ():
        then = timed(call)
        found = {"end": then["end"]} | {key: max(found[key], then[key]) for key in ("seconds", "wall", "mib", "late")}
        if then["end"] != "result":
            break
    return found


def serve() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    work = Work()
    print("{}", flush=True)
    for line in sys.stdin:
        case = json.loads(line)
        if case["kind"] == "text" or case.get("model") is not None:
            work.model(work.paths[case["model"] % len(work.paths)])
        found = timed(lambda case=case: work.run(case))  # type: ignore[misc]
        if found["seconds"] > SIGNAL_AFTER + SIGNAL_WITHIN and found["seconds"] < 5:

            def again(case: Case = case) -> None:
                signal.setitimer(signal.ITIMER_PROF, SIGNAL_AFTER)
                work.run(case)

            found["late"] = timed(again)["late"]
        print(json.dumps(found), flush=True)


# The parent.


class Worker:
    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.buffer = b""

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__, "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},
        )
        if self.answer(120.0) is None:
            raise RuntimeError("the worker does not start")

    def answer(self, seconds: float) -> dict[str, Any] | None:
        assert self.process is not None
        assert self.process.stdout is not None
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self.buffer:
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                got = os.read(self.process.stdout.fileno(), 1 << 16) if ready else b""
                if not got:
                    return None
                self.buffer += got
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)  # type: ignore[no-any-return]

    def ask(self, case: Case) -> dict[str, Any]:
        """What became of the case; raises `Finding` if it is not as it must be."""
        if self.process is None:
            self.start()
        assert self.process is not None
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(case).encode() + b"\n")
            self.process.stdin.flush()
        found = self.answer(3 * WALL_SECONDS)
        if found is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1.0)
            code = self.process.returncode
            self.stop()
            raise Finding("hangs" if code is None else f"dies: {signal.Signals(-code).name if code < 0 else code}")
        size = len(case["text"].encode()) if case["kind"] == "text" else 0  # tokens may take time and memory for each
        if found["seconds"] > SECONDS + size * 2e-5:
            raise Finding(f"takes {found['seconds']:.1f} s ({found['end']})")
        if found["wall"] > WALL_SECONDS and found["seconds"] > SECONDS / 2:
            raise Finding(f"takes {found['wall']:.1f} s by the clock ({found['end']})")
        if found["mib"] > MIB + size * 256 / 2**20:
            raise Finding(f"takes {found['mib']:.0f} MiB ({found['end']})")
        if found["late"] > SIGNAL_WITHIN:
            raise Finding(f"ends {found['late']:.1f} s after a signal ({found['end']})")
        if not found["end"].startswith(("result", "lloyal.errors.", "builtins.UnicodeEncodeError")):
            raise Finding(found["end"])
        return found

    def stop(self) -> None:
        if self.process is not None:
            end_worker(self.process)
        self.process = None
        self.buffer = b""


class Fuzz:
    def __init__(self, seed: str, kinds: list[str]) -> None:
        self.seed = seed
        self.kinds = kinds
        self.worker = Worker()
        self.ends: collections.Counter[str] = collections.Counter()
        self.findings: list[tuple[int, str]] = []
        self.n = 0

    def run(self, seconds: float, most_findings: int = 10**9) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and len(self.findings) < most_findings:
            self.one(self.n)
            self.n += 1
        self.worker.stop()

    def one(self, index: int) -> None:
        case = make(self.seed, index, self.kinds)
        try:
            found = self.worker.ask(case)
            self.ends[f"{case['kind']} {found['end'].split(':')[0]}"] += 1
        except Finding as finding:
            self.findings.append((index, f"{case['kind']} {finding}"))
            print(f"--only {index}: {case['kind']} {finding}: {case['text'][:200]!r}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--kinds", default=",".join(MAKERS))
    parser.add_argument("--stop", action="store_true", help="at the first finding")
    parser.add_argument("--only", type=int)
    parser.add_argument("--worker", action="store_true")
    args = parser.parse_args()
    if args.worker:
        return serve()
    fuzz = Fuzz(args.seed, args.kinds.split(","))
    if args.only is not None:
        case = make(args.seed, args.only, fuzz.kinds)
        print(case["text"][:2000] if len(case["text"]) > 2000 else case["text"])
        try:
            print(fuzz.worker.ask(case))
        except Finding as finding:
            print(finding)
        return fuzz.worker.stop()
    began = time.monotonic()
    fuzz.run(args.seconds, 1 if args.stop else 10**9)
    if args.stop and fuzz.findings:
        print(f"# {fuzz.findings[0][1]}\nfound after {time.monotonic() - began:.1f} s")
    for end, n in sorted(fuzz.ends.items()):
        print(f"{n:7} {end}")
    print(f"{fuzz.n} texts, {len(fuzz.findings)} findings")
    sys.exit(bool(fuzz.findings))


if __name__ == "__main__":
    main()
