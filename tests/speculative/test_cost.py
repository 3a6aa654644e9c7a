"""How many guesses the cost model asks for, against every fixed number, where seconds and acceptance are known."""

from __future__ import annotations

import random
from statistics import fmean

import numpy as np
import pytest

from lloyal.speculative.cost import Cost, Rates, Widths

# Seconds of a step by its rows, in steps of one row: processors by type of weights, and a GPU.
MACHINES = {
    "F16": {1: 1, 2: 2.5, 3: 2.6, 5: 2.9, 9: 4.4, 17: 6.4},
    "Q4_1": {1: 1, 2: 2, 3: 2.6, 5: 4.1, 9: 6.4, 17: 12},
    "GPU": {1: 1, 2: 1.05, 3: 1.07, 5: 1.1, 9: 1.15, 17: 1.3},
}
N = 2000
LOOK = 0.02  # seconds of Python


class Machine:
    """Steps of one text with guesses that are right with a chance of `right` and cost `price` each."""

    def __init__(self, name: str, right: float, price: float, seed: int) -> None:
        self.rng = random.Random(seed)
        self.rows, self.seconds = zip(*MACHINES[name].items(), strict=True)
        self.right, self.price = right, price
        self.time, self.made, self.heard = 0.0, 0, -50

    def spend(self, seconds: float) -> float:
        noise = self.rng.lognormvariate(0, 0.1) * (3 if self.rng.random() < 0.02 else 1)
        self.time += seconds * noise
        return seconds * noise

    def kept(self, n: int) -> int:
        return next((i for i in range(n) if self.rng.random() >= self.right), n)

    def read(self, n: int) -> tuple[int, float]:
        kept = self.kept(n)
        self.made += 1 + kept
        return kept, self.spend(float(np.interp(1 + n, self.rows, self.seconds)))

    def sparse(self, idea: float, n: int) -> float:
        """Tokens a second if it reads `n` guesses now and then."""
        while self.made < N:
            self.read(n if self.rng.random() < idea else 0)
            self.spend(LOOK)
        return self.made / self.time

    def guess(self, n: int) -> tuple[float, int]:
        lag, self.heard = self.made - self.heard, self.made
        return self.spend(self.price * (n + 0.1 * lag)), lag


def fixed(name: str, right: float, price: float, n: int, seed: int) -> float:
    """Tokens a second."""
    machine = Machine(name, right, price, seed)
    while machine.made < N:
        machine.read(n)
        machine.spend(n * price)
    return machine.made / machine.time


def step(machine: Machine, cost: Cost, text: Rates, idea: float = 1.0) -> int:
    """As a `Speculator` does it; how many guesses were read."""
    if cost.pause:
        if cost.pause % 8:
            cost.pause -= 1
            machine.read(0)
        else:
            cost.note_pause(1, machine.read(0)[1])
        return 0
    n = cost.ask(1)
    if n == 0:
        cost.note(1, 0, 0, machine.spend(LOOK), 1, 1, machine.read(0)[1])
        return 0
    seconds, lag = machine.guess(n)
    seconds += machine.spend(LOOK)
    length = n if machine.rng.random() < idea else 0
    kept_of = cost.cut([text], [length], 1)[0]
    kept, spent = machine.read(kept_of)
    if kept_of:
        text.judge(kept_of, kept)
    elif length:
        text.judge(length, machine.kept(length))  # the text says it, later
    cost.note(1, n, lag, seconds, 1 + kept_of, 1 + kept, spent)
    return kept_of


def found(name: str, right: float, price: float, seed: int, idea: float = 1.0) -> float:
    machine, cost = Machine(name, right, price, seed), Cost(8, Widths())
    text = Rates(8, cost.all)
    while machine.made < N:
        step(machine, cost, text, idea)
    return machine.made / machine.time


@pytest.mark.parametrize("price", [0.0, 0.1])
@pytest.mark.parametrize("right", [0.0, 0.3, 0.6, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("machine", MACHINES)
def test_never_slower_and_nearly_as_fast_as_the_best(machine: str, right: float, price: float) -> None:
    mine = fmean(found(machine, right, price, seed) for seed in range(5))
    fastest = [fmean(fixed(machine, right, price, n, seed) for seed in range(3)) for n in range(9)]
    assert mine > 0.97 * fastest[0]
    assert mine > 0.84 * max(fastest)


@pytest.mark.parametrize("machine", MACHINES)
def test_a_drafter_that_seldom_has_an_idea_but_then_is_right(machine: str) -> None:
    plain = fmean(fixed(machine, 1.0, 0.0, 0, seed) for seed in range(3))
    best = fmean(Machine(machine, 1.0, 0.0, seed).sparse(0.1, 8) for seed in range(3))
    mine = fmean(found(machine, 1.0, 0.0, seed, idea=0.1) for seed in range(5))
    assert mine > 0.97 * plain
    assert mine > 0.8 * best


def test_it_goes_on_guessing_when_the_text_has_become_easy() -> None:
    machine, cost = Machine("F16", 0.0, 0.0, 1), Cost(8, Widths())
    text = Rates(8, cost.all)
    read = [0, 0]
    for i in range(6000):
        machine.right = 0.0 if i < 2000 else 0.97
        read[i >= 2000] += step(machine, cost, text) > 0
    assert read[0] < 30
    assert read[1] > 2000


def test_texts_that_are_easy_are_read_further() -> None:
    cost = Cost(8, Widths())
    for rows, seconds in ((2, 1.0), (3, 1.2), (6, 1.8), (18, 5.0)):
        for _ in range(8):
            cost.widths.note(rows, seconds, rows == 2)
    easy, hard = Rates(8, cost.all), Rates(8, cost.all)
    for _ in range(50):
        easy.judge(8, 8)
        hard.judge(8, 0)
    near, far = cost.cut([hard, easy], [8, 8], 2)
    assert near == 0
    assert far >= 3
    cost.uniform = True
    assert len(set(cost.cut([hard, easy], [8, 8], 2))) == 1
