"""Things for threads and processes to be in the middle of."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lloyal

ROOT = Path(__file__).parents[2]


def prompt(model: lloyal.Model, n: int, seed: int = 0) -> list[int]:
    """`n` tokens that the model knows."""
    step = 7 + 2 * seed
    return [(i * step) % len(model.vocab) for i in range(n)]


def batch_of(tokens: list[int], pos0: int = 0, seq_id: int = 0) -> lloyal.Batch:
    batch = lloyal.Batch()
    batch.extend(tokens, pos0, seq_id, "last")
    return batch


def start(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Run `work` in a thread; what it returns or raises ends up in the list."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, result


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Return as soon as the condition holds."""
    event = threading.Event()
    for _ in range(int(seconds / 0.001)):
        if condition():
            return
        event.wait(0.001)
    raise AssertionError("it did not happen")


def python(script: str, *arguments: object, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh interpreter; the models are at ``models.path``."""
    # llama.cpp attaches a debugger to a process that aborts, unless told not to
    environment = os.environ | {"GGML_NO_BACKTRACE": "1"}
    return subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
        check=False,
    )


def silent(script: str, *arguments: object, timeout: float = 120.0) -> None:
    """Run a script that must succeed and say nothing."""
    done = python(script, *arguments, timeout=timeout)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
