"""``lloyal bench width|speculative``: what a step costs by its rows, and what guesses are worth."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from lloyal import Batch, BranchStore, Context, Sampling
from lloyal.bench.timing import Timing, alternate, ratio
from lloyal.decoding import prefill
from lloyal.errors import InvalidArgument
from lloyal.speculative import Drafter, Speculator, SpeculatorStats

__all__ = ["WIDTHS", "measure_speculation", "measure_widths"]

WIDTHS = (1, 2, 3, 4, 5, 7, 9, 13, 17)
_Progress = Callable[[float, float], object]


def measure_widths(
    contexts: dict[str, Context],
    prompt: Sequence[int],
    depths: Sequence[int],
    *,
    widths: Sequence[int] = WIDTHS,
    rounds: int = 9,
    clock: Callable[[], float] = time.perf_counter,
    progress: _Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Seconds of a step that reads 1, 2, 3... rows of one sequence and gives the logits of each: all widths in turns.

    Parameters
    ----------
    contexts : dict of str to Context
        The settings to measure, by name; each empty, with room for ``max(depths) + max(widths)`` tokens in sequence 0.
    prompt : sequence of int
        At least ``max(depths)`` tokens.
    depths : sequence of int
        Tokens in front of the rows, ascending.
    widths, rounds
    clock : callable
    progress : callable, optional
        Called with the work done and all of it.

    Returns
    -------
    dict
        ``depths``: for each its ``n_tokens`` and ``settings``, which have ``widths``: ``n_rows``, ``seconds``, and
        ``steps``: the same in steps of one row, round by round.
    """
    found, done = [], 0
    for depth in depths:
        settings = []
        for name, ctx in contexts.items():
            at = ctx.memory.seq_pos_max(0) + 1
            prefill(ctx, list(prompt[at:depth]))
            with ctx.checkpoint(0) as start:

                def step(n: int, ctx: Context = ctx, start: Any = start, depth: int = depth) -> float:
                    batch = Batch()
                    batch.extend(prompt[:n], depth, 0, True)
                    began = clock()
                    ctx.decode(batch)
                    ctx.logits(n - 1)  # what was computed is here
                    seconds = clock() - began
                    start.restore(0)
                    return seconds

                sides = {str(n): partial(step, n) for n in widths}
                timings = alternate(sides, rounds)
            done += 1
            progress(done, len(depths) * len(contexts))
            settings.append({"name": name, "widths": [_width(timings, n, min(widths)) for n in widths]})
        found.append({"n_tokens": depth, "settings": settings})
    return {"depths": found}


def _width(timings: dict[str, Timing], n: int, base: int) -> dict[str, Any]:
    mine, single = timings[str(n)], timings[str(base)]
    return {"n_rows": n, "seconds": mine.as_json(), "steps": ratio(mine, single).as_json()}


def measure_speculation(
    ctx: Context,
    drafter: Callable[[], Drafter],
    prompts: Sequence[str],
    *,
    n_tokens: int = 256,
    numbers: Sequence[int | None] = (None,),
    sampling: Sampling | None = None,
    rounds: int = 5,
    clock: Callable[[], float] = time.perf_counter,
    progress: _Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Plain steps and steps with guesses, in turns, in one context: seconds of a token, and whether the texts agree.

    Parameters
    ----------
    ctx : Context
        With a free sequence and room for a prompt and `n_tokens`.
    drafter : callable
        Makes a new one for every text.
    prompts : sequence of str
        One after another.
    n_tokens : int
        Of each text; where the model would end it, it goes on.
    numbers : sequence of int or None
        Guesses of a step; None lets the speculator find out.
    sampling : Sampling, optional
        By default the most probable token.
    rounds, clock, progress
        As in `measure_widths`.

    Returns
    -------
    dict
        ``plain`` and ``numbers``: seconds of a token, the ratio to plain (more is faster), what the speculator says.
    """
    how = Sampling(temperature=0) if sampling is None else sampling
    if not prompts:
        raise InvalidArgument("prompts is empty: give one text at least")
    texts: dict[str, list[list[int]]] = {}
    stats: dict[str, SpeculatorStats] = {}
    done = 0

    def run(name: str, n: int | None, guessing: bool) -> float:
        nonlocal done
        speculator = Speculator(ctx, drafter(), n=n) if guessing else None
        seconds, made = 0.0, []
        for prompt in prompts:
            with ExitStack() as stack:
                store = stack.enter_context(BranchStore(ctx))
                branch = store.create(prompt, sampling=how)
                branch.set_bias({t: float("-inf") for t in range(ctx.vocab.n_tokens) if ctx.vocab.is_eog(t)})
                begin, end = branch.position, branch.position + n_tokens
                began = clock()
                while branch.position < end:
                    if speculator is None:
                        branch.step()
                    else:
                        speculator.step([branch])
                seconds += (clock() - began) * n_tokens / (branch.position - begin)
                made.append(branch.tokens[begin:end])
        texts[name] = made
        if speculator is not None:
            stats[name] = speculator.stats
        done += 1
        progress(done, (rounds + 1) * (1 + len(numbers)))
        return seconds / (len(prompts) * n_tokens)

    sides = {"plain": partial(run, "plain", 0, False)}
    names = {n: "auto" if n is None else str(n) for n in numbers}
    sides |= {name: partial(run, name, n, True) for n, name in names.items()}
    timings = alternate(sides, rounds)
    return {
        "n_tokens": n_tokens,
        "plain": timings["plain"].as_json(),
        "numbers": [
            {
                "n": n,
                "seconds": timings[name].as_json(),
                "speed": ratio(timings["plain"], timings[name]).as_json(),
                "same": _same(texts["plain"], texts[name]),
                "guessed": stats[name].guessed,
                "kept": stats[name].kept,
                "tokens_per_step": stats[name].tokens_per_step,
                "share_guessing": stats[name].seconds_guessing
                / max(1e-12, stats[name].seconds_guessing + stats[name].seconds_reading),
            }
            for n, name in names.items()
        ],
    }


def _same(plain: list[list[int]], other: list[list[int]]) -> float:
    """The part of the texts up to where they differ, if they do: near ties are decided by the size of a batch."""
    same = sum(next((i for i, (a, b) in enumerate(zip(p, o, strict=True)) if a != b), len(p))
               for p, o in zip(plain, other, strict=True))  # fmt: skip
    return same / sum(map(len, plain))
