"""Importing is cheap and touches nothing; names stay where users import them."""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import sys
from importlib import metadata

import pytest

import lloyal


def cpu_seconds(code: str) -> float:
    """Processor time of a Python that runs `code`: a busy machine does not change it much."""
    before = os.times()
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_import_is_fast():
    """It adds about 60 ms to starting Python; ten times that would be another library's import."""
    cpu_seconds("import lloyal")
    with_it, without = [], []
    for _ in range(10):
        without.append(cpu_seconds("pass"))
        with_it.append(cpu_seconds("import lloyal"))
    assert statistics.median(with_it) - statistics.median(without) < 0.6


def test_import_loads_only_what_it_needs():
    code = "import sys, json, lloyal; json.dump(sorted(sys.modules), sys.stdout)"
    output = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True).stdout
    loaded = {name.partition(".")[0] for name in json.loads(output)}
    assert not loaded & {"numpy", "typer", "rich", "gguf", "asyncio", "importlib_metadata"}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_import_touches_no_device():
    """No back end is started: no device file, no thread, nothing printed."""
    code = """
import lloyal, os
files = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
assert not [name for name in files if name.startswith(("/dev/nvidia", "/dev/dri", "/dev/kfd"))], files
assert len(os.listdir("/proc/self/task")) == 1
assert not any(lloyal.live_handles().values())
"""
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_using_a_model_prints_nothing():
    code = """
import lloyal
with lloyal.Model(lloyal.models.path("nano")) as model, lloyal.Context(model, n_ctx=256, n_threads=1) as ctx:
    batch = lloyal.Batch()
    batch.extend(model.vocab.tokenize("def f():"), 0, 0, logits="last")
    ctx.decode(batch)
    assert ctx.logits().argmax() >= 0
"""
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_source_tree_says_what_is_missing(request):
    """Python started in a checkout finds the package without its extensions: the error names the cure."""
    root = request.config.rootpath
    code = (
        f"import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'Redirect' not in type(f).__name__]; "
        f"sys.path.insert(0, {str(root)!r}); import lloyal"
    )
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "pip install ." in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("lloyal.checkpoint", ["Checkpoint", "Checkpoints", "Context", "Model"]),
        ("lloyal.cli", ["app", "main"]),
        ("lloyal.bench", ["Timing", "alternate", "measure_checkpoints", "plot_checkpoints", "ratio", "timed"]),
    ],
)
def test_names_stay_where_users_import_them(module, names):
    for name in names:
        assert getattr(importlib.import_module(module), name)


def test_a_name_that_is_not_there_is_refused():
    with pytest.raises(AttributeError, match="NoSuchName"):
        importlib.import_module("lloyal.checkpoint").NoSuchName  # noqa: B018


def test_the_version_and_signatures_are_there():
    import inspect

    import lloyal

    assert lloyal.__version__ == metadata.version("lloyal")
    parameters = inspect.signature(lloyal.Context).parameters
    assert list(parameters)[:2] == ["model", "params"]
    assert parameters["n_ctx"].default == 4096
    assert inspect.signature(lloyal.llama.Model).parameters["n_gpu_layers"].default == -1
    assert lloyal.chat.stream is not None
    assert lloyal.Conversation.__module__ == "lloyal.conversation"


@pytest.mark.skipif(
    "OPENMP = 1" not in lloyal.system_info() or sys.platform != "linux", reason="not built with libgomp"
)
@pytest.mark.parametrize(("given", "expected"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_openmp_threads_sleep_when_they_wait(given: dict[str, str], expected: str) -> None:
    """What libgomp read, by its own words; and the environment is what it was."""
    code = "import os\nbefore = dict(os.environ)\nimport lloyal\nlloyal.devices()\nassert os.environ == before"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    environment |= {"OMP_DISPLAY_ENV": "verbose"} | given
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert f"GOMP_SPINCOUNT = '{expected}'" in done.stderr
