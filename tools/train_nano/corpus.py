"""The training text: the Python standard library's own source, in a fixed order with a fixed held-out part.

Knows which files count, how they are split, and how single functions and short chats are cut out of them with
`ast`.  Does not know about tokens, models or training.
"""

from __future__ import annotations

import ast
import hashlib
import platform
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

EXPECTED_PYTHON = "3.11.7"
EXPECTED_SHA256 = "c83034c9103bc7589b578d12531d99e1561101678283efcd87cbfd349d62f5a8"

# Left out: tests, third-party packages, generated tables and files that differ from build to build.
SKIPPED_DIRS = {
    "__phello__",
    "config",
    "encodings",
    "idle_test",
    "lib-dynload",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
    "__pycache__",
}
SKIPPED_FILES = {"html/entities.py"}
SKIPPED_PREFIXES = ("_sysconfigdata", "config-")
HELD_OUT_EVERY = 25
MIN_CHARS, MAX_CHARS = 60, 1200  # of a function used as a document of its own


@dataclass(frozen=True)
class SourceFile:
    """One library file: its path relative to the library's folder, and its text."""

    path: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """The whole text, split; `sha256` covers the paths and bytes of both parts in order."""

    train: list[SourceFile] = field(repr=False)
    held_out: list[SourceFile] = field(repr=False)
    sha256: str = ""

    @property
    def n_bytes(self) -> int:
        return sum(len(f.text.encode()) for f in self.train + self.held_out)


def _wanted(relative: Path) -> bool:
    parts = relative.parts
    if any(part in SKIPPED_DIRS or part.startswith(SKIPPED_PREFIXES) for part in parts):
        return False
    return relative.as_posix() not in SKIPPED_FILES


def load() -> Corpus:
    """Read the running interpreter's standard library."""
    root = Path(sysconfig.get_path("stdlib"))
    digest = hashlib.sha256()
    parts: tuple[list[SourceFile], list[SourceFile]] = ([], [])
    kept = 0
    for relative in sorted((p.relative_to(root) for p in root.rglob("*.py")), key=lambda p: p.as_posix()):
        if not _wanted(relative):
            continue
        raw = (root / relative).read_bytes()
        try:
            text = raw.decode("utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError:
            continue
        if not text.strip():
            continue
        digest.update(relative.as_posix().encode() + b"\0" + raw + b"\0")
        parts[kept % HELD_OUT_EVERY == HELD_OUT_EVERY // 2].append(SourceFile(relative.as_posix(), text))
        kept += 1
    corpus = Corpus(*parts, sha256=digest.hexdigest())
    if EXPECTED_SHA256 and corpus.sha256 != EXPECTED_SHA256:
        print(
            f"warning: corpus of Python {platform.python_version()} is not the one of {EXPECTED_PYTHON} "
            f"the shipped models were trained on ({corpus.sha256} != {EXPECTED_SHA256})"
        )
    return corpus


def _dedent(source: str, column: int) -> str:
    lines = source.split("\n")
    return "\n".join([lines[0], *(ln[column:] if ln[:column].isspace() else ln for ln in lines[1:])])


def _functions(files: list[SourceFile]) -> Iterator[tuple[ast.FunctionDef, str]]:
    """Every function and method that is neither trivial nor long, with its source moved to the left margin."""
    for file in files:
        try:
            tree = ast.parse(file.text)
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                source = ast.get_source_segment(file.text, node)
                if source and MIN_CHARS <= len(source) <= MAX_CHARS:
                    yield node, _dedent(source, node.col_offset)


def functions(files: list[SourceFile], seed: int = 5) -> list[str]:
    """Functions on their own, in a shuffled order."""
    sources = [source for _, source in _functions(files)]
    random.Random(seed).shuffle(sources)
    return sources


def chat_pairs(files: list[SourceFile], seed: int = 7) -> list[tuple[str, str]]:
    """(request, answer) pairs: a function's name and its docstring's first line, then its source."""
    pairs: list[tuple[str, str]] = []
    for node, source in _functions(files):
        doc = ast.get_docstring(node)
        if doc:
            pairs.append((f"Write {node.name}: {doc.strip().splitlines()[0].strip()}", source))
    random.Random(seed).shuffle(pairs)
    return pairs


def prompts(
    files: list[SourceFile], count: int, seed: int = 11, min_chars: int = 160, max_chars: int = 480
) -> list[str]:
    """`count` runs of whole lines from random places, the files taking turns."""
    rng = random.Random(seed)
    long_enough = [f for f in files if len(f.text) > 4 * max_chars]
    found: list[str] = []
    while len(found) < count:
        text = long_enough[len(found) % len(long_enough)].text
        start = text.find("\n", rng.randrange(len(text) - 2 * max_chars)) + 1
        end = text.find("\n", start + rng.randrange(min_chars, max_chars)) + 1
        piece = text[start:end]
        if start and end and piece.strip() and len(piece) <= 2 * max_chars:
            found.append(piece)
    return found
