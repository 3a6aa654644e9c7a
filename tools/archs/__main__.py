"""Writes llama.cpp's tiny models, one per architecture, with weights that make them sensitive to their context.

    python tools/archs FOLDER                      all of them: about 128 files, 900 MB, half a minute
    python tools/archs FOLDER --arch '^llama$'     the architectures that match

Upstream's own generator makes the files; it is compiled against the installed lloyal at the first use and kept in a
cache folder. A line of JSON per file goes to stdout: its path, the class of memory llama.cpp gives it, and its
sensitivity: how far its logits move when half of the context is replaced.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from sensitivity import measure
from weights import rescale

from build import program, run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arch", default="", help="architectures: a name, or a regular expression")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--as-generated", action="store_true", help="do not rescale the weights")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    before = set(arguments.folder.glob("*.gguf"))
    command = [*program("generate"), "-s", str(arguments.seed), "-o", str(arguments.folder)]
    run(command + (["-a", arguments.arch] if arguments.arch else []))
    made = sorted(set(arguments.folder.glob("*.gguf")) - before)
    if not made:
        raise SystemExit(
            f"--arch {arguments.arch!r} matches no architecture that the generator writes (or the files "
            f"were in {arguments.folder} before)"
        )
    for path in made:
        if not arguments.as_generated:
            rescale(path)
    classes = run([*program("memory_class"), *map(str, made)]).split()
    for path, name in zip(made, classes, strict=True):
        print(json.dumps({"path": str(path), "memory_class": name, "sensitivity": measure(path)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
