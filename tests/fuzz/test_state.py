"""The short form of the state fuzzer: some seeds that stay, and one of the day."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

import pytest

from tests.fuzz.harness import Worker
from tests.fuzz.state import Fuzz, show
from tests.fuzz.state_config import KNOWN, MODELS

HISTORIES = 8  # of each model and seed


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker("state_worker")
    yield worker
    worker.close()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("seed", ["a", "b", str(datetime.date.today())])
def test_no_history_goes_wrong(model: str, seed: str, worker: Worker) -> None:
    fuzz = Fuzz(seed, model, avoid=tuple(KNOWN), worker=worker)
    found = fuzz.run(steps=40, most=HISTORIES)
    if found is not None:
        pytest.fail(show(fuzz.shrink(found, 30.0)))
    assert fuzz.counts["decode"] > HISTORIES
