"""The generated models: a sample by default, all with LLOYAL_TEST_FULL=1. They are deleted when the session ends."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lloyal
from tests.parity.architectures import ARCHITECTURES, FULL, Architecture, chosen

TOOL = Path(__file__).resolve().parents[2] / "tools" / "archs"


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Any]]]:
    """``name -> {"path": ..., "memory_class": ..., "sensitivity": ...}`` as tools/archs prints it."""
    folder = tmp_path_factory.mktemp("archs")
    command = [sys.executable, "-P", str(TOOL), str(folder)]
    if not FULL:
        names = sorted({ARCHITECTURES[name].generator_name for name in chosen()})
        command += ["--arch", f"^({'|'.join(map(re.escape, names))})$"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = [json.loads(line) for line in done.stdout.splitlines()]
    yield {Path(one["path"]).stem: one for one in made}
    shutil.rmtree(folder)


@pytest.fixture(scope="module", params=chosen())
def arch(request: pytest.FixtureRequest) -> Architecture:
    return ARCHITECTURES[request.param]


@pytest.fixture(scope="module")
def model(arch: Architecture, generated: dict[str, dict[str, Any]]) -> Iterator[lloyal.Model]:
    with lloyal.Model(generated[arch.name]["path"]) as model:
        yield model


@pytest.fixture
def sensitivity(arch: Architecture, generated: dict[str, dict[str, Any]]) -> float:
    """The largest logit change of the last row when the first half of 64 tokens is replaced, median of 5 seeds."""
    return generated[arch.name]["sensitivity"]


@pytest.fixture
def tolerance(sensitivity: float) -> float:
    """How far two rows of logits may differ and still come from the same context."""
    return 1e-3 * sensitivity
