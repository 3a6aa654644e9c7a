"""What an abuse case works with: contexts whose history is known, and the check that they still decode right.

A case is a function in one of the ``cases_*`` modules here, marked with `case`. It runs in a subprocess (see
``runner.py``), because what it does kills a process that calls llama.cpp without asking first.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import lloyal
from tests.abuse.models import RECIPES, write
from tests.models import tiny, tokens

# The default of llama.cpp for sequences is 1, ours 8; small caches keep the cases fast.
CONTEXT: dict[str, Any] = {"n_ctx": 256, "n_batch": 256, "n_ubatch": 64, "n_seq_max": 4, "n_threads": 1}
# Rows of a cache may lie elsewhere than in the twin, so additions run in another order. The models' logits move by more
# than 0.5 when half of their context changes.
TOLERANCE = 5e-3


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to hurt llama.cpp.

    Attributes
    ----------
    number : str
        Its row in the table of README.md.
    given : str
        The input, in a few words.
    upstream : str
        What llama.cpp does with it.
    ours : str
        What we do: an exception's name, or a few words.
    run : callable
        The case itself.
    """

    number: str
    given: str
    upstream: str
    ours: str
    run: Callable[[Lab], None]

    @property
    def name(self) -> str:
        return self.run.__name__


CASES: dict[str, Case] = {}


def case(
    number: str, given: str, *, upstream: str, ours: str
) -> Callable[[Callable[[Lab], None]], Callable[[Lab], None]]:
    """Register a case."""

    def register(run: Callable[[Lab], None]) -> Callable[[Lab], None]:
        if run.__name__ in CASES:
            raise ValueError(f"two cases are called {run.__name__}")
        CASES[run.__name__] = Case(number, given, upstream, ours, run)
        return run

    return register


@dataclasses.dataclass
class Watched:
    """A context and every batch it decoded."""

    ctx: lloyal.Context
    params: dict[str, Any]
    batches: list[list[tuple[int, int, list[int]]]] = dataclasses.field(default_factory=list)


class Lab:
    """Makes contexts, decodes into them, and checks them when the case is over."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.watched: list[Watched] = []
        self.models: dict[str, lloyal.Model] = {}
        self.refusals = 0

    def model(self, name: str) -> lloyal.Model:
        """A tiny model, of `tests.models` or of `tests.abuse.models`."""
        if name not in self.models:
            self.models[name] = lloyal.Model(write(name, self.folder) if name in RECIPES else tiny(name))
        return self.models[name]

    def context(self, model: str | lloyal.Model = "llama", /, **params: Any) -> lloyal.Context:
        """A small context that `check` will compare with a twin."""
        loaded = self.model(model) if isinstance(model, str) else model
        ctx = lloyal.Context(loaded, **(CONTEXT | params))
        self.watched.append(Watched(ctx, params))
        return ctx

    def feed(self, ctx: lloyal.Context, *parts: tuple[int, int, Sequence[int]]) -> np.ndarray:
        """Decode ``(seq_id, first position, tokens)`` parts as one batch; the logits of the last token."""
        for watched in self.watched:
            if watched.ctx is ctx:
                watched.batches.append([(seq_id, pos0, list(ids)) for seq_id, pos0, ids in parts])
        return decode(ctx, *parts)

    @contextlib.contextmanager
    def refused(self, error: type[Exception], *texts: object) -> Iterator[None]:
        """The block must raise exactly `error`, one of ours, whose message holds every text."""
        try:
            yield
        except error as raised:
            if type(raised) is not error:
                raise AssertionError(f"expected {error.__name__}, got {type(raised).__name__}: {raised}") from raised
            missing = [str(text) for text in texts if str(text) not in str(raised)]
            if missing:
                raise AssertionError(f"{missing} missing in the message: {raised}") from raised
            if not isinstance(raised, lloyal.errors.LloyalError):
                raise AssertionError(f"{error.__name__} is not ours") from raised
            self.refusals += 1
        else:
            raise AssertionError(f"nothing was raised, expected {error.__name__}")

    def content(self, ctx: lloyal.Context, seq_id: int) -> bytes:
        """What a sequence holds, whatever its id and its cells: its state after a trip to an empty context."""
        for watched in self.watched:
            if watched.ctx is ctx:
                with lloyal.Context(ctx.model, **(CONTEXT | watched.params)) as empty:
                    empty.state_seq_set_data(ctx.state_seq_get_data(seq_id), 0)
                    return empty.state_seq_get_data(0)
        raise AssertionError("not a context of this lab")

    def forget(self, ctx: lloyal.Context, seq_id: int) -> None:
        """The case emptied `seq_id`: it is empty now, and starts again right."""
        if ctx.memory.seq_pos_max(seq_id) != -1:
            raise AssertionError(f"sequence {seq_id} is not empty: it ends at {ctx.memory.seq_pos_max(seq_id)}")
        for watched in self.watched:
            if watched.ctx is ctx:
                watched.batches = [
                    kept for batch in watched.batches if (kept := [part for part in batch if part[0] != seq_id])
                ]

    def check(self) -> None:
        """Every open context decodes on like a twin that was only given the same batches, in old and new sequences."""
        for watched in self.watched:
            ctx = watched.ctx
            if ctx.closed or ctx.memory.kind == "none":
                continue
            twin = lloyal.Context(ctx.model, **(CONTEXT | watched.params))
            for batch in watched.batches:
                decode(twin, *batch)
            ends: dict[int, int] = {}
            for batch in watched.batches:
                for seq_id, pos0, ids in batch:
                    ends[seq_id] = pos0 + len(ids)
            free = [seq for seq in range(ctx.n_seq_max) if seq not in ends and ctx.memory.seq_pos_max(seq) == -1]
            probes = [*ends.items(), *[(seq, 0) for seq in free[:1]]]
            for seq_id, pos in probes:
                probe = tokens(min(3, ctx.n_batch), seed=99)
                got, want = decode(ctx, (seq_id, pos, probe)), decode(twin, (seq_id, pos, probe))
                far = float(np.max(np.abs(got - want)))
                if not far <= TOLERANCE:
                    raise AssertionError(f"{ctx!r}: sequence {seq_id} goes on wrong, logits differ by {far}")
            twin.close()

    def close(self) -> None:
        for watched in self.watched:
            watched.ctx.close()
        for model in self.models.values():
            model.close()
        left = {kind: n for kind, n in lloyal.live_handles().items() if n}
        if left:
            raise AssertionError(f"native objects were left behind: {left}")


def decode(ctx: lloyal.Context, *parts: tuple[int, int, Sequence[int]]) -> np.ndarray:
    """Decode parts as one batch, with an output for the last token of each; the logits of the last."""
    batch = lloyal.Batch()
    for seq_id, pos0, ids in parts:
        batch.extend(list(ids), pos0, seq_id, "last")
    ctx.decode(batch)
    return ctx.logits(copy=True)


def check(condition: object, message: str) -> None:
    """An assertion that says what it found, also under ``python -O``."""
    if not condition:
        raise AssertionError(message)
