"""Files that lie: mutated GGUF files are loaded, computed with, tokenized with, quantized and attached as adapters.

    python -P tests/fuzz/gguf.py --seconds 60 --seed 1     random files
    python -P tests/fuzz/gguf.py --types                   every type of tensor in every role of every recipe
    python -P tests/fuzz/gguf.py --seed 1 --only 4711      one file again, with what native code says

The oracle: the process that did it lives, within 10 s of its time and its share of memory. Errors of ours are what a
file that lies should give. Workers take many files each; one that dies is replaced, and the file is a finding.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import mmap
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path

if not __package__:  # started as a script: `tests` without the checkout on the path, where lloyal/ is not compiled
    _tests = types.ModuleType("tests")
    _tests.__path__ = [str(Path(__file__).resolve().parents[1])]
    sys.modules["tests"] = _tests

# Hangs are judged by processor time: a thread that waits for another must sleep, not spin. OpenMP reads it once.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from tests.fuzz import gguf_mutate, gguf_seeds
from tests.fuzz.gguf_file import BLOCKS, File, encode, parse
from tests.fuzz.harness import processor_seconds

SECONDS = 10.0  # of processor time for one file
WALL_SECONDS = 60.0  # or that, on a loaded machine
ADDRESS_SPACE = 6 << 30
RESIDENT = 2 << 30


@dataclasses.dataclass
class Case:
    """One file and what is done with it; made again from the seed and its number."""

    data: bytes
    how: str
    what: str
    rng: random.Random
    other: bytes | None = None


@dataclasses.dataclass
class Finding:
    number: int
    end: str
    stage: str
    where: str
    what: str

    def kind(self) -> str:
        return f"{self.end} in {self.stage}: {self.where}"


class Mutations:
    """Random cases."""

    def __init__(self, seed: str, how: str | None, only: str | None) -> None:
        self.seed = seed
        self.how = how
        models = gguf_seeds.models()
        embedded = gguf_seeds.embedded()
        self.adapter = gguf_seeds.adapter()
        self.vocabularies = gguf_seeds.vocabularies()
        self.vocabularies["nano-draft"] = File(embedded["nano-draft"].pairs, [])
        self.models = models | embedded
        if only is not None:
            self.models = {name: file for name, file in self.models.items() if re.search(only, name)}
        # The larger the file, the rarer.
        self.weights = [{"nano-draft": 0.3, "nano-hybrid": 0.15, "nano": 0.03}.get(name, 1.0) for name in self.models]
        self.llama = bytes(encode(models["llama"]).data)
        self.whole_adapter = bytes(encode(self.adapter).data)

    def make(self, number: int) -> Case:
        rng = random.Random(f"{self.seed} {number}")
        how = self.how or rng.choices(["model", "vocabulary", "quantize", "adapter"], [64, 14, 14, 8])[0]
        other = None
        if how == "adapter":
            name, genuine, other = "adapter", self.adapter, self.llama
        elif how == "vocabulary":
            name, genuine = rng.choice(list(self.vocabularies.items()))
        else:
            (name,) = rng.choices(list(self.models), self.weights)
            genuine = self.models[name]
            if how == "model" and name == "llama" and rng.random() < 0.3:
                other = self.whole_adapter
        data, done = gguf_mutate.mutate(rng, genuine)
        return Case(data, how, f"{how} {name}: {', '.join(done)}", rng, other)


class Types:
    """Every type in every role: of each name without its layer's number, the tensor of the first layer that has it."""

    def __init__(self, folder: Path | None, only: str | None, seed: str) -> None:
        self.models: dict[str, File] | dict[str, Path] = gguf_seeds.models(wide=True)
        if folder is not None:
            self.models = {path.stem: path for path in sorted(folder.glob("*.gguf"))}
        self.cases = []
        self.parsed: dict[str, File] = {}
        for name in self.models:
            if only is None or re.search(only, name):
                roles: dict[bytes, int] = {}
                for i, tensor in enumerate(self.file(name).tensors):
                    roles.setdefault(re.sub(rb"\d+", b"", tensor.name), i)
                self.cases += [(name, i, kind) for i in roles.values() for kind in BLOCKS]
        if folder is None:
            random.Random(seed).shuffle(self.cases)  # a part of them is a part of each

    def file(self, name: str) -> File:
        model = self.models[name]
        if isinstance(model, File):
            return model
        if name not in self.parsed:
            self.parsed = {name: parse(model.read_bytes())}
        return self.parsed[name]

    def make(self, number: int) -> Case:
        name, i, kind = self.cases[number]
        file = self.file(name).copy()
        gguf_mutate.retype(file.tensors[i], kind)
        rng = random.Random(number)
        what = f"{name}: {file.tensors[i].name.decode()} {file.tensors[i].shape} of type {kind}"
        return Case(bytes(encode(file).data), "model", what, rng)


