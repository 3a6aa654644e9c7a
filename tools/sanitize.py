"""Run tests on a build with ``LLOYAL_SANITIZE=address,undefined`` and judge what the sanitizers say.

    python -P tools/sanitize.py [PYTEST ARGUMENTS]

The runtimes are preloaded, for this process and every one the tests start, and write their reports into files: the
tests look at stderr themselves. A memory error anywhere fails, and so does undefined behaviour in our own code; what is
undefined in llama.cpp's is listed. Leaks are not looked for: the interpreter keeps much until it ends, and
tests/lifetimes counts live objects and resident memory.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ["tests/lifetimes", "tests/abuse", "tests/checkpoints", "tests/branches"]
# Freed memory waits in quarantine, and everything is several times slower: these measure just that. Others limit the
# address space, of which the sanitizer needs terabytes.
MEASURES = (
    "memory_stays_flat",
    "leave_nothing_behind",
    "release_the_gil",
    "releases_the_gil",
    "holding_the_gil",
    "ctrl_c",
    "threads_that_cannot_be_started",
)
DESELECT = " and ".join(f"not {name}" for name in MEASURES)


def runtime(name: str) -> str:
    """The path of a sanitizer's library, as the compiler that built the package names it."""
    compiler = os.environ.get("CXX", "c++")
    found = subprocess.run(
        [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(found).is_absolute():
        raise SystemExit(f"{compiler} has no {name}: install its sanitizer runtime, or set CXX")
    return found


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="lloyal-sanitize-") as folder:
        env = os.environ | {
            "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libubsan.so')}",
            "ASAN_OPTIONS": f"detect_leaks=0:exitcode=86:allocator_may_return_null=1:log_path={folder}/address",
            "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={folder}/undefined",
            "LLOYAL_SANITIZED": "1",
        }
        tests = [] if any(Path(argument.partition("::")[0]).exists() for argument in arguments) else TESTS
        command = [sys.executable, "-P", "-m", "pytest", "-k", DESELECT, *arguments, *tests]
        failed = subprocess.run(command, cwd=ROOT, env=env, check=False).returncode
        reports = {path: path.read_text(errors="replace") for path in sorted(Path(folder).iterdir())}
    errors = [text for path, text in reports.items() if "AddressSanitizer" in text]
    undefined = Counter(
        (match["place"], match["what"])
        for text in reports.values()
        for match in re.finditer(r"^(?P<place>\S+?:\d+):\d+: runtime error: (?P<what>.*)$", text, re.MULTILINE)
    )
    ours = {place: what for place, what in undefined if "vendor/llama.cpp" not in place}
    for text in errors:
        print(text)
    for (place, what), n in sorted(undefined.items()):
        print(f"{n:6}x {place}: {what}")
    print(
        f"address errors: {len(errors)}; undefined behaviour: {len(ours)} places of ours, "
        f"{len(undefined) - len(ours)} of llama.cpp's"
    )
    return failed or bool(errors) or bool(ours)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
