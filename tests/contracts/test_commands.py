"""The README's commands are the ones that CI runs, and the habits of CONTRIBUTING exist."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib

from tests.contracts.source import LLAMA_CPP, ROOT

TEST_COMMAND = "python3 -m pip install '.[test]' && python3 -m pytest"
DEMO_COMMAND = "python3 -m pip install . && lloyal demo"


def test_readme_names_both_commands():
    readme = (ROOT / "README.md").read_text()
    assert TEST_COMMAND in readme
    assert DEMO_COMMAND in readme


def test_ci_runs_the_readme_command():
    script = ROOT / ".ci" / "run"
    if not script.exists():  # an unpacked sdist has no .ci
        assert not (ROOT / ".git").exists()
        return
    assert os.access(script, os.X_OK)
    assert script.read_text().rstrip().splitlines()[-1] == TEST_COMMAND
    subprocess.run(["bash", "-n", script], check=True)


def test_every_habit_is_a_nox_session():
    sessions = set(re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text(), re.MULTILINE))
    assert {"test", "full", "gpu", "types", "lint", "bench", "wheel", "docs", "sanitize", "nightly"} <= sessions
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    assert set(re.findall(r"nox -s (\w+)", contributing)) <= sessions


def test_the_vendored_source_is_the_locked_one():
    lock = tomllib.loads((ROOT / "vendor" / "llama_cpp.lock").read_text())
    assert re.fullmatch(r"[0-9a-f]{64}", lock["sha256"])
    stamp = LLAMA_CPP / ".lloyal-source"
    if stamp.exists():
        assert stamp.read_text().split()[0] == lock["sha256"]
