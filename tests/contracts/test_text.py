"""Bugs and bad habits that a line of text gives away, in every file of the project."""

from __future__ import annotations

import re

import pytest

from tests.contracts.source import PACKAGE, ROOT, code_lines, files

TEXT = files()
SOURCE = sorted(path for path in PACKAGE.rglob("*.py*") if path.suffix in (".py", ".pyx", ".pxd"))

# Patterns are spelled so that this file does not hold what it forbids.
ANYWHERE = {
    "a folder of one machine": r"(?<![\w/.$}])/(?:work|tmp/w|root|home/\w+)/",
    "a package registry's host": r"py[p]i\.org|python[h]osted|crates\.i[o]|np[m]js|anacond[a]\.org|conda-forg[e]\.org",
    "a merge conflict": r"^(?:<{7}|={7}|>{7})(?: |$)",
}
IN_THE_PACKAGE = {
    "print(): use logging, or lloyal.cli.output": r"(?<![\w.])print\(",
    "assert as validation: gone under -O, raise an error that names the value": r"^\s*assert\b",
    "except + without a Status: exceptions leave our C++ as a Status": r"cppclass.*except \+|^\s*Status .*except \+",
    "a swallowed exception": r"^\s*except(?: Exception)?:\s*pass",
}


def grep(path, patterns):
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        for reason, pattern in patterns.items():
            if re.search(pattern, line):
                yield f"{path.relative_to(ROOT)}:{number}: {reason}: {line.strip()[:80]}"


def test_there_is_something_to_read():
    assert ROOT / "README.md" in TEXT
    assert PACKAGE / "_cpp" / "core" / "status.hpp" in TEXT


@pytest.mark.parametrize("path", TEXT, ids=lambda path: str(path.relative_to(ROOT)))
def test_text(path):
    assert not list(grep(path, ANYWHERE))


@pytest.mark.parametrize("path", SOURCE, ids=lambda path: str(path.relative_to(ROOT)))
def test_package_source(path):
    found = [
        f"{path.relative_to(ROOT)}:{number}: {reason}"
        for number, line in code_lines(path)
        for reason, pattern in IN_THE_PACKAGE.items()
        if re.search(pattern, line)
    ]
    assert not found


@pytest.mark.parametrize("bad", ["    print(x)", "assert x", "x = '/wo" + "rk/main/a'", "<" * 7 + " HEAD"])
def test_the_patterns_bite(bad):
    assert any(re.search(pattern, bad) for pattern in (ANYWHERE | IN_THE_PACKAGE).values())
