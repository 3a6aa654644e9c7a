"""Puts each defect of ``tests/fuzz/defects`` back in, and says how long its generator takes to find it.

    python -P tests/fuzz/defects.py                    all of them
    python -P tests/fuzz/defects.py cp_duplicates      some
    python -P tests/fuzz/defects.py --seconds 600

A patch is a unified diff that takes a fix out of the sources. Above the diff stand lines of the form ``name: value``:

    generator: state               a program of tests/fuzz; takes --seconds and --seed, exit code 1: found
    arguments: --config gemma3     more arguments for it

The work is done in a worktree and a virtual environment of its own, in a folder that is kept (``--folder``), so that
another run compiles little. The exit code is 1 unless every defect was found.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATCHES = ROOT / "tests/fuzz/defects"


def settings(patch: Path) -> dict[str, str]:
    head = patch.read_text().split("\ndiff ")[0].split("\n--- ")[0]
    return dict(re.findall(r"^(\w+): *(.*)$", head, re.MULTILINE))


class Scratch:
    """A checkout of what is committed here, and an environment with the package built from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tree = folder / "tree"
        self.python = folder / "venv/bin/python"
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        if self.tree.exists():
            self.git("checkout", "--quiet", "--force", "--detach", commit)
        else:
            subprocess.run(["git", "worktree", "add", "--quiet", "--detach", self.tree, commit], cwd=ROOT, check=True)
            shutil.copytree(ROOT / "vendor/llama.cpp", self.tree / "vendor/llama.cpp")
        if not self.python.exists():
            venv.create(folder / "venv", with_pip=True)
            # What this environment has, but for the way in which lloyal is installed in it.
            version = f"python{sys.version_info.major}.{sys.version_info.minor}"
            here = folder / "venv/lib" / version / "site-packages/here.pth"
            here.write_text(sysconfig.get_path("purelib") + "\n")

    def git(self, *arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=self.tree, check=True)

    def build(self) -> None:
        command = [self.python, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "."]
        # The scripts of the environment that was copied (cmake, ninja) are found by name.
        done = subprocess.run(command, cwd=self.tree, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"the build failed:\n{done.stdout[-3000:]}{done.stderr[-6000:]}")

    def search(self, generator: str, arguments: list[str], seconds: float, seed: str) -> tuple[float | None, str]:
        """Seconds until something was found, None if nothing was, and what was printed."""
        script = self.tree / "tests/fuzz" / f"{generator}.py"
        command = [self.python, "-P", script, "--seconds", str(seconds), "--seed", seed, *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        found = re.search(r"found after ([\d.]+) s", done.stdout)
        if done.returncode != (1 if found else 0):  # whatever else ended it found nothing
            raise SystemExit(f"{generator} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        return (float(found[1]) if found else None), done.stdout + done.stderr


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="patches, without .patch; all if none is given")
    parser.add_argument("--seconds", type=float, default=600.0, help="most for each")
    parser.add_argument("--seed", default="defects")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "lloyal-defects")
    parser.add_argument("--whole", action="store_true", help="first run each generator on the sources as they are")
    arguments = parser.parse_args()
    patches = [PATCHES / f"{name}.patch" for name in arguments.names] or sorted(PATCHES.glob("*.patch"))
    arguments.folder.mkdir(parents=True, exist_ok=True)
    scratch = Scratch(arguments.folder)
    n_missed = 0
    if arguments.whole:
        scratch.build()
        for generator in sorted({settings(patch)["generator"] for patch in patches}):
            took, text = scratch.search(generator, [], arguments.seconds, arguments.seed)
            report("(nothing taken out)", generator, took, text)
            n_missed += took is not None
    for patch in patches:
        how = settings(patch)
        scratch.git("checkout", "--quiet", "--force", ".")
        applied = subprocess.run(["git", "apply", patch], cwd=scratch.tree, capture_output=True, text=True, check=False)
        if applied.returncode:
            n_missed += 1
            report(patch.stem, how["generator"], None, f"# does not apply: {applied.stderr.strip()}")
            continue
        scratch.build()
        more = shlex.split(how.get("arguments", ""))
        took, text = scratch.search(how["generator"], more, arguments.seconds, arguments.seed)
        report(patch.stem, how["generator"], took, text)
        n_missed += took is None
    scratch.git("checkout", "--quiet", "--force", ".")
    return n_missed > 0


def report(name: str, generator: str, took: float | None, text: str) -> None:
    """A line of the table; what a generator says first in a comment is its verdict."""
    said = "; ".join([line[2:] for line in text.splitlines() if line.startswith("# ")][:2])
    after = "not found" if took is None else f"{took:.1f} s"
    print(f"{name:28} {generator:8} {after:>10}  {said[:120]}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
