"""The trace of an agent, and how many tokens a step a drafter would give on it: no model is asked."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

from lloyal.speculative import Drafter

FILES = ("server.py", "routes.py", "models/user.py", "models/order.py", "config.py", "tasks/mail.py")
NAMES = ("timeout", "user_id", "order_total", "retry_count", "session_key", "page_size", "is_active")


def session(seed: int, turns: int = 10) -> list[tuple[bool, str]]:
    """Turns of a session, each with whether it was written by the model: tool calls in JSON, and results."""
    rng = random.Random(f"session {seed}")
    name, files = rng.choice(NAMES), rng.sample(FILES, 4)
    out = [(False, f"<|user|>Rename {name} to {name}_new in src/app and run the tests.\n")]
    for i in range(turns):
        file = f"src/app/{files[i // 3 % len(files)]}"
        old = f'    {name} = request.get("{name}")\n    if {name} is None:\n        raise ValueError("no {name}")\n'
        if i % 3 == 0:
            line = rng.randrange(10, 400)
            thought = f"I look at {file} to find where {name} is used."
            call = {"tool": "read_file", "path": file, "start_line": line, "end_line": line + 40}
            result = "".join(f"{line + k}: {part}\n" for k, part in enumerate(old.splitlines()))
        elif i % 3 == 1:
            thought = f"Now I replace {name} by {name}_new in {file}."
            new = old.replace(name, f"{name}_new")
            call = {"tool": "edit_file", "path": file, "old_text": old, "new_text": new}
            result = f"ok: {rng.randrange(2, 9)} lines changed\n"
        else:
            thought = "I run the tests to see whether all of it still works."
            call = {"tool": "run_tests", "command": "pytest -q", "timeout": 60}
            result = f"{rng.randrange(20, 90)} passed, {rng.randrange(3)} failed in {rng.random() * 9:.2f}s\n"
        out.append((True, "<|assistant|>" + json.dumps({"thought": thought, **call}) + "\n"))
        out.append((False, "<|tool|>" + result))
    return out


def simulate(drafter: Drafter, texts: Sequence[Sequence[tuple[bool, list[int]]]], n: int = 8) -> tuple[float, float]:
    """Tokens a step, and guesses, if the model writes exactly these turns."""
    made = steps = guessed = 0
    for turns in texts:
        text, waiting = drafter.start(), list[int]()
        for written, tokens in turns:
            if not written:
                waiting = waiting + tokens
                continue
            at = 0
            while at < len(tokens):
                drafter.feed(text, [*waiting, tokens[at]])
                guess = list(drafter.propose([text], n)[0])[:n]
                right = tokens[at + 1 : at + 1 + len(guess)]
                kept = next((i for i, (a, b) in enumerate(zip(guess, right, strict=False)) if a != b), len(right))
                waiting = tokens[at + 1 : at + 1 + kept]
                at += 1 + kept
                made, steps, guessed = made + 1 + kept, steps + 1, guessed + len(guess)
    return made / steps, guessed / steps
