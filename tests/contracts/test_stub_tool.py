"""The tool that writes the stubs: what it makes of Cython, and that it refuses to guess."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.contracts.source import ROOT


@pytest.fixture
def tool(tmp_path, monkeypatch) -> ModuleType:
    """The tool, looking at a ring 1 of its own in `tmp_path`."""
    spec = importlib.util.spec_from_file_location("stubs_tool", ROOT / "tools" / "stubs.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "LLAMA", tmp_path)
    monkeypatch.setattr(module, "RING1", [tmp_path])
    return module


HEAD = '# cython: language_level=3\n"""About."""\n\n__all__ = ["Thing"]\n\n\n'


def stub(tool: ModuleType, folder: Path, body: str, pxd: str = "") -> str:
    (folder / "thing.pyx").write_text(HEAD + body)
    (folder / "thing.pxd").write_text(pxd)
    text = tool.stub_of(folder / "thing.pyx")
    ast.parse(text)
    return text


def method(signature: str) -> str:
    return f'cdef class Thing:\n    """A thing."""\n\n    {signature}\n        pass\n'


@pytest.mark.parametrize(
    ("cython", "python"),
    [
        ("def go(self, int index=-1) -> int:", "def go(self, index: int = -1) -> int: ..."),
        ("def go(self, Thing other not None) -> None:", "def go(self, other: Thing) -> None: ..."),
        (
            "def go(self, bint all=True, *, size_t n=0) -> bool:",
            "def go(self, all: bool = True, *, n: int = 0) -> bool: ...",
        ),
        (
            "def go(self, x: dict[str, int] | None = None) -> str:",
            "def go(self, x: dict[str, int] | None = None) -> str: ...",
        ),
        ("cpdef int go(self) except -1:", "def go(self) -> int: ..."),
        ("def __eq__(self, other):", "def __eq__(self, other: object) -> bool: ..."),
        ("def __exit__(self, *exc_info):", "def __exit__(self, *exc_info: object) -> None: ..."),
    ],
)
def test_signatures(tool, tmp_path, cython, python):
    assert python in stub(tool, tmp_path, method(cython))


@pytest.mark.parametrize(
    "untyped",
    [
        "def go(self, x) -> None:",
        "def go(self, int x):",
        "def go(self, x=1) -> None:",
        "def go(self, x: Unheard) -> None:",
    ],
)
def test_a_missing_type_is_an_error(tool, tmp_path, untyped):
    with pytest.raises(tool.StubError):
        stub(tool, tmp_path, method(untyped))


def test_what_is_not_public_is_left_out(tool, tmp_path):
    text = stub(
        tool,
        tmp_path,
        method("def _hidden(self, x):") + "\n\ndef helper(x):\n    pass\n\n\ncdef int inner(int x):\n    pass\n",
    )
    assert "hidden" not in text
    assert "helper" not in text
    assert "inner" not in text


def test_attributes_come_from_the_pxd(tool, tmp_path):
    pxd = "cdef class Thing:\n    cdef readonly object path  # str\n    cdef readonly int n\n    cdef int secret\n"
    text = stub(tool, tmp_path, method("def go(self) -> None:"), pxd)
    assert "    @property\n    def path(self) -> str: ..." in text
    assert "    @property\n    def n(self) -> int: ..." in text
    assert "secret" not in text
    with pytest.raises(tool.StubError, match="path"):
        stub(tool, tmp_path, method("def go(self) -> None:"), pxd.replace("  # str", ""))


def test_overloads(tool, tmp_path):
    body = method(
        "# @overload (self, n: None = None) -> bytes\n    # @overload (self, n: int) -> int\n    def go(self, n=None):"
    )
    text = stub(tool, tmp_path, body)
    assert "from typing import overload" in text
    assert text.count("@overload") == 2
    assert "def go(self, n: int) -> int: ..." in text


def test_keywords_are_the_fields_of_a_dataclass(tool, tmp_path):
    (tmp_path / "params.py").write_text("class Params:\n    size: int = 3\n    name: str | None = None\n")
    text = stub(tool, tmp_path, method("def __init__(self, **keywords: Unpack[Params]):"))
    assert "def __init__(self, *, size: int = ..., name: str | None = ...) -> None: ..." in text


def test_property_with_setter(tool, tmp_path):
    body = method("@property\n    def n(self) -> int:") + "\n    @n.setter\n    def n(self, int value):\n        pass\n"
    text = stub(tool, tmp_path, body)
    assert "    @n.setter\n    def n(self, value: int) -> None: ..." in text


def test_check_reports_a_stale_stub(tool, tmp_path, monkeypatch, capsys):
    (tmp_path / "thing.pyx").write_text(HEAD + method("def go(self) -> int:"))
    monkeypatch.setattr(sys, "argv", ["stubs.py"])
    assert tool.main() == 0
    monkeypatch.setattr(sys, "argv", ["stubs.py", "--check"])
    assert tool.main() == 0
    (tmp_path / "thing.pyx").write_text(HEAD + method("def go(self) -> str:"))
    assert tool.main() == 1
    assert "+    def go(self) -> str" in capsys.readouterr().out
