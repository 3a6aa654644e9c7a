"""What the tests of branches stand on: a store of each embedded kind of model."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

import lloyal
from lloyal import BranchStore

NewContext = Callable[..., lloyal.Context]


@pytest.fixture(params=["nano", "nano_hybrid"])
def model(request: pytest.FixtureRequest) -> lloyal.Model:
    found: lloyal.Model = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def store(model: lloyal.Model, new_context: NewContext) -> Iterator[BranchStore]:
    with BranchStore(new_context(model, n_seq_max=8)) as store:
        yield store
