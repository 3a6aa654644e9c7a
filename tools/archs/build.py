"""Compiles the generator once and keeps it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent


def library_folder() -> Path:
    """``lloyal/lib`` of the installed package."""
    # An editable install has its Python files elsewhere: the compiled ones lie beside the libraries.
    import lloyal.llama.backend

    return Path(lloyal.llama.backend.__file__).resolve().parent.parent / "lib"


def source_folder() -> Path:
    """The llama.cpp source that those libraries were built from."""
    folder = Path(os.environ.get("LLOYAL_LLAMA_CPP_DIR") or HERE.parent.parent / "vendor" / "llama.cpp")
    if not (folder / "tests" / "test-llama-archs.cpp").exists():
        raise SystemExit(f"{folder} has no tests/test-llama-archs.cpp: run vendor/fetch.py")
    return folder.resolve()


def cache_folder() -> Path:
    base = os.environ.get("LLOYAL_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    key = hashlib.sha256(f"{library_folder()}\n{source_folder()}\n{HERE}".encode()).hexdigest()[:16]
    return Path(base) / "lloyal" / f"archs-{key}"


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def program(name: str) -> list[str]:
    """Start of a command that runs ``generate`` or ``memory_class``. Compiles both if need be (some seconds)."""
    folder = cache_folder()
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if cmake is None:
        raise SystemExit("cmake is missing: pip install cmake")
    with one_at_a_time(folder):
        if not (folder / "CMakeCache.txt").exists():
            run(
                [
                    cmake,
                    "-S",
                    HERE,
                    "-B",
                    folder,
                    f"-DLLOYAL_LLAMA_CPP_DIR={source_folder()}",
                    f"-DLLOYAL_LIB_DIR={library_folder()}",
                ]
            )
        run([cmake, "--build", folder])
    return [str(folder / name)]


def run(command: list[str | Path]) -> str:
    """Run a command; what it prints, or an exit that shows it."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stdout + done.stderr)[-4000:]
        raise SystemExit(f"{' '.join(map(str, command))} failed with {done.returncode}:\n{said}")
    return done.stdout
