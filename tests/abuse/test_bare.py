"""Objects made by ``__new__`` alone, as pickle and copy do: nothing that is asked of one may end the process."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import lloyal.llama
import lloyal.native


def is_native(cls: type) -> bool:
    """A class of Cython's: what it holds is not in a dictionary."""
    return not hasattr(cls, "__dict__") or "__dict__" not in vars(cls)


CLASSES = sorted(
    {
        (cls.__module__, cls.__name__)
        for package in (lloyal.llama, lloyal.native)
        for info in pkgutil.iter_modules(package.__path__, package.__name__ + ".")
        for cls in vars(importlib.import_module(info.name)).values()
        if inspect.isclass(cls) and cls.__module__ == info.name and is_native(cls)
    }
    | {("lloyal", name) for name in ("Checkpoint", "Context", "Model")}
)

ASK_EVERYTHING = """
import contextlib, importlib, sys
cls = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])
try:
    cls.__new__(cls)
except TypeError as error:
    assert "cannot be made" in str(error) or "argument" in str(error), error
    sys.exit()
special = "repr str len iter next hash array enter getitem".split()
for name in dir(cls):
    if name.startswith("__") and name.strip("_") not in special:
        continue
    for arguments in ((), (0,), (1, 2), (b"x",), ("x",)):
        with contextlib.suppress(Exception):
            value = getattr(cls.__new__(cls), name)
            if callable(value):
                value(*arguments)
with contextlib.suppress(Exception):
    memoryview(cls.__new__(cls))
"""


@pytest.mark.parametrize(("module", "name"), CLASSES, ids=lambda text: text.rpartition(".")[2])
def test_a_bare_object_does_not_end_the_process(module: str, name: str) -> None:
    command = [sys.executable, "-P", "-c", ASK_EVERYTHING, module, name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"


def test_there_are_classes() -> None:
    names = {name for _, name in CLASSES}
    assert names >= {
        "Batch",
        "ChatTemplates",
        "CheckpointBase",
        "Context",
        "Device",
        "Logits",
        "Memory",
        "Model",
        "Sampler",
    }
