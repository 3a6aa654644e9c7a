"""Inputs that kill llama.cpp, or make it compute something else, and what they do here (README.md has the table)."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.abuse.lab import CASES, Case

ROOT = Path(__file__).parents[2]
MODULES = sorted(path.stem for path in Path(__file__).parent.glob("cases_*.py"))
for module in MODULES:
    importlib.import_module(f"tests.abuse.{module}")
MODULE_OF = {name: case.run.__module__.rpartition(".")[2] for name, case in CASES.items()}


class Verdicts:
    """What became of each case; the cases of a module share subprocesses until one of them dies."""

    def __init__(self, chosen: list[str]) -> None:
        self.chosen = chosen
        self.problems: dict[str, str | None] = {}

    def problem(self, name: str) -> str | None:
        if name not in self.problems:
            self.run([n for n in self.chosen if MODULE_OF[n] == MODULE_OF[name]])
        return self.problems[name]

    def run(self, names: list[str]) -> None:
        while names:
            command = [
                sys.executable,
                "-P",
                "-X",
                "faulthandler",
                "-W",
                "error",
                str(Path(__file__).with_name("runner.py")),
                str(ROOT),
                MODULE_OF[names[0]],
                *names,
            ]
            # llama.cpp attaches a debugger to a process that aborts, unless told not to
            environment = os.environ | {"GGML_NO_BACKTRACE": "1"}
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
            lines = [json.loads(line) for line in done.stdout.splitlines()]
            for line in lines:
                if line["state"] != "running":
                    self.problems[line["case"]] = line["problem"]
            left = [name for name in names if name not in self.problems]
            if not lines:
                pytest.fail(f"the runner did not start: {done.stderr}")
            if done.returncode != 0 or left:
                victim = lines[-1]["case"]
                self.problems[victim] = (
                    f"the process ended with {done.returncode} in or after this case\n{done.stderr[-3000:]}"
                )
            names = [name for name in names if name not in self.problems]


@pytest.fixture(scope="module")
def verdicts(request: pytest.FixtureRequest) -> Verdicts:
    chosen = [
        item.callspec.params["name"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == "test_refused_and_still_usable"
    ]
    return Verdicts(chosen)


@pytest.mark.parametrize("name", CASES)
def test_refused_and_still_usable(name: str, verdicts: Verdicts) -> None:
    problem = verdicts.problem(name)
    assert problem is None, problem


def _table() -> str:
    def order(entry: Case) -> tuple[str, int, str]:
        kind, number = re.fullmatch(r"([A-Z]?)(\d+)\w*", entry.number).groups()
        return kind, int(number), entry.number

    rows = [
        f"| {c.number} | {c.given} | {c.upstream} | {c.ours} | `{c.name}` |" for c in sorted(CASES.values(), key=order)
    ]
    return "\n".join(["| # | input | llama.cpp | here | case |", "|---|---|---|---|---|", *rows])


def test_the_table_lists_every_case() -> None:
    """README.md holds one row for each case; this prints the table when they differ."""
    text = Path(__file__).with_name("README.md").read_text()
    table = _table()
    assert table in text, f"the table in README.md should be\n{table}"


FORBIDDEN = {
    "common_memory": "its seq_rm aborts on a rollback that the memory refuses",
    "common_prompt_checkpoint": "its update and load abort on a size that does not match",
    "common_speculative": "it aborts on sequence ids out of range, drafts that were never made, and missing files",
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_nothing_uses(name: str) -> None:
    """Parts of llama.cpp's common library that abort on ordinary mistakes, not for libraries (rows 27, 28)."""
    ours = [path for path in (ROOT / "lloyal").rglob("*") if path.suffix in {".py", ".pyx", ".pxd", ".cpp", ".hpp"}]
    assert len(ours) > 20
    using = [path for path in ours if re.search(rf"\b{name}_?\w*", path.read_text(encoding="utf-8"))]
    assert not using, f"{FORBIDDEN[name]}: {using}"
