"""Runs histories in this process: a line of JSON in, a line for every operation and one for the verdict out."""

from __future__ import annotations

import gc
import json
import random
import sys
import traceback
from typing import Any

import lloyal.llama.backend
import tests.fuzz.state_saving  # noqa: F401
from tests.fuzz.state_config import Config
from tests.fuzz.state_ops import OPS, Args, long_start
from tests.fuzz.state_world import Violation, World

WEIGHTS = {name: kind.weight for name, kind in OPS.items()}


def say(**line: Any) -> None:
    print(json.dumps(line), flush=True)


def live() -> dict[str, int]:
    return dict(lloyal.llama.backend.live_handles())


def apply(world: World, name: str, args: Args) -> None:
    world.last_error = None
    OPS[name].apply(world, **args)
    world.check()


def generate(world: World, rng: random.Random, steps: int, left_out: frozenset[str]) -> None:
    names = [name for name in OPS if name not in left_out]
    # Some histories are about few things, so that those meet often.
    weights = [WEIGHTS[name] * rng.choice((0.2, 1.0, 1.0, 3.0)) for name in names]
    if rng.random() < 0.5:
        few = {"decode", *rng.sample(names, 3)}
        weights = [
            max(weight, 4.0) if name in few else 0.1 * weight for name, weight in zip(names, weights, strict=True)
        ]
    start = long_start(world.config, rng, world.avoid) if rng.random() < 0.4 else []
    for name, args in start:
        say(op=[name, args])
        apply(world, name, args)
    for _ in range(steps):
        name = rng.choices(names, weights)[0]
        args = OPS[name].propose(world, rng)
        if args is not None:
            say(op=[name, args])
            apply(world, name, args)


def history(request: dict[str, Any]) -> dict[str, Any]:
    config = Config.from_json(request["config"])
    world = None
    problem: dict[str, str] | None = None
    counts: dict[str, int] = {}
    from tests.fuzz.state_world import oracle_for

    oracle_for(config)
    gc.collect()
    before = live()
    oracle_slots = len(oracle_for(config).slots)
    try:
        world = World(config, frozenset(request.get("avoid", ())))
        if "ops" in request:
            for name, args in request["ops"]:
                apply(world, name, args)
        else:
            rng = random.Random(request["seed"])
            generate(world, rng, request["steps"], frozenset(request.get("left_out", ())))
    except Violation as error:
        problem = {"kind": error.kind, "message": str(error)}
    except Exception:
        problem = {"kind": "harness", "message": traceback.format_exc()}
    if world is not None:
        counts = world.counts
        new_slots = len(world.oracle.slots) - oracle_slots
        world.close()
        del world
        after = live()
        if after != before:
            gc.collect()
            after = live()
        before["contexts" if "contexts" in before else "context"] += new_slots
        if problem is None and after != before:
            problem = {"kind": "leak", "message": f"live handles {before} before, {after} after"}
    return {"problem": problem, "counts": counts}


def main() -> None:
    for line in sys.stdin:
        say(done=history(json.loads(line)))


if __name__ == "__main__":
    main()
