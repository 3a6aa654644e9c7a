"""What the build decides, without building it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ninja
import pytest

from tests.contracts.source import ROOT

VENDORED = ROOT / "vendor" / "llama.cpp"


@pytest.mark.skipif(not VENDORED.exists(), reason="installed from elsewhere: vendor/llama.cpp is not unpacked")
@pytest.mark.parametrize("native", [True, False])
def test_plug_ins_are_for_this_machine_too(tmp_path: Path, native: bool) -> None:
    """As a CUDA build is; ggml itself refuses plug-ins of which the CPU's is native."""
    places = [f"-DSKBUILD_{name}_DIR={tmp_path}" for name in ("SCRIPTS", "METADATA")]
    options = ["-DGGML_BACKEND_DL=ON", f"-DLLOYAL_NATIVE={'ON' if native else 'OFF'}", *places]
    options.append(f"-DCMAKE_MAKE_PROGRAM={Path(ninja.BIN_DIR) / 'ninja'}")
    command = [sys.executable, "-P", "-m", "cmake", "-S", str(ROOT), "-B", str(tmp_path), "-G", "Ninja", *options]
    done = subprocess.run(
        [*command, f"-DPython_EXECUTABLE={sys.executable}"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rules = (tmp_path / "build.ninja").read_text()
    assert "MODULE_LIBRARY" in rules
    assert ("=native" in rules) is native
