"""Reading the project's own source as text: nothing here imports `lloyal`, so no compiler is needed."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "lloyal"
LLAMA_CPP = ROOT / "vendor" / "llama.cpp"

# Folders that hold nothing of ours.
_FOREIGN = {".git", "build", "dist", "llama.cpp", "__pycache__", ".nox", "node_modules", "site"}
_TEXT = {".py", ".pyi", ".pyx", ".pxd", ".cpp", ".hpp", ".md", ".toml", ".txt", ".cmake", ".yaml", ".yml", ".lock", ""}


def files() -> list[Path]:
    """Every text file of the project: what git tracks or would, and in an unpacked sdist everything that is ours."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"], capture_output=True, check=False
    )
    if listed.returncode == 0:
        found = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    else:
        found = [path for path in ROOT.rglob("*") if not _FOREIGN.intersection(path.relative_to(ROOT).parts)]
    return sorted(path for path in found if path.suffix in _TEXT and path.is_file())


def module_name(path: Path) -> str:
    """``lloyal/llama/model.pyx`` is ``lloyal.llama.model``; a package is the name of its folder."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def modules() -> dict[str, list[Path]]:
    """The source files of every module of the package; a Cython module has a .pyx and may have a .pxd."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix in (".py", ".pyx", ".pxd") and path.stat().st_size:
            found.setdefault(module_name(path), []).append(path)
    return found


def strip_comments(text: str) -> str:
    """C or C++ source without comments."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL)


def code_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of Cython or Python source without comments and docstrings; open brackets join lines."""
    blank = re.sub(r'"""(?:\\.|[^\\])*?"""', lambda m: '""' + "\n" * m[0].count("\n"), path.read_text())
    pending, first = "", 0
    for number, line in enumerate(blank.splitlines(), 1):
        code = re.sub(r"#.*", "", line) if line.count('"') % 2 == 0 and '"#' not in line else line
        pending, first = (pending + " " + code.strip(), first) if pending else (code, number)
        if pending.count("(") <= pending.count(")"):
            yield first, pending
            pending = ""


def imports(path: Path) -> Iterator[tuple[int, str, str]]:
    """``(line, module, name)`` of every import and cimport of our own modules; name is empty for a whole module.

    Imports that only a type checker sees do not count.
    """
    if path.suffix == ".py":
        yield from _python_imports(path)
        return
    for number, line in code_lines(path):
        if match := re.match(r"\s*from\s+([\w.]+)\s+c?import\s+(.*)", line):
            for name in re.split(r",\s*", match[2].strip("() ,")):
                yield number, match[1], name.split(" as ")[0].strip()
        elif match := re.match(r"\s*c?import\s+(.*)", line):
            for name in match[1].split(","):
                yield number, name.split(" as ")[0].strip(), ""


def _python_imports(path: Path) -> Iterator[tuple[int, str, str]]:
    tree = ast.parse(path.read_text())
    for_checkers = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for child in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in for_checkers:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module_name(path).split(".")
                package = package if path.stem == "__init__" else package[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            for alias in node.names:
                yield node.lineno, base, alias.name


def public_names(path: Path) -> list[str]:
    """``__all__`` of a source file; empty if it has none."""
    match = re.search(r"^__all__ = (\[.*?\])", path.read_text(), re.MULTILINE | re.DOTALL)
    return ast.literal_eval(match[1]) if match else []
