"""One list of public names: `__all__`, the stubs and the documentation agree."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys

import pytest

from tests.contracts.source import PACKAGE, ROOT, modules, public_names

# What is imported by its users. Ring 1's modules are reached through `lloyal.llama`; the rest of these are commands.
HIDDEN = (
    "lloyal.llama.",
    "lloyal.native",
    "lloyal.checkpoint.",
    "lloyal.cli",
    "lloyal.demo",
    "lloyal.bench",
    "lloyal.terminal",
    "lloyal.__main__",
)
PUBLIC = {
    name: paths[0]
    for name, paths in modules().items()
    if paths[0].suffix == ".py" and public_names(paths[0]) and not name.startswith(HIDDEN)
}
CYTHON = sorted(path for ring1 in ("llama", "native") for path in (PACKAGE / ring1).glob("*.pyx"))


def test_stubs_are_what_the_source_says():
    """`python tools/stubs.py` writes them; they are committed so that an editor needs no build."""
    run = subprocess.run([sys.executable, "-P", ROOT / "tools" / "stubs.py", "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("path", CYTHON, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_every_cython_module_says_what_is_public(path):
    assert re.search(r"^__all__ = \[", path.read_text(), re.MULTILINE)
    names = public_names(path)
    assert names == sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name)), "sort __all__"


@pytest.mark.parametrize("path", CYTHON, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_stub_defines_exactly_what_is_public(path):
    tree = ast.parse(path.with_suffix(".pyi").read_text())
    defined = {node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    defined |= {node.target.id for node in tree.body if isinstance(node, ast.AnnAssign)}
    assert defined == set(public_names(path))


def docstrings(tree: ast.Module, public: list[str]) -> dict[str, str | None]:
    """Docstrings of the public classes and functions."""
    found: dict[str, str | None] = {}
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name in public:
            found[node.name] = ast.get_docstring(node)
    return found


PUBLIC_FILES = [*PUBLIC.values(), *(path.with_suffix(".pyi") for path in CYTHON)]


@pytest.mark.parametrize("path", PUBLIC_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_public_has_a_docstring(path):
    tree = ast.parse(path.read_text())
    names = public_names(path)
    missing = [name for name, text in docstrings(tree, names).items() if not text]
    assert ast.get_docstring(tree), "the module has no docstring"
    assert not missing


@functools.cache
def origin(name: str) -> str:
    """Where a name was defined: ``lloyal.Batch`` and ``lloyal.llama.Batch`` are ``lloyal.llama.batch.Batch``."""
    module, _, last = name.rpartition(".")
    path = next((p for p in modules().get(module, []) if p.suffix == ".py"), None)
    for node in ast.walk(ast.parse(path.read_text())) if path else ():
        if isinstance(node, ast.ImportFrom) and node.module and any((a.asname or a.name) == last for a in node.names):
            return origin(f"{node.module}.{last}") if f"{node.module}.{last}" != name else name
    return name


@functools.cache
def documented() -> set[str]:
    """The names that the site documents: ``::: lloyal.Name``, or ``::: lloyal.module`` for all of its names."""
    pages = "\n".join(path.read_text() for path in sorted((ROOT / "docs").rglob("*.md")))
    found = set()
    for name in re.findall(r"^::: ([\w.]+)$", pages, re.MULTILINE):
        found.add(origin(name))
        found |= {origin(f"{name}.{member}") for path in modules().get(name, []) for member in public_names(path)}
    return found


@pytest.mark.parametrize("module", sorted(PUBLIC))
def test_what_is_public_is_documented(module):
    names = [name for name in public_names(PUBLIC[module]) if f"{module}.{name}" not in modules()]
    missing = [name for name in names if origin(f"{module}.{name}") not in documented()]
    assert not missing, f"docs/api has no `::: {module}.NAME` for {missing}"


def test_what_is_documented_is_public():
    public = {origin(f"{module}.{name}") for module in PUBLIC for name in public_names(PUBLIC[module])}
    assert documented() <= public | set(PUBLIC)
