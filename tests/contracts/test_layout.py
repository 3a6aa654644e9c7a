"""Where things lie: one file a command, one class of ours a file, and names that stay where users import them."""

from __future__ import annotations

import ast
import re

import pytest

from tests.contracts.source import PACKAGE, ROOT
from tests.contracts.test_rings import PLACE

# The places of ARCHITECTURE.md; a new one is written there first.
FOLDERS = {"_cpp", "bench", "branch", "checkpoint", "cli", "libllama", "llama", "models", "native", "speculative"}


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


def test_a_class_is_not_split_into_bases():
    """What ring 1 derives from: the `with` statement, and the handle that others need to know of a context."""
    bases = {
        (match[1], match[2])
        for path in PACKAGE.rglob("*.pyx")
        for match in re.finditer(r"^cdef class (\w+)\((\w+)\)", path.read_text(), re.MULTILINE)
    }
    assert {cls for cls, base in bases if base == "ContextBase"} == {"Context"}
    assert {base for _, base in bases} == {"Closing", "ContextBase"}


def test_a_command_is_a_file():
    """Those that are no command are what all of them share."""
    registered = set(
        re.findall(r"\.command\(\"[\w-]+\"\)\((\w+)\.\w+\)", (PACKAGE / "cli" / "__init__.py").read_text())
    )
    files = {path.stem for path in (PACKAGE / "cli").glob("*.py")} - {"__init__", "program", "options", "output"}
    assert registered == files


def test_the_page_places_changes_where_there_is_something():
    """Twenty changes that contributors will want, each with files that are there."""
    page = (ROOT / "ARCHITECTURE.md").read_text()
    table = page.partition("## Where does a line go")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 20
    for row in rows:
        paths = re.findall(r"`([\w.]+(?:/[\w.]+)+)`", row)
        assert paths, row
        assert all((ROOT / path).exists() for path in paths), row


def test_the_page_has_every_module_in_its_ring():
    page = (ROOT / "ARCHITECTURE.md").read_text()
    shown = {}
    for ring, names in re.findall(r"^\| (\d) \| `([^`]+)` \|", page, re.MULTILINE):
        shown |= dict.fromkeys((name.split("/")[0] for name in names.split()), int(ring))
    top = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.name in FOLDERS} - {
        "__init__",
        "__main__",
    }
    assert shown == {name: PLACE[f"lloyal.{name}"][0] for name in top}


def test_the_page_names_what_there_is():
    """Of how a failure travels: every name in it is one of the sources."""
    page = (ROOT / "ARCHITECTURE.md").read_text()
    table = page.partition("## How a failure travels")[2].partition("\n## ")[0]
    names = set(re.findall(r"`(?:\w+\.)?(\w+)(?:\(\))?`", table)) - {"noexcept"}
    read = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".pyx", ".pxd", ".hpp", ".cpp")]
    sources = "\n".join(path.read_text() for path in [*read, *(ROOT / "vendor").glob("*.h")])
    assert len(names) > 15
    assert {name for name in names if not re.search(rf"\b{name}\b", sources)} == set()
    paths = re.findall(r"`([\w.]+(?:/[\w.]+)+)`", table)
    assert all((ROOT / path).exists() or (PACKAGE / path).exists() for path in paths)
