"""Random histories of everything that changes a state, against lists of tokens.

    python -P tests/fuzz/state.py --seconds 600 --seed 7
    python -P tests/fuzz/state.py --config gemma3          only this model
    python -P tests/fuzz/state.py --config arch:deepseek4  one of llama.cpp's generated models; or a file of them
    python -P tests/fuzz/state.py --replay FILE            what a failure printed

A failure is cut down to the operations it needs and printed as something that can be run again. The exit code is 1 if
there was one.
"""

from __future__ import annotations

import argparse
import atexit
import datetime
import json
import math
import random
import shutil
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

if not __package__:  # started as a script: `tests` without the checkout on the path, where lloyal/ is not compiled
    _tests = types.ModuleType("tests")
    _tests.__path__ = [str(Path(__file__).resolve().parents[1])]
    sys.modules["tests"] = _tests

from tests.fuzz.harness import ROOT, Worker, shrink
from tests.fuzz.state_config import KNOWN, Config


class Fuzz:
    def __init__(
        self,
        seed: str,
        model: str | None = None,
        left_out: tuple[str, ...] = (),
        avoid: tuple[str, ...] = (),
        worker: Worker | None = None,
    ) -> None:
        self.seed = seed
        self.model = model
        self.left_out = left_out
        self.avoid = avoid
        self.worker = worker or Worker("state_worker")
        self.counts: dict[str, int] = {}
        self.n_histories = self.n_ops = 0

    def request(self, number: int, steps: int) -> dict[str, Any]:
        rng = random.Random(f"{self.seed} {number}")
        # Some histories of one configuration, so that what is measured for it serves several.
        config = Config.random(random.Random(f"{self.seed} {number // 4}"), self.model)
        return {
            "config": config.to_json(),
            "seed": rng.randrange(2**32),
            "steps": steps,
            "left_out": self.left_out,
            "avoid": self.avoid,
        }

    def run(
        self, seconds: float = math.inf, steps: int = 60, first: int = 0, most: int | None = None
    ) -> dict[str, Any] | None:
        """Histories until the time is up; the first that fails, as what `replay` takes."""
        deadline = time.monotonic() + seconds
        number = first
        while time.monotonic() < deadline and (most is None or number < first + most):
            request = self.request(number, steps)
            answer, ops = self.worker.ask(request)
            self.n_histories += 1
            self.n_ops += len(ops)
            for name, n in answer["counts"].items():
                self.counts[name] = self.counts.get(name, 0) + n
            number += 1
            self.number = number
            if answer["problem"]:
                return {"config": request["config"], "ops": ops, "number": number - 1, "seed": self.seed} | answer
        return None

    def shrink(self, found: dict[str, Any], seconds: float) -> dict[str, Any]:
        kind = found["problem"]["kind"]

        def fails(ops: list[Any]) -> bool:
            answer, _ = self.worker.ask({"config": found["config"], "ops": ops})
            return bool(answer["problem"]) and answer["problem"]["kind"] == kind

        if not fails(found["ops"]):
            return found | {"note": "it does not fail again by itself"}
        ops = shrink(found["ops"], fails, seconds)
        answer, _ = self.worker.ask({"config": found["config"], "ops": ops})
        return found | {"ops": ops, "problem": answer["problem"] or found["problem"]}


def show(found: dict[str, Any]) -> str:
    """A failure as text that `--replay` reads."""
    lines = [
        f"# {found['problem']['kind']} in history {found.get('number')} of seed {found.get('seed')}",
        *(f"# {line}" for line in found["problem"]["message"].splitlines()),
        *([f"# {found['note']}"] if "note" in found else []),
        f"# {Config.from_json(found['config'])}",
        json.dumps(found["config"]),
        *(json.dumps(one) for one in found["ops"]),
    ]
    return "\n".join(lines)


def read(path: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return {"config": lines[0], "ops": lines[1:]}


def generated(arch: str) -> str:
    """A model of an architecture, made by tools/archs; the file lives as long as this process."""
    folder = tempfile.mkdtemp(prefix="lloyal-arch-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    command = [sys.executable, "-P", str(ROOT / "tools/archs"), folder, "--arch", f"^{arch}$"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    path: str = json.loads(done.stdout.splitlines()[0])["path"]
    return path


def avoided(names: list[str]) -> tuple[str, ...]:
    return tuple(KNOWN) if list(names) == ["known"] else tuple(names)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", default=str(datetime.date.today()), help="default: the day")
    parser.add_argument("--config", help="only this model, or this file")
    parser.add_argument("--steps", type=int, default=60, help="operations of a history")
    parser.add_argument("--left-out", nargs="*", default=(), help="operations not to use")
    parser.add_argument("--avoid", nargs="*", default=(), help="names of state_config.KNOWN, or 'known' for all")
    parser.add_argument("--keep-going", action="store_true", help="go on after a failure")
    parser.add_argument("--shrink", type=float, default=60.0, help="seconds to cut a failure down")
    parser.add_argument("--replay", type=Path, help="run one history again")
    parser.add_argument("--json", type=Path, help="append failures to this file, one a line")
    arguments = parser.parse_args()
    if arguments.replay:
        worker = Worker("state_worker")
        answer, _ = worker.ask(read(arguments.replay))
        worker.close()
        print(json.dumps(answer["counts"]), "\n" + (answer["problem"] or {"message": "fine"})["message"])
        return bool(answer["problem"])
    model = arguments.config
    if model and model.startswith("arch:"):
        model = generated(model.removeprefix("arch:"))
    fuzz = Fuzz(arguments.seed, model, tuple(arguments.left_out), avoided(arguments.avoid))
    begin = time.monotonic()
    n_failed = number = 0
    while True:
        left = arguments.seconds - (time.monotonic() - begin)
        if left <= 0:
            break
        found = fuzz.run(left, arguments.steps, number)
        if found is None:
            break
        number = fuzz.number
        n_failed += 1
        found["after"] = round(time.monotonic() - begin, 1)
        found = fuzz.shrink(found, arguments.shrink)
        print(show(found), flush=True)
        print(f"# found after {found['after']} s, {fuzz.n_histories} histories\n", flush=True)
        if arguments.json:
            with arguments.json.open("a") as file:
                file.write(json.dumps(found) + "\n")
        if not arguments.keep_going:
            break
    seconds = time.monotonic() - begin
    fuzz.worker.close()
    for name, n in sorted(fuzz.counts.items()):
        print(f"{n:8} {name}")
    print(
        f"seed {arguments.seed}: {fuzz.n_histories} histories, {fuzz.n_ops} operations in {seconds:.0f} s, "
        f"{n_failed} failed"
    )
    return n_failed > 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RuntimeError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
