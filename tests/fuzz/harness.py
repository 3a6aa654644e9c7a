"""What generators share: a worker process that may die, and cutting down a list of operations that fails."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


SLEEPS = 6  # times as long by the clock: a process that waits for ever takes no processor time


def processor_seconds(pid: int) -> float:
    """What a process has used of the processor: a loaded machine does not change it much. 0 where that is not known."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Worker:
    """A process of a module of ``tests.fuzz`` that answers requests, and is started again when it dies or hangs.

    It hangs when an answer takes more than `seconds` of processor time, or some times that by the clock.
    """

    def __init__(self, module: str, seconds: float = 30.0) -> None:
        self.module = module
        self.seconds = seconds
        self.process: subprocess.Popen[bytes] | None = None
        self.buffer = b""
        self.spoke = False
        self.errors = Path(tempfile.mkstemp(prefix="lloyal-fuzz-", suffix=".log")[1])

    def start(self) -> subprocess.Popen[bytes]:
        self.buffer = b""
        self.spoke = False
        with self.errors.open("wb") as errors:
            return subprocess.Popen(
                [sys.executable, "-P", "-X", "faulthandler", str(ROOT / "tests/fuzz/serve.py"), str(ROOT), self.module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                # llama.cpp attaches a debugger to a process that aborts, unless told not to; memory that was freed or
                # never written does not look like zeros
                env=os.environ | {"GGML_NO_BACKTRACE": "1", "MALLOC_PERTURB_": "165"},
            )

    def ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
        """The answer to a request and the operations that were announced. A death is an answer too."""
        if self.process is not None and self.process.poll() is not None:
            self.stop()
        if self.process is None:
            self.process = self.start()
        assert self.process.stdin is not None
        ops: list[Any] = []
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return self.died(), ops
        deadline = time.monotonic() + SLEEPS * self.seconds
        most = processor_seconds(self.process.pid) + self.seconds
        while True:
            line = self.line(deadline, most)
            if line is None:
                return self.died(), ops
            found = json.loads(line)
            if "op" in found:
                ops.append(found["op"])
            else:
                return found["done"], ops

    def line(self, deadline: float, most: float) -> bytes | None:
        assert self.process is not None
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self.buffer:
                if not selector.select(1.0):
                    if time.monotonic() > deadline or processor_seconds(self.process.pid) > most:
                        return None
                    continue
                got = os.read(self.process.stdout.fileno(), 1 << 16)
                if not got:
                    return None
                self.buffer += got
        line, self.buffer = self.buffer.split(b"\n", 1)
        self.spoke = True
        return line

    def died(self) -> dict[str, Any]:
        assert self.process is not None
        try:
            self.process.wait(0.5)
            code = self.process.returncode
            if code >= 0 and not self.spoke:
                text = self.errors.read_text(errors="replace")
                raise RuntimeError(f"{self.module} did not start, it ended with {code}:\n{text[-2000:]}")
            what = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            kind = "died"
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            what, kind = f"no answer for {self.seconds:.0f} s", "hangs"
        text = self.errors.read_text(errors="replace")
        self.stop()
        return {"problem": {"kind": kind, "message": f"{what}\n{text[-2000:]}"}, "counts": {}}

    def close(self) -> None:
        self.stop()
        self.errors.unlink(missing_ok=True)

    def stop(self) -> None:
        if self.process is not None:
            end_worker(self.process)
            self.process = None


def end_worker(process: subprocess.Popen[bytes]) -> None:
    """Kill a worker and close its pipes."""
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        with contextlib.suppress(BrokenPipeError):
            if stream is not None:
                stream.close()


def shrink(ops: list[Any], fails: Callable[[list[Any]], bool], seconds: float) -> list[Any]:
    """Drop operations, many at a time and then one by one, while what is left still fails."""
    deadline = time.monotonic() + seconds
    size = max(1, len(ops) // 2)
    while time.monotonic() < deadline:
        at, dropped = 0, False
        while at < len(ops) and time.monotonic() < deadline:
            less = ops[:at] + ops[at + size :]
            if len(less) < len(ops) and fails(less):
                ops, dropped = less, True
            else:
                at += size
        if size == 1 and not dropped:
            break
        size = max(1, size // 2)
    return ops
