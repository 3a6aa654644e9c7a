"""Run abuse cases in this process: ``python -P runner.py ROOT MODULE CASE...``.

Each case prints a JSON line when it starts and one when it ends; a process that dies in between has shown which case
killed it.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
import tempfile
import traceback
import types
from pathlib import Path


def find_tests(root: str) -> None:
    """Make ``tests`` importable without putting the checkout on the path, where ``lloyal/`` is not compiled."""
    package = types.ModuleType("tests")
    package.__path__ = [str(Path(root) / "tests")]
    sys.modules["tests"] = package


def say(**line: object) -> None:
    print(json.dumps(line), flush=True)


def main(root: str, module: str, *names: str) -> None:
    find_tests(root)
    lab_module = importlib.import_module("tests.abuse.lab")
    importlib.import_module(f"tests.abuse.{module}")
    for name in names:
        say(case=name, state="running")
        problem = None
        with tempfile.TemporaryDirectory() as folder:
            lab = lab_module.Lab(Path(folder))
            try:
                lab_module.CASES[name].run(lab)
                lab.check()
            except BaseException:
                problem = traceback.format_exc()
            try:
                gc.collect()
                lab.close()
            except BaseException:
                problem = problem or traceback.format_exc()
        say(case=name, state="failed" if problem else "passed", problem=problem)


if __name__ == "__main__":
    main(*sys.argv[1:])
