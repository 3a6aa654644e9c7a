"""What is in a built wheel, and that it works where there is no compiler. Run by `nox -s wheel`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path, PurePosixPath

import pytest

pytestmark = pytest.mark.packaging

MAX_BYTES = 30_000_000
LIBRARIES = {"libggml-base", "libggml", "libllama", "libllama-common", "liblloyal_core"}
LICENSES = {"LICENSE", "NOTICE", "LICENSE-jsonhpp", "LICENSE-cpp-httplib"}


@pytest.fixture(scope="module")
def wheel() -> Path:
    return Path(os.environ["LLOYAL_TEST_WHEEL"])


@pytest.fixture(scope="module")
def names(wheel) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A fresh environment with the wheel and its dependencies; the folder of its programs."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    command = [programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return programs


def run(programs: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the environment with nothing else on the path."""
    env = {"PATH": str(programs), "HOME": str(programs), "LANG": "C.UTF-8"}
    return subprocess.run(
        [programs / command[0], *command[1:]], env=env, cwd=programs, text=True, capture_output=True, check=False
    )


def test_size(wheel):
    assert wheel.stat().st_size < MAX_BYTES


def test_holds_nothing_of_others(names):
    tops = {PurePosixPath(name).parts[0] for name in names}
    info = next(top for top in tops if top.endswith(".dist-info"))
    assert tops == {"lloyal", info}


def test_holds_no_source_of_extensions(names):
    left = [
        name for name in names if re.search(r"\.(pyx|pxd|cpp|hpp|h|cmake|txt|a)$", name) and "dist-info" not in name
    ]
    assert not left


def test_holds_types_and_models(names):
    for folder in ("llama", "native"):
        inside = [PurePosixPath(name) for name in names if name.startswith(f"lloyal/{folder}/")]
        modules = {path.name.split(".")[0] for path in inside if path.suffix == ".so"}
        assert modules
        assert modules == {path.stem for path in inside if path.suffix == ".pyi"}
    assert {"lloyal/py.typed", "lloyal/models/nano.gguf", "lloyal/models/nano-hybrid.gguf"} <= set(names)


def test_libraries(names):
    found = {PurePosixPath(name).name.split(".")[0] for name in names if name.startswith("lloyal/lib/")}
    assert found >= LIBRARIES
    assert any(name.startswith("libggml-cpu") for name in found)


def test_licenses(names):
    found = {PurePosixPath(name).name for name in names if "/licenses/" in name}
    assert found >= LICENSES
    assert any(name.endswith("licenses/llama.cpp/LICENSE") for name in names), "llama.cpp's own licence is missing"


def elf_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*.so")) if path.read_bytes()[:4] == b"\x7fELF"]


@pytest.mark.skipif(sys.platform != "linux", reason="ELF files are Linux's")
def test_run_paths_are_relative(unpacked):
    """Libraries find each other wherever the wheel is unpacked; debug symbols are gone."""
    files = elf_files(unpacked)
    assert files
    for path in files:
        text = path.read_bytes()
        dynamic = [match.decode() for match in re.findall(rb"\$ORIGIN[^\0]*", text)]
        assert dynamic, f"{path.name} has no relative run path"
        assert all(part.startswith("$ORIGIN") for entry in dynamic for part in entry.split(":")), (path.name, dynamic)
        assert b".debug_info" not in text, f"{path.name} is not stripped"


def test_builds_leave_no_trace_of_the_machine(unpacked):
    """No path of the building machine is in a library, but those that upstream's assertions name."""
    for path in elf_files(unpacked):
        found = {match.decode() for match in re.findall(rb"/(?:tmp|home|root|Users)/[\w./-]+", path.read_bytes())}
        found = {name for name in found if not name.endswith((".c", ".cpp", ".h", ".hpp", ".cu", ".cuh"))}
        assert not found, (path.name, sorted(found)[:3])


def test_imports_without_a_compiler(installed):
    code = "import lloyal, sys; print(lloyal.__file__); assert 'numpy' not in sys.modules"
    result = run(installed, "python", "-P", "-c", code)
    assert result.returncode == 0, result.stderr
    assert str(installed.parent) in result.stdout
    assert result.stderr == ""


def test_info(installed):
    result = run(installed, "lloyal", "info", "--json")
    assert result.returncode == 0, result.stderr
    info = json.loads(result.stdout)
    assert "CPU" in json.dumps(info)


def test_demo(installed):
    result = run(installed, "lloyal", "demo", "--json")
    assert result.returncode == 0, result.stderr
    json.loads(result.stdout)


def test_portable_wheel_picks_a_variant(installed, names):
    """With the CPU variants as plug-ins the first use loads exactly one of them."""
    variants = [name for name in names if re.match(r"lloyal/lib/libggml-cpu-", name)]
    if not variants:
        assert any(name.endswith("lib/libggml-cpu.so") for name in names)
        return
    code = "import lloyal; lloyal.devices(); print(open('/proc/self/maps').read())"
    result = run(installed, "python", "-P", "-c", code)
    assert result.returncode == 0, result.stderr
    loaded = set(re.findall(r"libggml-cpu-\w+", result.stdout))
    assert len(variants) > 3
    assert len(loaded) == 1, loaded
