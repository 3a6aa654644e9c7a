"""docs/liblloyal.md and the tests that carry its numbers say the same."""

from __future__ import annotations

import ast
import re
from collections import Counter

import pytest

from tests.branches.reference import HERE, INVARIANTS, NUMBERS, TABLE, behaviours, carried


def rows() -> list[list[str]]:
    """The cells of every row, the number first."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in TABLE.read_text().splitlines() if "|" in line]
    return [row for row in cells if re.fullmatch(r"[NI]?\d+", row[0])]


def test_every_number_has_one_row():
    assert [row[0] for row in rows()] == [*NUMBERS, *INVARIANTS]


def test_a_row_names_the_tests_that_carry_its_number():
    for number, what, *here, tests in rows():
        named = re.findall(r"`(\w+)`", tests)
        assert what, number
        assert tests == ", ".join(f"`{name}`" for name in named), number
        assert named == sorted(set(carried().get(number, []))), number
        if number in INVARIANTS:
            assert named, number
            continue
        kind, _, reason = here[0].partition(": ")
        assert kind in ("reached", "bettered", "not applicable"), number
        assert bool(reason) is (kind != "reached"), number
        assert bool(named) is (kind != "not applicable"), number


def test_a_name_stands_for_one_test():
    names = [
        node.name
        for path in HERE.glob("test_reference_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    assert [name for name, n in Counter(names).items() if n > 1] == []


def test_a_number_that_there_is_not():
    with pytest.raises(ValueError, match="169"):
        behaviours("168", "169")
