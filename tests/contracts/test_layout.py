"""Where things lie: one file a command, one class of ours a file, and names that stay where users import them."""

from __future__ import annotations

import ast
import importlib
import re

import pytest

from tests.contracts.source import PACKAGE

# The places of ARCHITECTURE.md; a new one is written there first.
FOLDERS = {"_cpp", "bench", "checkpoint", "cli", "libllama", "llama", "models", "native"}


def test_the_folders_are_the_known_ones():
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} == FOLDERS


def classes(name: str) -> set[str]:
    return {node.name for node in ast.parse((PACKAGE / name).read_text()).body if isinstance(node, ast.ClassDef)}


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("model.py", "Model"),
        ("context.py", "Context"),
        ("checkpoint/value.py", "Checkpoint"),
        ("checkpoint/budget.py", "Checkpoints"),
    ],
)
def test_a_class_is_in_the_file_of_its_noun(file, name):
    assert classes(file) == {name}


def test_a_command_is_a_file():
    """Those that are no command are what all of them share."""
    registered = set(
        re.findall(r"\.command\(\"[\w-]+\"\)\((\w+)\.\w+\)", (PACKAGE / "cli" / "__init__.py").read_text())
    )
    files = {path.stem for path in (PACKAGE / "cli").glob("*.py")} - {"__init__", "program", "options", "output"}
    assert registered == files


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("lloyal.checkpoint", ["Checkpoint", "Checkpoints", "Context", "Model"]),
        ("lloyal.cli", ["app", "main"]),
        ("lloyal.bench", ["Timing", "alternate", "measure_checkpoints", "plot_checkpoints", "ratio", "timed"]),
    ],
)
def test_names_stay_where_users_import_them(module, names):
    for name in names:
        assert getattr(importlib.import_module(module), name)


def test_a_name_that_is_not_there_is_refused():
    with pytest.raises(AttributeError, match="Modle"):
        importlib.import_module("lloyal.checkpoint").Modle  # noqa: B018
