"""What the built libraries carry of the machine that built them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lloyal
import lloyal.llama.base
from tests.contracts.source import ROOT

INSTALLED = Path(lloyal.llama.base.__file__).parents[1]
LIBRARIES = sorted(path for path in INSTALLED.rglob("*") if path.suffix in (".so", ".dylib", ".pyd"))


@pytest.mark.parametrize("path", LIBRARIES, ids=lambda path: path.name)
def test_no_library_names_the_folder_it_was_built_in(path: Path) -> None:
    """Messages of failed assertions would show it."""
    content = path.read_bytes()
    at = content.find(str(ROOT).encode())
    assert at < 0, content[at : at + 120]


def test_a_back_end_that_cannot_start_is_left_out(tmp_path: Path) -> None:
    """As a CUDA build where NVIDIA's libraries are missing: said, and the CPU goes on."""
    package = tmp_path / "lloyal"
    shutil.copytree(ROOT / "lloyal", package, ignore=shutil.ignore_patterns("_cpp", "*.pyx", "*.so"))
    for library in LIBRARIES:
        target = package / library.relative_to(INSTALLED)
        target.parent.mkdir(exist_ok=True)
        shutil.copy2(library, target)
    (package / "lib" / "libggml-cuda.so").write_bytes(b"no library")
    code = (
        "import logging, lloyal; logging.basicConfig(level=logging.WARNING)\n"
        "with lloyal.Model(lloyal.models.path('nano-draft')) as model: print(lloyal.build_info()['left_out'])"
    )
    # An editable installation brings a finder of its own, which would come before the path.
    here = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.meta_path[:] = filter(callable, sys.meta_path)"
    command = [sys.executable, "-P", "-c", f"{here}\n{code}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "{'CUDA': " in done.stdout
    for said in ("WARNING:lloyal.native:left out", "RuntimeWarning: lloyal left out"):
        assert said in done.stderr


def test_there_are_libraries() -> None:
    assert {path.name.split(".")[0] for path in LIBRARIES} >= {"liblloyal_core", "libllama", "context", "batch"}
