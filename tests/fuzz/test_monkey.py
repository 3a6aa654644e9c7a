"""The short form of the API monkey: a seed that stays, and one of the day."""

from __future__ import annotations

import datetime

import pytest

from tests.fuzz.monkey import LINES, Monkey, show

HISTORIES = 5


@pytest.mark.parametrize("seed", ["a", str(datetime.date.today())])
def test_no_call_ends_the_process(seed: str) -> None:
    monkey = Monkey(seed)
    try:
        found = monkey.run(300.0, most=HISTORIES)
        if found is not None:
            lines, problem = found
            pytest.fail(show(monkey.shrink(lines, problem, 60.0), problem))
        assert monkey.lines == HISTORIES * LINES
    finally:
        monkey.close()


def test_what_raises_the_wrong_thing_is_found() -> None:
    """The oracle is awake: a foreign exception, a death and a hang are told from what is allowed."""
    monkey = Monkey("awake")
    try:
        assert monkey.fails(["keep(lloyal.devices())", "int('x')", "[].pop()"]) is None
        cases = {
            "1 // 0": "ZeroDivisionError",
            "__import__('os').abort()": "died",
            "__import__('ctypes').string_at(0)": "died",
            "together('[].pop()', '1 // 0')": "ZeroDivisionError",
        }
        for line, kind in cases.items():
            problem = monkey.fails(["keep(lloyal.devices())", line])
            assert problem is not None
            assert problem["kind"] == kind
        lines = ["keep(lloyal.devices())", "1 + 1", "1 // 0", "2 + 2"]
        problem = monkey.fails(lines)
        assert problem is not None
        assert monkey.shrink(lines, problem, 30.0) == ["1 // 0"]
    finally:
        monkey.close()
