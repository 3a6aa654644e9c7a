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
LOOK = 0.15  # seconds of Python


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


def found(name: str, right: float, price: float, seed: int) -> float:
    machine, cost = Machine(name, right, price, seed), Cost(8, Widths())
    text, waiting = Rates(8, cost.all), None
    while machine.made < N:
        if cost.pause:
            cost.note_pause(1, machine.read(0)[1])
            continue
        n, reads = cost.ask(1)
        if n and waiting is not None:
            text.judge(4, waiting)
            waiting = None
        seconds, lag = machine.guess(n) if n else (0.0, 0)
        if n:
            cost.note_draft(n, seconds, lag)
        if n and reads:
            n = cost.cut([text], [n], 1)[0]
            kept, spent = machine.read(n)
            if n:
                text.judge(n, kept)
            cost.note_step(1 + n, spent)
        else:
            waiting = machine.kept(4) if n else waiting
            seconds += machine.spend(LOOK)
            cost.note_step(1, machine.read(0)[1])
            cost.note_look(1, n, seconds, lag)
    return machine.made / machine.time


@pytest.mark.parametrize("price", [0.0, 0.1])
@pytest.mark.parametrize("right", [0.0, 0.3, 0.6, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("machine", MACHINES)
def test_never_slower_and_nearly_as_fast_as_the_best(machine: str, right: float, price: float) -> None:
    mine = fmean(found(machine, right, price, seed) for seed in range(5))
    fastest = [fmean(fixed(machine, right, price, n, seed) for seed in range(3)) for n in range(9)]
    assert mine > 0.97 * fastest[0]
    assert mine > 0.84 * max(fastest)


def test_it_goes_on_guessing_when_the_text_has_become_easy() -> None:
    machine, cost = Machine("F16", 0.0, 0.0, 1), Cost(8, Widths())
    text, read, looked = Rates(8, cost.all), 0, 0
    for step in range(6000):
        machine.right = 0.0 if step < 2000 else 0.97
        if cost.pause:
            cost.note_pause(1, machine.read(0)[1])
            continue
        n, reads = cost.ask(1)
        if n and reads:
            n = cost.cut([text], [n], 1)[0]
            kept, spent = machine.read(n)
            text.judge(n, kept)
            cost.note_step(1 + n, spent)
            read += step >= 2000
        else:
            if n:
                text.judge(n, machine.kept(n))
            looked += step < 2000
            cost.note_step(1, machine.read(0)[1])
            cost.note_look(1, n, LOOK, 0)
    assert looked < 200
    assert read > 2000


def test_texts_that_are_easy_are_read_further() -> None:
    cost = Cost(8, Widths())
    for rows, seconds in ((2, 1.0), (3, 1.2), (6, 1.8), (18, 5.0)):
        for _ in range(8):
            cost.note_step(rows, seconds)
    easy, hard = Rates(8, cost.all), Rates(8, cost.all)
    for _ in range(50):
        easy.judge(8, 8)
        hard.judge(8, 0)
    near, far = cost.cut([hard, easy], [8, 8], 2)
    assert near == 0
    assert far >= 3
    cost.uniform = True
    assert len(set(cost.cut([hard, easy], [8, 8], 2))) == 1
