"""The short form of the fuzzer of texts: some that stay, and some of the day."""

from __future__ import annotations

import datetime

import pytest

from tests.fuzz.texts import Fuzz
from tests.fuzz.texts_make import MAKERS

TEXTS = 15  # of each kind and seed


@pytest.mark.parametrize("seed", ["a", str(datetime.date.today())])
def test_every_text_ends(seed: str) -> None:
    fuzz = Fuzz(seed, list(MAKERS))
    for index in range(TEXTS * len(MAKERS)):
        fuzz.one(index)
    fuzz.worker.stop()
    assert not fuzz.findings
    assert sum(fuzz.ends.values()) == TEXTS * len(MAKERS)
    assert any("errors" in end for end in fuzz.ends)
    assert any("result" in end for end in fuzz.ends)
