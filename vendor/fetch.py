"""Put the pinned llama.cpp source at ``vendor/llama.cpp``.

Standard library only: the build runs this before anything else is importable. The source travels inside the
sdist of the package that ``llama_cpp.lock`` names; pip downloads it and refuses a wrong sha256, this script
checks the hash again and unpacks the part that is needed.

    python vendor/fetch.py [--with-tools] [--force] [--sdist FILE]
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path, PurePosixPath

HERE = Path(__file__).resolve().parent
TARGET = HERE / "llama.cpp"
STAMP = TARGET / ".lloyal-source"

# What a build of libllama, ggml and llama-common reads; tests/ holds the every-architecture generator, and what
# upstream tests chat templates and JSON schemas with, which ours must pass too.
NEEDED = ("CMakeLists.txt", "LICENSE", "licenses", "src", "include", "ggml", "common", "cmake", "vendor")
NEEDED_TESTS = ("tests/test-llama-archs.cpp", "tests/test-json-schema-to-grammar.cpp", "models/templates")
TOOLS = ("tests", "tools", "examples", "pocs", "models", "convert_hf_to_gguf.py")
# Back ends that no LLOYAL_* option builds, and headers that only multimodal input needs.
BACK_ENDS = ("blas", "cann", "et", "hexagon", "openvino", "opencl", "sycl", "virtgpu", "webgpu", "zdnn", "zendnn")
UNUSED = (
    *(f"ggml/src/ggml-{name}" for name in BACK_ENDS),
    "vendor/miniaudio/miniaudio.h",
    "vendor/stb/stb_image.h",
)


# Python before 3.11.4 has no filters; what is unpacked has the right checksum anyway.
FILTER: dict[str, str] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


def load_lock() -> dict[str, str]:
    return tomllib.loads((HERE / "llama_cpp.lock").read_text())


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def download(lock: dict[str, str], folder: Path) -> Path:
    """Let pip download the sdist, hash-checked, and return its path."""
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{lock['package']}=={lock['version']} --hash=sha256:{lock['sha256']}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", ":all:", "--require-hashes", "-r", str(requirement), "-d", str(folder)]
    if importlib.util.find_spec("scikit_build_core"):
        # pip asks the package for its metadata; with its build backend at hand that needs no environment.
        command.append("--no-build-isolation")
    print("fetch:", lock["package"], lock["version"], "(llama.cpp", lock["commit"] + ")", flush=True)
    subprocess.run(command, check=True, stdout=sys.stderr)
    return next(folder.glob("*.tar.gz"))


def is_wanted(path: str, with_tools: bool) -> bool:
    def below(folders: tuple[str, ...]) -> bool:
        return any(path == folder or path.startswith(folder + "/") for folder in folders)

    if below(NEEDED):
        return not below(UNUSED)
    return below(NEEDED_TESTS) or (with_tools and below(TOOLS))


def unpack(sdist: Path, with_tools: bool) -> None:
    """Unpack the wanted files beside the target, then swap them in: an interrupted run leaves no half tree."""
    fresh = Path(tempfile.mkdtemp(prefix=".llama.cpp-", dir=HERE))
    try:
        with tarfile.open(sdist) as archive:
            for member in archive:
                parts = PurePosixPath(member.name).parts
                if not member.isfile() or parts[1:3] != ("vendor", "llama.cpp"):
                    continue
                member.name = "/".join(parts[3:])
                if is_wanted(member.name, with_tools):
                    archive.extract(member, fresh, **FILTER)
        if not (fresh / "include" / "llama.h").is_file():
            raise SystemExit(f"fetch: {sdist} holds no llama.cpp source")
        (fresh / STAMP.name).write_text(stamp_text(with_tools))
        shutil.rmtree(TARGET, ignore_errors=True)
        fresh.chmod(0o755)
        fresh.rename(TARGET)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def stamp_text(with_tools: bool) -> str:
    return f"{load_lock()['sha256']} tools={int(with_tools)} {' '.join(NEEDED_TESTS)}\n"


def is_present(with_tools: bool) -> bool:
    accepted = {stamp_text(True)} | ({stamp_text(False)} if not with_tools else set())
    return STAMP.is_file() and STAMP.read_text() in accepted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--with-tools", action="store_true", help="also upstream's tools, examples and tests")
    parser.add_argument("--force", action="store_true", help="unpack again even if the source is there")
    parser.add_argument("--sdist", type=Path, help="an sdist already downloaded (its hash is checked too)")
    args = parser.parse_args()
    if is_present(args.with_tools) and not args.force:
        return
    lock = load_lock()
    with tempfile.TemporaryDirectory(prefix="lloyal-fetch-") as folder:
        sdist = args.sdist or download(lock, Path(folder))
        found = sha256_of(sdist)
        if found != lock["sha256"]:
            raise SystemExit(f"fetch: {sdist} has sha256 {found}, llama_cpp.lock says {lock['sha256']}")
        unpack(sdist, args.with_tools)
    print("fetch: unpacked to", TARGET, flush=True)


if __name__ == "__main__":
    main()
