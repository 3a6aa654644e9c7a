"""Every part of all texts seen, and what followed it how often: a suffix automaton that grows token by token."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

__all__ = ["Automaton"]

DEEPEST = 32  # shorter ends of a text that count what follows them, the longest first; repetitive texts have many


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
        self.times, self.total = array("i", [0]), array("i", [0])
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
