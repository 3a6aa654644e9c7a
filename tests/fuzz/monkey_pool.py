"""What the monkey plays with: objects by kind, values at the edges, and values that lie or reach back.

A history is a list of lines of Python that run in the namespace of a `Pool`, so that a line in a report can be read,
and run again.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import lloyal
import lloyal.llama as ll
from tests.models import tiny


class Boom(Exception):
    """Raised by values; the one foreign exception that may come out."""


class LyingInt(int):
    """An int that passes every comparison."""

    def __lt__(self, other: object) -> bool:
        return True

    __le__ = __gt__ = __ge__ = __eq__ = __lt__  # type: ignore[assignment]
    __hash__ = int.__hash__


class LyingFloat(float):
    def __lt__(self, other: object) -> bool:
        return True

    __le__ = __gt__ = __ge__ = __eq__ = __lt__  # type: ignore[assignment]
    __hash__ = float.__hash__


class LyingStr(str):
    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = str.__hash__


class Two:
    """Answers every protocol, the first time by one number and then by another."""

    def __init__(self, first: Any, then: Any, act: Callable[[], Any] | None = None) -> None:
        self.first, self.then, self.act, self.n = first, then, act, 0

    def next(self) -> Any:
        self.n += 1
        if self.act is not None and self.n <= 3:
            try:
                self.act()
            except Exception:
                self.n += 0
        return self.first if self.n == 1 else self.then

    def __index__(self) -> int:
        return int(self.next())

    def __int__(self) -> int:
        return int(self.then)

    def __float__(self) -> float:
        return float(self.next())

    def __bool__(self) -> bool:
        return bool(self.next())

    def __lt__(self, other: object) -> bool:
        return True

    __le__ = __gt__ = __ge__ = __lt__


class TwoList(Two):
    """A sequence whose length and items are decided while they are asked for."""

    def __len__(self) -> int:
        return abs(int(self.next())) % 1000

    def __getitem__(self, at: Any) -> Any:
        if not isinstance(at, int) or at > 20:
            raise IndexError(at)
        return self.next()

    def __iter__(self) -> Any:
        return iter([self.next() for _ in range(5)])


class TwoPath(Two):
    def __fspath__(self) -> Any:
        return self.next()


class Buffer(Two):
    """A buffer that reaches back when it is taken (Python 3.12 and later take it for one)."""

    def __buffer__(self, flags: int) -> memoryview:
        self.next()
        return memoryview(bytearray(256))


class Bomb:
    """Raises whatever is asked of it."""

    def _raise(self, *args: object) -> Any:
        raise Boom

    __index__ = __float__ = __len__ = __iter__ = __getitem__ = __fspath__ = __buffer__ = __eq__ = __bool__ = _raise
    __repr__ = __str__ = __array__ = _raise  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


DTYPES = ("f4", "f8", "f2", "i4", "i8", "u1", "u4", "?", "c8", ">f4", ">i4", ">i8", "O", "S4", "U2", "M8[s]", "V8")


def array(shape: Any, dtype: str, layout: str = "plain") -> np.ndarray:
    """An array of some type and layout."""
    made = np.zeros(shape, dtype)
    if layout == "strided" and made.ndim:
        made = np.repeat(made, 2, axis=-1)[..., ::2]
    elif layout == "turned":
        made = made.T
    elif layout == "reversed" and made.ndim:
        made = made[::-1]
    elif layout == "readonly":
        made.flags.writeable = False
    elif layout == "nan" and made.dtype.kind == "f":
        made[...] = np.nan
    elif layout == "ones" and made.dtype.kind in "fiu":
        made[...] = 1
    return made


MODELS = ("llama", "gemma3", "mamba2", "lfm2", "lfm2-swa", "falcon-h1", "qwen35", "gpt2")
EMBEDDED = ("nano", "nano-draft", "nano-hybrid")
QUANTIZED = ("q8_0", "q4_0", "q4_k_m", "iq4_nl", "mxfp4_moe")

_folder = Path(tempfile.mkdtemp(prefix="lloyal-monkey-"))
atexit.register(shutil.rmtree, _folder, ignore_errors=True)


def model_file(name: str) -> str:
    """A GGUF file: a tiny model, an embedded one, or that one quantized (``nano-draft:q8_0``).

    A copy, for lines write to it.
    """
    base, _, ftype = name.partition(":")
    made = _folder / f"{base}-{ftype or 'original'}.gguf"
    if not made.exists():
        found = lloyal.models.path(base) if base in EMBEDDED else tiny(base)
        if ftype:
            ll.quantize(found, made, ftype, n_threads=1)
        else:
            shutil.copy(found, made)
    return str(made)


class Pool:
    """Live objects by the name of their class, and what lines are made of."""

    KEEP = 4  # objects of a kind

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.objects: dict[str, list[Any]] = {}
        self.names: dict[str, Any] = {
            name: globals()[name]
            for name in ("LyingInt", "LyingFloat", "LyingStr", "Two", "TwoList", "TwoPath", "Buffer", "Bomb", "array")
        }
        self.names |= {"np": np, "lloyal": lloyal, "ll": ll, "pick": self.pick, "keep": self.keep, "file": model_file}
        self.names |= {"path": self.path, "feed": self.feed, "act": self.act, "together": self.together}
        self.names |= {"context": self.context, "busy": lambda: None}

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def pick(self, kind: str, k: int) -> Any:
        """The k-th live object of a kind; None if there is none."""
        found = self.objects.get(kind, [])
        return found[k % len(found)] if found else None

    def keep(self, value: Any) -> Any:
        """Put a result where it can be picked; what is too old goes."""
        for item in value if isinstance(value, (list, tuple)) and len(value) <= 4 else (value,):
            kind = type(item).__name__
            if type(item).__module__.startswith("lloyal") or isinstance(item, (bytes, np.ndarray)):
                rows = self.objects.setdefault(kind, [])
                rows.append(item)
                del rows[: -self.KEEP]
        return value

    def context(self, model: Any, **params: Any) -> Any:
        """A context, which is then used a little."""
        made = self.keep(lloyal.Context(model, **params))
        self.feed(made, 3, 0)
        return made

    def feed(self, ctx: Any, n: int, seq: int, logits: Any = True) -> None:
        """A decode as it should be, from where the sequence ends."""
        n_vocab = len(ctx.vocab)
        batch = lloyal.Batch()
        start = ctx.memory.seq_pos_max(seq) + 1
        batch.extend([(7 * (start + i) + seq) % min(n_vocab, 100) for i in range(n)], start, seq, logits)
        ctx.decode(batch)
        self.keep(batch)

    def act(self, kind: str, k: int, method: str, *args: Any) -> Callable[[], Any]:
        """For values that reach back: do something to an object."""

        def run() -> Any:
            return getattr(self.pick(kind, k), method)(*args)

        return run

    def together(self, *lines: str) -> None:
        """Run lines at the same time, each a few times."""

        def work(code: Any) -> None:
            for _ in range(3):
                try:
                    eval(code, dict(self.names))
                except Exception as error:
                    problems.append(error)

        problems: list[Exception] = []
        threads = [threading.Thread(target=work, args=(compile(line, "<line>", "eval"),)) for line in lines]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for error in problems:
            if not expected(error):
                raise error

    def busy_objects(self) -> list[str]:
        """Contexts and samplers that say they are busy while nobody is inside."""
        found = []
        checks = {"Context": lambda o: o.memory.seq_pos_max(0), "Sampler": lambda o: o.name}
        for kind, check in checks.items():
            for item in self.objects.get(kind, []):
                try:
                    check(item)
                except lloyal.errors.Busy:
                    found.append(kind)
                except lloyal.errors.LloyalError:
                    continue
        for batch in self.objects.get("Batch", []):
            try:
                batch.set_logits(2**40, False)
            except lloyal.errors.Busy:
                found.append("Batch")
            except lloyal.errors.LloyalError:
                continue
        return found


EXPECTED = (
    lloyal.errors.LloyalError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    BufferError,
    MemoryError,
    OSError,
    RecursionError,
    StopIteration,
    Boom,
)


def expected(error: BaseException) -> bool:
    """Whether an exception is one of ours, or a builtin that says that the argument was wrong."""
    return isinstance(error, EXPECTED)
