"""``python -P serve.py ROOT MODULE``: run `main()` of a module of ``tests.fuzz`` with the checkout off the path."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path


def find_tests(root: str | Path) -> None:
    """Make ``tests`` importable without putting the checkout on the path, where ``lloyal/`` is not compiled."""
    if "tests" not in sys.modules:
        package = types.ModuleType("tests")
        package.__path__ = [str(Path(root) / "tests")]
        sys.modules["tests"] = package


if __name__ == "__main__":
    find_tests(sys.argv[1])
    importlib.import_module(f"tests.fuzz.{sys.argv[2]}").main()
