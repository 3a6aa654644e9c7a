"""The short form of the GGUF mutator, and its long one on request."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("gguf.py")


def run(*arguments: str, timeout: float = 300) -> dict[str, Any]:
    command = [sys.executable, "-P", str(SCRIPT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    assert done.returncode == 0, f"{done.stdout}{done.stderr[-3000:]}"
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert summary["findings"] == 0
    return summary


@pytest.mark.parametrize("seed", ["1", datetime.date.today().strftime("%Y%m%d")])
def test_no_mutated_file_ends_the_process(seed: str) -> None:
    outcomes = run("--seed", seed, "--count", "150", "--seconds", "120")["outcomes"]
    # The loader and what is behind it are both reached.
    assert outcomes["used"] > 30
    assert outcomes["LoadFailed"] > 30


def test_no_type_of_a_tensor_ends_the_process() -> None:
    outcomes = run("--types", "--seed", datetime.date.today().strftime("%Y%m%d"), "--count", "150")["outcomes"]
    assert outcomes["used"] > 100  # Errors of making a context, and of decoding, are among the uses.


@pytest.mark.full
def test_no_file_of_many_ends_the_process() -> None:
    seed = datetime.date.today().strftime("%Y%m%d")
    run("--seed", seed, "--count", "100000", "--workers", "2", timeout=4 * 3600)


@pytest.mark.full
def test_no_type_in_any_role_ends_the_process() -> None:
    run("--types", "--workers", "2", timeout=3600)
