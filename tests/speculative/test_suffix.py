"""The automaton against what a naive search of all texts finds, and how `Suffix` forgets."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lloyal.errors import InvalidArgument
from lloyal.speculative import Suffix, automaton
from lloyal.speculative.automaton import Automaton


class Naive:
    """Every part of every text, and what has followed it how often."""

    def __init__(self) -> None:
        self.followed: dict[tuple[int, ...], dict[int, int]] = defaultdict(dict)
        self.best: dict[tuple[int, ...], int] = {}

    def read(self, text: list[int], tokens: list[int], again: bool) -> None:
        for token in tokens:
            new = token not in self.followed.get(tuple(text), {})
            for begin in range(len(text) + 1):
                part = tuple(text[begin:])
                counts = self.followed[part]
                if new or again:
                    counts[token] = counts.get(token, 0) + 1
                    if counts[token] >= counts.get(self.best.get(part, token), 0):
                        self.best[part] = token
            text.append(token)

    def longest(self, text: list[int]) -> tuple[int, ...]:
        """The longest end of a text that something has followed."""
        ends = (tuple(text[begin:]) for begin in range(len(text) + 1))
        return next((end for end in ends if self.followed.get(end)), ())

    def guess(self, text: list[int], n: int, shortest: int, least: float) -> list[int]:
        out: list[int] = []
        chance = 1.0
        end = self.longest(text)
        while len(out) < n and len(end) >= shortest:
            counts = self.followed[end]
            chance *= counts[self.best[end]] / (sum(counts.values()) + 1 / len(end))
            if chance < least:
                break
            out.append(self.best[end])
            end = self.longest([*end, self.best[end]])
        return out


# Which text goes on, or begins as another one does, and with what.
HISTORIES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(-1, 3), st.lists(st.integers(0, 2), min_size=1, max_size=9)),
    min_size=1,
    max_size=14,
)


@settings(max_examples=300, deadline=None)
@given(HISTORIES, st.integers(1, 3), st.sampled_from([0.0, 0.4, 0.8]))
def test_it_finds_what_a_naive_search_finds(
    history: list[tuple[int, int, list[int]]], shortest: int, least: float
) -> None:
    drafter, naive = Suffix(shortest, least=least), Naive()
    texts = [drafter.start() for _ in range(4)]
    tokens: list[list[int]] = [[] for _ in texts]
    with mock.patch.object(automaton, "DEEPEST", 1000):
        for which, parent, new in history:
            if parent >= 0:  # begin anew, as another text does
                new = [*tokens[parent], *new]
                texts[which], tokens[which] = drafter.start(), []
            again = bool(tokens[which])
            drafter.feed(texts[which], new)
            naive.read(tokens[which], new, again)
            seen = drafter._young
            for text, own in zip(texts, tokens, strict=True):
                state = max(text.state, 0)
                assert seen.length[state] == len(own)
                assert seen.followed(state, len(own))[1] == len(naive.longest(own))
                assert drafter.propose([text], 6) == [naive.guess(own, 6, shortest, least)]
            check(seen)


def check(seen: Automaton) -> None:
    """What holds of every suffix automaton."""
    assert len(seen) <= 1 + 2 * seen.n_tokens
    for state in range(1, len(seen)):
        assert seen.length[seen.link[state]] < seen.length[state]
        assert (seen.token[state] < 0) == (seen.total[state] == 0)
        if state in seen.more:
            tokens = seen.more[state]
            assert seen.token[state] in tokens
            others = sum(times for token, (_, times) in tokens.items() if token != seen.token[state])
            assert others + seen.times[state] == seen.total[state]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2), max_size=60), st.lists(st.integers(0, 2), max_size=60))
def test_the_end_that_another_text_holds(other: list[int], text: list[int]) -> None:
    """What the older half is asked: the longest end of a text that occurs in it."""
    seen = Automaton()
    seen.read(0, other, again=False)
    state = n = 0
    for i, token in enumerate(text):
        state, n = seen.follow(state, n, token)
        ends = (text[begin : i + 1] for begin in range(i + 2))
        assert n == next(len(end) for end in ends if not end or tuple(end) in parts(other, len(end)))
        assert n <= seen.length[state] or n == 0


def parts(text: list[int], n: int) -> set[tuple[int, ...]]:
    return {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}


def test_forks_add_nothing() -> None:
    rng = random.Random(1)
    drafter, text = Suffix(), [rng.randrange(50) for _ in range(2000)]
    drafter.feed(drafter.start(), text)
    n_states, total = len(drafter._young), sum(drafter._young.total)
    for end in (2000, 1500, 3):
        drafter.feed(drafter.start(), text[:end])
    assert (drafter._young.n_tokens, len(drafter._young), sum(drafter._young.total)) == (2000, n_states, total)


def test_what_texts_go_on_with_counts_each_time() -> None:
    drafter = Suffix(least=0.0)
    for ends in ([4, 5], [6, 7], [4, 5], [8, 9]):
        text = drafter.start()
        drafter.feed(text, [1, 2, 3])
        for token in ends:
            drafter.feed(text, [token])
    text = drafter.start()
    drafter.feed(text, [1, 2, 3])
    assert drafter.propose([text], 2) == [[4, 5]]
    assert drafter.propose([text, drafter.start()], 0) == [[], []]


def test_it_remembers_texts_of_others() -> None:
    drafter = Suffix()
    drafter.feed(drafter.start(), list(range(100)))
    text = drafter.start()
    drafter.feed(text, [500, 501, 40, 41])
    assert drafter.propose([text], 5) == [[42, 43, 44]]  # two tokens agree, in one place: no more than that
    drafter.feed(text, list(range(42, 60)))
    assert drafter.propose([text], 5) == [[60, 61, 62, 63, 64]]


@pytest.mark.parametrize("step", [1, 7, 500])
def test_it_forgets_the_oldest(step: int) -> None:
    """A bounded number of states; what is guessed has been there; what was a moment ago is known."""
    rng = random.Random(step)
    drafter = Suffix(tokens=400)
    live, heard = [drafter.start() for _ in range(3)], [list[int]() for _ in range(3)]
    blocks = [[rng.randrange(30) for _ in range(20)] for _ in range(10)]
    guessed = 0
    for _ in range(1200 if step == 1 else 120):
        for text, own in zip(live[: rng.choice([1, 3])], heard, strict=False):
            new = list(itertools.chain(*(rng.choice(blocks) for _ in range(step // 20 + 1))))[:step]
            drafter.feed(text, new)
            own += new
        assert len(drafter._young) + len(drafter._old) <= 2 * (400 + 400 // 8)
        for guess in drafter.propose(live, 4):
            guessed += len(guess)
            assert not guess or any(tuple(guess[:1]) in parts(own, 1) for own in heard)
    assert drafter._age > 3
    assert guessed > 100
    own = list(range(1000, 1030))
    text = drafter.start()
    drafter.feed(text, own)
    drafter.feed(live[0], [rng.randrange(30) for _ in range(210)])  # a half is full: it is the older one now
    drafter.feed(text, own[:3])
    assert drafter.propose([text], 4) == [own[3:7]]
    forgotten = drafter.start()
    for _ in range(3):
        drafter.feed(live[0], [rng.randrange(30) for _ in range(210)])
    drafter.feed(forgotten, own[:3])
    assert drafter.propose([forgotten, text], 4) == [[], []]


def test_what_it_is_given_is_checked() -> None:
    for arguments in ({"shortest": 0}, {"least": 1.5}, {"least": "a"}, {"least": float("nan")}, {"tokens": 1}):
        with pytest.raises(InvalidArgument, match=next(iter(arguments))):
            Suffix(**arguments)  # type: ignore[arg-type]


def some_drafter(rng: random.Random) -> Suffix:
    drafter = Suffix(tokens=rng.choice([60, 10_000]))
    texts = [drafter.start() for _ in range(3)]
    for _ in range(30):
        drafter.feed(rng.choice(texts), [rng.randrange(4) for _ in range(rng.randrange(9))])
    return drafter


@pytest.mark.parametrize("seed", range(6))
def test_bytes_keep_what_it_remembers(seed: int) -> None:
    rng = random.Random(seed)
    drafter = some_drafter(rng)
    again = Suffix.from_bytes(drafter.to_bytes(), tokens=drafter.tokens)
    assert again.to_bytes() == drafter.to_bytes()
    one, other = drafter.start(), again.start()
    for _ in range(200):
        new = [rng.randrange(4) for _ in range(rng.randrange(1, 4))]
        drafter.feed(one, new)
        again.feed(other, new)
        assert drafter.propose([one], 5) == again.propose([other], 5)
    assert Suffix.from_bytes(Suffix().to_bytes()).to_bytes() == Suffix().to_bytes()


def test_damaged_bytes_are_refused_or_harmless() -> None:
    rng = random.Random(5)
    data = some_drafter(rng).to_bytes()
    refused = 0
    for _ in range(1500):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 1, 8])):
            damaged[rng.randrange(len(data))] = rng.choice([0, 1, 2, 255, rng.randrange(256)])
        if rng.random() < 0.1:
            del damaged[rng.randrange(len(data)) :]
        try:
            drafter = Suffix.from_bytes(bytes(damaged), tokens=1000)
        except InvalidArgument:
            refused += 1
            continue
        texts = [drafter.start() for _ in range(2)]
        for text in texts:
            drafter.feed(text, [rng.randrange(4) for _ in range(30)])
            drafter.feed(text, [rng.randrange(4)])
            assert all(0 <= token < 2**31 for guess in drafter.propose(texts, 8) for token in guess)
    assert refused > 700
    for other in (b"", b"lloyal", data[:24], None, data + b"x"):
        with pytest.raises(InvalidArgument, match="Suffix"):
            Suffix.from_bytes(other)  # type: ignore[arg-type]
