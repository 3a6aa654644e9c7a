"""The models that most tests of checkpoints are about."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import lloyal
from tests.models import tiny


@pytest.fixture(scope="module")
def llama() -> Iterator[lloyal.Model]:
    with lloyal.Model(tiny("llama")) as model:
        yield model


@pytest.fixture(scope="module")
def gemma3() -> Iterator[lloyal.Model]:
    with lloyal.Model(tiny("gemma3")) as model:
        yield model


@pytest.fixture(scope="module")
def lfm2() -> Iterator[lloyal.Model]:
    with lloyal.Model(tiny("lfm2")) as model:
        yield model
