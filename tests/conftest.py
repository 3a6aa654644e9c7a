"""What every test gets: leak accounting, the embedded models, and the rules for the slow and the special ones.

The directories say what a test is about: ``contracts`` reads source text only, ``llama`` tests ring 1 module by module,
``unit`` the rings above it, ``lifetimes`` who frees what when, ``parity`` compares with llama.cpp over architectures,
``abuse`` holds the inputs that kill llama.cpp, ``packaging`` looks at a built wheel.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    import lloyal

# A shared machine can stop a test for longer than any deadline; failures print what reproduces them.
settings.register_profile("lloyal", deadline=None, print_blob=True)
settings.load_profile("lloyal")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in the background of a shell: every process that a test starts and interrupts would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests that run only when asked for: the marker, and the variable that asks.
ON_REQUEST = {"full": "LLOYAL_TEST_FULL", "real": "LLOYAL_TEST_REAL", "packaging": "LLOYAL_TEST_WHEEL"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = {marker for marker, variable in ON_REQUEST.items() if not os.environ.get(variable)}
    dropped = [item for item in items if left_out.intersection(mark.name for mark in item.iter_markers())]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in set(dropped)]
    if any(item.get_closest_marker("gpu") for item in items) and not _has_gpu():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="there is no GPU device"))


def _has_gpu() -> bool:
    import lloyal

    return any(device.type == "gpu" for device in lloyal.devices())


# Live handles. Fixtures that outlive a test may hold some, however late they are set up; a test may not.


def _live() -> Counter[str]:
    backend = sys.modules.get("lloyal.llama.backend")
    return Counter(backend.live_handles() if backend else {})


class _Shared:
    """Handles that fixtures of a wider scope than one test have taken.

    A plugin of its own: pytest sets up session fixtures outside this folder, where hooks of a conftest do not apply.
    """

    def __init__(self) -> None:
        self.taken: Counter[str] = Counter()
        self.depth = 0

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
        if fixturedef.scope == "function":
            return (yield)
        before = _live()
        self.depth += 1
        try:
            return (yield)
        finally:
            self.depth -= 1
            if self.depth == 0:
                after = _live()
                after.subtract(before)
                self.taken.update(after)


_SHARED = _Shared()


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_SHARED, "lloyal-shared-handles")


@pytest.fixture(autouse=True)
def no_leaked_handles() -> Iterator[None]:
    """Every native handle a test makes is gone when the test is over."""
    before = _live()
    before.subtract(_SHARED.taken)
    yield
    before.update(_SHARED.taken)
    if _live() != before:
        gc.collect()
    after = _live()
    leaked = {kind: f"{before[kind]} -> {n}" for kind, n in after.items() if n != before[kind]}
    assert not leaked, f"native handles alive before and after the test: {leaked}"


# The embedded models, loaded once. They are shared: a test that closes or changes one loads its own.


@pytest.fixture(scope="session")
def nano() -> lloyal.Model:
    """The llama-architecture model."""
    return _embedded("nano")


@pytest.fixture(scope="session")
def nano_draft() -> lloyal.Model:
    """The smaller model with `nano`'s vocabulary."""
    return _embedded("nano-draft")


@pytest.fixture(scope="session")
def nano_hybrid() -> lloyal.Model:
    """The model with recurrent and attention layers."""
    return _embedded("nano-hybrid")


def _embedded(name: str) -> lloyal.Model:
    import lloyal

    return lloyal.Model(lloyal.models.path(name))


@pytest.fixture
def new_context() -> Iterator[Callable[..., lloyal.Context]]:
    """Make small one-thread contexts that are closed when the test is over: ``new_context(model, **parameters)``."""
    import lloyal

    made: list[lloyal.Context] = []

    def make(model: lloyal.Model, **parameters: Any) -> lloyal.Context:
        made.append(lloyal.Context(model, **({"n_ctx": 512, "n_batch": 512, "n_threads": 1} | parameters)))
        return made[-1]

    yield make
    for context in made:
        context.close()
