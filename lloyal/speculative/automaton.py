"""Every part of all texts seen, and what followed it how often: a suffix automaton that grows token by token."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from typing import Self

__all__ = ["Automaton"]

DEEPEST = 16  # shorter ends of a text that count what follows them, the longest first; repetitive texts have many


class Automaton:
    """States stand for parts of texts that have occurred at the same places; state 0 for the empty one.

    A text is read from state 0 on. Texts that begin alike share their states, so one that is read again adds nothing.
    Each token costs a few steps, however long the texts are.
    """

    __slots__ = ("length", "link", "more", "n_tokens", "times", "to", "token", "total")

    def __init__(self) -> None:
        self.n_tokens = 0  # that have cost states, two at most; those of equal beginnings once
        self.length = array("i", [0])  # of the longest part that a state stands for
        self.link = array("i", [-1])  # to the longest end of it that has occurred elsewhere too
        # The most frequent token that followed, of those the latest (-1: none has), and how often; then how often any.
        self.token, self.to = array("i", [-1]), array("i", [-1])
        self.times, self.total = array("q", [0]), array("q", [0])
        # All of them where there are several, as [to, times]; that of `token` may be out of date.
        self.more: dict[int, dict[int, list[int]]] = {}

    def __len__(self) -> int:
        return len(self.length)

    def find(self, state: int, token: int) -> int:
        """The state behind a token; -1: it never followed."""
        if self.token[state] == token:
            return self.to[state]
        edges = self.more.get(state)
        edge = edges.get(token) if edges is not None else None
        return -1 if edge is None else edge[0]

    def read(self, state: int, tokens: Iterable[int], again: bool) -> int:
        """Go on with a text whose whole beginning `state` stands for; with `again` what is known counts once more."""
        length, link, own, find = self.length, self.link, self.token, self.find
        for token in tokens:
            at = state
            found = find(at, token)
            if found >= 0:
                if length[found] == length[at] + 1:
                    state = found
                else:  # known in the middle of texts, but not as the beginning of one
                    state = self._split(at, token, found)
                    self.n_tokens += 1
                if again:
                    self._count(at, token)
                continue
            new = self._add(length[at] + 1, 0)
            self.n_tokens += 1
            while at >= 0 and found < 0:
                if own[at] < 0:
                    own[at], self.to[at], self.times[at], self.total[at] = token, new, 1, 1
                else:
                    self._another(at, token, new)
                at = link[at]
                if at >= 0:
                    found = find(at, token)
            if at >= 0:
                link[new] = found if length[found] == length[at] + 1 else self._split(at, token, found)
                self._count(at, token)
            state = new
        return state

    def follow(self, state: int, n: int, token: int) -> tuple[int, int]:
        """The longest end of a text that occurs here: its state and its length, a token later."""
        found = self.find(state, token)
        while found < 0 and state > 0:
            state = self.link[state]
            n = self.length[state]
            found = self.find(state, token)
        return (found, n + 1) if found >= 0 else (0, 0)

    def followed(self, state: int, n: int) -> tuple[int, int]:
        """The longest end of what a state stands for (of `n` tokens) that something has followed."""
        while self.token[state] < 0 and state > 0:
            state = self.link[state]
            n = self.length[state]
        return state, n

    def to_bytes(self) -> bytes:
        """All of it, for `from_bytes`."""
        for state, several in self.more.items():
            self._keep_best(several, state)
        edges = [(at, token, to, n) for at, several in self.more.items() for token, (to, n) in several.items()]
        columns = [array("q", column) for column in (zip(*edges, strict=True) if edges else ((),) * 4)]
        parts = [array("q", [self.n_tokens, len(self), len(edges)]), *self._columns(), *columns]
        return b"".join(_little(part).tobytes() for part in parts)

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Self:
        """What `to_bytes` gave; `ValueError` for what it cannot have given."""
        self, rest = cls(), memoryview(data)

        def take(kind: str, n: int) -> array[int]:
            nonlocal rest
            column = array(kind)
            size = n * column.itemsize
            if n < 0 or len(rest) < size:
                raise ValueError("it is cut short")
            column.frombytes(rest[:size])
            rest = rest[size:]
            return _little(column)

        self.n_tokens, n, n_edges = take("q", 3)
        for name, column in zip(self.COLUMNS, self._columns(), strict=True):
            setattr(self, name, take(column.typecode, n))
        for at, token, to, times in zip(*(take("q", n_edges) for _ in range(4)), strict=True):
            self.more.setdefault(at, {})[token] = [to, times]
        if len(rest):
            raise ValueError(f"{len(rest)} bytes are too many")
        self._check()
        return self

    COLUMNS = ("length", "link", "token", "to", "times", "total")

    def _columns(self) -> list[array[int]]:
        return [getattr(self, name) for name in self.COLUMNS]

    def _check(self) -> None:
        """What reading and guessing rely on: links that go to shorter parts, which have been followed by the same."""
        n, length, link = len(self), self.length, self.link
        sound = n > 0 and 0 <= self.n_tokens < 2**31 and n <= 1 + 2 * self.n_tokens and (length[0], link[0]) == (0, -1)
        sound = sound and all(
            0 <= at < n and len(edges) > 1 and self.token[at] in edges for at, edges in self.more.items()
        )
        for at in range(n if sound else 0):
            edges = self.more.get(at) or {self.token[at]: [self.to[at], self.times[at]]}
            some = self.token[at] >= 0
            sound = sound and (some or at not in self.more)
            sound = sound and (at == 0 or (0 <= link[at] < n and length[link[at]] < length[at]))
            sound = sound and (edges[self.token[at]] == [self.to[at], self.times[at]])
            sound = sound and (self.total[at] == sum(times for _, times in edges.values()) < 2**62)
            for token, (to, times) in edges.items() if some else ():
                sound = sound and 0 <= token < 2**31 and 0 < to < n and length[to] > length[at] and times > 0
                sound = sound and (at == 0 or self.find(link[at], token) >= 0)
        if not sound:
            raise ValueError("it contradicts itself")

    def _add(self, length: int, link: int) -> int:
        self.length.append(length)
        self.link.append(link)
        self.token.append(-1)
        self.to.append(-1)
        self.times.append(0)
        self.total.append(0)
        return len(self.length) - 1

    def _another(self, at: int, token: int, to: int) -> None:
        edges = self.more.get(at)
        if edges is None:
            edges = self.more[at] = {}
        self._keep_best(edges, at)
        edges[token] = [to, 1]
        self.total[at] += 1
        if self.times[at] == 1:
            self.token[at], self.to[at] = token, to

    def _keep_best(self, edges: dict[int, list[int]], at: int) -> None:
        edges[self.token[at]] = [self.to[at], self.times[at]]

    def _count(self, at: int, token: int) -> None:
        """The token has followed this part once more, and all shorter ends of it."""
        own, times, total, link = self.token, self.times, self.total, self.link
        for _ in range(DEEPEST):
            total[at] += 1
            if own[at] == token:
                times[at] += 1
            else:
                edges = self.more[at]
                edge = edges[token]
                edge[1] += 1
                if edge[1] >= times[at]:
                    self._keep_best(edges, at)
                    own[at], self.to[at], times[at] = token, edge[0], edge[1]
            at = link[at]
            if at < 0:
                break

    def _split(self, at: int, token: int, state: int) -> int:
        """Of the parts that `state` stands for the shorter ones get another: up to what `token` makes of `at`."""
        link, edges = self.link, self.more.get(state)
        part = self._add(self.length[at] + 1, link[state])
        self.token[part], self.to[part] = self.token[state], self.to[state]
        self.times[part], self.total[part] = self.times[state], self.total[state]
        if edges is not None:
            self.more[part] = {other: list(edge) for other, edge in edges.items()}
        link[state] = part
        while at >= 0 and self.find(at, token) == state:
            if self.token[at] == token:
                self.to[at] = part
            else:
                self.more[at][token][0] = part
            at = link[at]
        return part


def _little(column: array[int]) -> array[int]:
    """The column with the bytes of each number in the other order where this machine has another one than files."""
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    return column