class Shared:
    """What a worker says of itself, in memory that outlives it: the number of its case, and the stage."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 64)

    def case(self, number: int) -> None:
        self.memory[:16] = struct.pack("<qd", number, time.monotonic())
        self.stage("")

    def stage(self, stage: str) -> None:
        self.memory[16:48] = stage.encode()[:32].ljust(32)

    def read(self) -> tuple[int, float, str]:
        number, since = struct.unpack("<qd", self.memory[:16])
        return number, since, self.memory[16:48].decode().strip()


def work(cases: Mutations | Types, numbers: Iterator[int], shared: Shared, folder: Path, results: int) -> None:
    """Run cases until there are no more. In a process of its own."""
    from tests.fuzz.gguf_work import use

    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    path, other = folder / "case.gguf", folder / "other.gguf"
    errors = os.open(folder / "stderr", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.dup2(errors, 2)
    for number in numbers:
        shared.case(number)
        shared.stage("mutate")
        os.ftruncate(errors, 0)
        os.lseek(errors, 0, os.SEEK_SET)
        case = cases.make(number)
        path.write_bytes(case.data)
        if case.other is not None:
            other.write_bytes(case.other)
        outcome = use(path, case.how, case.rng, shared.stage, other if case.other is not None else None)
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10 > RESIDENT:
            outcome = "memory: resident"
        os.write(results, f"{number} {outcome[:200]}\n".replace("\n", " ").strip().encode() + b"\n")
        if outcome == "memory: resident":
            break


def where(folder: Path) -> str:
    """The assertion that the dead worker spoke of last."""
    text = (folder / "stderr").read_text(errors="replace")
    for line in reversed(text.splitlines()):
        if "ASSERT" in line or "terminate" in line or "what()" in line or re.search(r"\.(cpp|c|h):\d+:", line):
            return re.sub(r"^\S*/", "", line)[:150]
    return text[-100:].replace("\n", " ")


class Worker:
    def __init__(self, cases: Mutations | Types, numbers: Iterator[int], folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.shared = Shared()
        self.shared.case(-1)
        self.reader, writer = os.pipe()
        os.set_blocking(self.reader, False)
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(self.reader)
                work(cases, numbers, self.shared, folder, writer)
                code = 0
            finally:
                os._exit(code)
        os.close(writer)
        self.at = (-1, 0.0)
        self.rest = b""

    def results(self) -> list[tuple[int, str]]:
        try:
            self.rest += os.read(self.reader, 1 << 20)
        except BlockingIOError:
            return []
        *lines, self.rest = self.rest.split(b"\n")
        return [(int(n), what) for n, _, what in (line.decode(errors="replace").partition(" ") for line in lines)]

    def hangs(self) -> bool:
        number, since, _ = self.shared.read()
        if number < 0:
            return False
        if number != self.at[0]:
            self.at = (number, processor_seconds(self.pid))
        return processor_seconds(self.pid) - self.at[1] > SECONDS or time.monotonic() - since > WALL_SECONDS


def fuzz(
    cases: Mutations | Types, numbers: range, *, seconds: float = float("inf"), workers: int = 1, stop: bool = False
) -> tuple[collections.Counter[str], list[Finding]]:
    """Run cases and count their outcomes; findings are the cases that ended a worker, or took too much."""
    os.environ["GGML_NO_BACKTRACE"] = "1"
    shared_memory = Path("/dev/shm")
    scratch = Path(tempfile.mkdtemp(prefix="lloyal-gguf-", dir=shared_memory if shared_memory.is_dir() else None))
    counts: collections.Counter[str] = collections.Counter()
    findings: list[Finding] = []
    end = time.monotonic() + seconds
    live: dict[int, Worker] = {}
    # Worker k takes every workers-th number; its successor goes on behind the one that killed it.
    positions = [numbers.start + k for k in range(workers)]

    def start(k: int) -> None:
        if positions[k] < numbers.stop and time.monotonic() < end:
            live[k] = Worker(cases, iter(range(positions[k], numbers.stop, workers)), scratch / str(k))

    def find(k: int, number: int, what_end: str, stage: str, place: str) -> None:
        what = cases.make(number).what if number >= 0 else ""
        findings.append(Finding(number, what_end, stage, place, what))
        print(f"{findings[-1].kind()}  --only {number}  {what}", file=sys.stderr, flush=True)

    try:
        for k in range(workers):
            start(k)
        while live and not (stop and findings):
            time.sleep(0.02)
            for k, worker in list(live.items()):
                ended, status = os.waitpid(worker.pid, os.WNOHANG)
                over = time.monotonic() > end
                hangs = not ended and worker.hangs()
                if not ended and (hangs or over):
                    os.kill(worker.pid, signal.SIGKILL)
                    _, status = os.waitpid(worker.pid, 0)
                for number, outcome in worker.results():
                    counts[outcome.partition(":")[0]] += 1
                    if outcome.startswith("memory"):
                        find(k, number, "memory", worker.shared.read()[2], outcome)
                if not (ended or hangs or over):
                    continue
                number, _, stage = worker.shared.read()
                os.close(worker.reader)
                positions[k] = max(number + workers, positions[k])
                del live[k]
                if hangs:
                    counts["hang"] += 1
                    find(k, number, "hang", stage, where(worker.folder))
                elif ended and status != 0:
                    counts["death"] += 1
                    name = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {status >> 8}"
                    find(k, number, name, stage, where(worker.folder))
                elif ended and number + workers >= numbers.stop:
                    continue
                start(k)
    finally:
        for worker in live.values():
            os.kill(worker.pid, signal.SIGKILL)
            os.waitpid(worker.pid, 0)
        shutil.rmtree(scratch, ignore_errors=True)
    return counts, findings


def again(cases: Mutations | Types, number: int, keep: Path | None) -> int:
    """One case in this process."""
    from tests.fuzz.gguf_work import use

    case = cases.make(number)
    with tempfile.TemporaryDirectory() as folder:
        path, other = Path(folder) / "case.gguf", Path(folder) / "other.gguf"
        path.write_bytes(case.data)
        if case.other is not None:
            other.write_bytes(case.other)
        if keep is not None:
            keep.write_bytes(case.data)
        print(case.what, flush=True)
        say = lambda stage: print("stage:", stage, flush=True)  # noqa: E731
        print(use(path, case.how, case.rng, say, other if case.other is not None else None))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", default="0")
    parser.add_argument("--count", type=int, default=None, help="files; without end if not given")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--stop", action="store_true", help="end with the first finding")
    parser.add_argument("--how", choices=["model", "vocabulary", "quantize", "adapter"])
    parser.add_argument("--models", help="only recipes whose name this regular expression finds")
    parser.add_argument("--types", action="store_true", help="every type of tensor in every role")
    parser.add_argument("--folder", type=Path, help="with --types: the models of this folder instead of the recipes")
    parser.add_argument("--only", type=int, help="the number of one case, run in this process")
    parser.add_argument("--keep", type=Path, help="with --only: write the file here")
    arguments = parser.parse_args()
    cases: Mutations | Types
    if arguments.types:
        cases = Types(arguments.folder, arguments.models, arguments.seed)
        numbers = range(arguments.start, len(cases.cases))
    else:
        cases = Mutations(arguments.seed, arguments.how, arguments.models)
        numbers = range(arguments.start, sys.maxsize)
    if arguments.only is not None:
        return again(cases, arguments.only, arguments.keep)
    if arguments.count is not None:
        numbers = numbers[: arguments.count]
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))
    counts, findings = fuzz(cases, numbers, seconds=arguments.seconds, workers=arguments.workers, stop=arguments.stop)
    kinds = collections.Counter(finding.kind() for finding in findings)
    for kind, n in kinds.most_common():
        example = next(finding for finding in findings if finding.kind() == kind)
        print(f"{n:5} {kind}\n      --only {example.number}  {example.what}")
    if arguments.stop and findings:
        print(f"found after {time.monotonic() - began:.1f} s")
    n_files = sum(counts.values())
    print(json.dumps({"files": n_files, "seconds": round(time.monotonic() - began, 1), "outcomes": counts,
                      "findings": len(findings), "kinds": len(kinds)}))  # fmt: skip
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
