"""What sequences must hold, as lists of rows: nothing here knows how a cache works.

A row is a position and a content id, fresh for every row that is computed. How a content comes about is its recipe:
steps on one sequence, alone in a context, that lead to the same rows. Everything is immutable, so that a checkpoint or
a saved state is a reference.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

END = 2**31 - 1

# ("t", pos, token, adapter), ("e", pos, number of an embedding row, adapter): a row that is computed.
# ("rm", p0, p1), ("add", p0, p1, delta), ("div", p0, p1, d): as in llama.h.
# ("take", recipe, p0, p1): rows of another sequence.
# ("edited",): bytes that nobody computed.
Step = tuple[Any, ...]
Recipe = tuple[Step, ...]

_ids = itertools.count(1)


def fresh() -> int:
    return next(_ids)


@dataclasses.dataclass(frozen=True)
class Content:
    """What one sequence holds: rows in order of position, its recipe, and the id of its recurrent state."""

    rows: tuple[tuple[int, int], ...] = ()
    recipe: Recipe = ()
    state: int | None = None

    @property
    def begin(self) -> int:
        return self.rows[0][0] if self.rows else 0

    @property
    def end(self) -> int:
        return self.rows[-1][0] + 1 if self.rows else 0

    @property
    def n(self) -> int:
        return len(self.rows)

    def positions(self) -> list[int]:
        return [pos for pos, _ in self.rows]

    def between(self, p0: int, p1: int) -> tuple[tuple[int, int], ...]:
        return tuple(row for row in self.rows if p0 <= row[0] < p1)


EMPTY = Content()


def is_row(step: Step) -> bool:
    return step[0] in ("t", "e")


def computed(content: Content, pos: int, row: int, step: Step) -> Content:
    """With one more row at the end (M-RoPE: or at the position of the last)."""
    return Content((*content.rows, (pos, row)), (*content.recipe, step), content.state)


def removed(content: Content, p0: int, p1: int) -> Content:
    """Without the rows of [p0, p1); a recurrent state goes back, or is gone."""
    rows = tuple(row for row in content.rows if not p0 <= row[0] < p1)
    if len(rows) == content.n:
        return content
    if not rows:
        return EMPTY
    state = fresh() if content.state is not None else None
    recipe = content.recipe
    if rows[-1][0] < p0:
        while recipe and is_row(recipe[-1]) and recipe[-1][1] >= p0:
            recipe = recipe[:-1]
        if all(map(is_row, recipe)):
            return Content(rows, recipe, state)
        p1 = END
    return Content(rows, (*recipe, ("rm", p0, p1)), state)


def taken(there: Content, source: Content, p0: int, p1: int) -> Content:
    """`there` with rows [p0, p1) of `source` as well; the state of `source` if it has one."""
    rows = source.between(p0, p1)
    if not rows or all(row in there.rows for row in rows):
        return there if source.state is None else Content(there.rows, there.recipe, source.state)
    if not there.rows:
        return removed(removed(source, p1, END), -1, p0)
    merged = tuple(sorted({*there.rows, *rows}))
    return Content(merged, (*there.recipe, ("take", source.recipe, p0, p1)), source.state)


def clash(there: Content, source: Content, p0: int, p1: int) -> bool:
    """True if both hold something at one position in the range, and not the same."""
    mine: dict[int, set[int]] = {}
    other: dict[int, set[int]] = {}
    for rows, found in ((there.rows, mine), (source.rows, other)):
        for pos, row in rows:
            if p0 <= pos < p1:
                found.setdefault(pos, set()).add(row)
    return any(pos in mine and mine[pos] != rows for pos, rows in other.items())


def moved(content: Content, p0: int, p1: int, step: Step) -> Content | None:
    """After `seq_add` or `seq_div` of [p0, p1): the rows there are other content. None if rows would collide."""
    change = (lambda pos: pos + step[3]) if step[0] == "add" else (lambda pos: pos // step[3])
    rows, places = [], set()
    for pos, row in content.rows:
        if p0 <= pos < p1:
            rows.append((change(pos), fresh()))
            places.add(change(pos))
        else:
            rows.append((pos, row))
    if any(pos in places for pos, _ in content.rows if not p0 <= pos < p1) or any(pos < 0 for pos, _ in rows):
        return None
    rows.sort(key=lambda row: row[0])
    return Content(tuple(rows), (*content.recipe, step), content.state)


def edited(content: Content) -> Content:
    """Other bytes at the same positions."""
    rows = tuple((pos, fresh()) for pos, _ in content.rows)
    return Content(rows, (("edited", fresh()),), fresh() if content.state is not None else None)


def groups(content: Content) -> dict[int, tuple[int, ...]]:
    """The rows at each position; more than one with M-RoPE, or after a division."""
    found: dict[int, tuple[int, ...]] = {}
    for pos, row in content.rows:
        found[pos] = (*found.get(pos, ()), row)
    return {pos: tuple(sorted(rows)) for pos, rows in found.items()}
