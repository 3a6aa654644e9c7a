"""Bytes of checkpoints that were damaged: `fuzz_bytes.py` does it, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("fuzz_bytes.py")
MODELS = ("llama", "gemma3", "mamba2", "lfm2", "qwen35")
# Blobs of each of the two kinds, over all models.
N_BLOBS = 200_000 if os.environ.get("LLOYAL_TEST_FULL") else 2_000


@pytest.mark.parametrize("name", MODELS)
def test_no_damage_is_accepted_and_no_forgery_harms(name: str) -> None:
    n = N_BLOBS // len(MODELS)
    # Memory that was freed or never written does not look like zeros.
    env = os.environ | {"MALLOC_PERTURB_": "165"}
    command = [sys.executable, "-P", str(SCRIPT), str(ROOT), name, "0", str(n)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, f"it ended with {done.returncode}: {done.stderr[-3000:]}"
    damaged, forged = map(json.loads, done.stdout.splitlines())
    print(name, damaged, forged)
    assert damaged == {"damaged": n}
    # the parser and what is behind it are both reached
    assert forged["forged"]["refused"] > n // 4
    assert forged["forged"]["accepted and restored"] > n // 20
