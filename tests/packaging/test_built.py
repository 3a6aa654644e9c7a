"""What the built libraries carry of the machine that built them."""

from __future__ import annotations

from pathlib import Path

import pytest

import lloyal
import lloyal.llama.base
from tests.contracts.source import ROOT

INSTALLED = Path(lloyal.llama.base.__file__).parents[1]
LIBRARIES = sorted(path for path in INSTALLED.rglob("*") if path.suffix in (".so", ".dylib", ".pyd"))


@pytest.mark.parametrize("path", LIBRARIES, ids=lambda path: path.name)
def test_no_library_names_the_folder_it_was_built_in(path: Path) -> None:
    """Messages of failed assertions would show it."""
    content = path.read_bytes()
    at = content.find(str(ROOT).encode())
    assert at < 0, content[at : at + 120]


def test_there_are_libraries() -> None:
    assert {path.name.split(".")[0] for path in LIBRARIES} >= {"liblloyal_core", "libllama", "context", "batch"}
