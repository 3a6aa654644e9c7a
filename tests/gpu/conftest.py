"""Where the cache of a test lies: on a GPU, or on what takes its place where there is none.

A server on loopback is a device too: its memory is in another process, and nothing can be read without asking for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import lloyal
from tests.rpc import server


@pytest.fixture(scope="module")
def rpc_endpoint() -> Iterator[str]:
    with server() as endpoint:
        yield endpoint


@pytest.fixture(params=["cpu", "rpc", pytest.param("gpu", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest) -> str:
    """The kind of device of this test."""
    return str(request.param)


@pytest.fixture
def devices(place: str, request: pytest.FixtureRequest) -> Any:
    """What `lloyal.Model` takes for that device."""
    if place == "gpu":
        return [next(device for device in lloyal.devices() if device.type in ("gpu", "igpu"))]
    if place == "rpc":
        return lloyal.llama.rpc_device(request.getfixturevalue("rpc_endpoint"))
    return []
