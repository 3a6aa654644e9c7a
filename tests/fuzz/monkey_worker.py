"""The process in which the monkey's lines run. It may die: the lines it had announced say why."""

from __future__ import annotations

import faulthandler
import gc
import json
import logging
import os
import resource
import signal
import sys
import tempfile
import traceback
from typing import Any

SECONDS = 10  # for a line, of the whole processor: a loaded machine does not change it much
SLEEPS = 6  # times as long by the clock
MEMORY = 6 << 30


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what lines print, or close, is not the answer
    requests = os.fdopen(os.dup(0), "r")
    from tests.fuzz.monkey_lines import OPENING, Lines
    from tests.fuzz.monkey_pool import Pool

    logging.getLogger("lloyal").addHandler(logging.NullHandler())

    def say(**line: Any) -> None:
        answers.write(json.dumps(line) + "\n")
        answers.flush()

    for request in requests:
        asked = json.loads(request)
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            pool = Pool(folder)
            source = Lines(asked["seed"]) if "seed" in asked else None
            lines = asked.get("lines") or list(OPENING)
            n = asked.get("n", len(lines))
            problem = None
            for i in range(n):
                line = lines[i] if i < len(lines) else source.line() if source else ""
                say(op=line)
                faulthandler.dump_traceback_later(SLEEPS * SECONDS, exit=True)
                signal.setitimer(signal.ITIMER_PROF, SECONDS * (os.cpu_count() or 1))  # all threads; ends the process
                problem = run(pool, line)
                signal.setitimer(signal.ITIMER_PROF, 0)
                faulthandler.cancel_dump_traceback_later()
                if problem:
                    break
            pool.objects.clear()
            pool.names.clear()
            gc.collect()
            os.chdir("/")
        say(done={"problem": problem, "counts": {"lines": i + 1}})


def run(pool: Any, line: str) -> dict[str, str] | None:
    """What is wrong with a line, or None."""
    from tests.fuzz.monkey_pool import expected

    try:
        eval(compile(line, "<line>", "eval"), dict(pool.names))
    except BaseException as error:
        if not expected(error):
            return {"kind": type(error).__name__, "message": traceback.format_exc()[-1500:]}
    try:
        busy = pool.busy_objects()
    except BaseException:
        return {"kind": "after", "message": traceback.format_exc()[-1500:]}
    if busy:
        return {"kind": "busy", "message": f"left busy: {', '.join(busy)}"}
    sys.stderr.flush()
    return None
