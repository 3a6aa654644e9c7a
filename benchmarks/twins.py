"""The C++ twins, in this process: they share the libraries that lloyal has loaded, and nothing else with it."""

from __future__ import annotations

import argparse
import ctypes as ct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import lloyal  # loads the libraries the twins are linked with

ROOT = Path(__file__).resolve().parent.parent
BUILT = ROOT / "build" / "benchmarks" / "libtwins.so"

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "use_thread_time": (None, ct.c_bool),
    "twin_open": (ct.c_void_p, ct.c_char_p, ct.c_uint32, ct.c_uint32, ct.c_uint32, ct.c_uint32, ct.c_bool),
    "twin_borrow": (ct.c_void_p, ct.c_void_p),
    "twin_close": (None, ct.c_void_p),
    "twin_generate": (ct.c_int64, ct.c_void_p, ct.c_void_p, ct.c_int32, ct.c_int32, ct.c_void_p),
    "twin_branches": (
        ct.c_int64,
        ct.c_void_p,
        ct.c_void_p,
        ct.c_int32,
        ct.c_int32,
        ct.c_int32,
        ct.c_int32,
        ct.c_void_p,
    ),
    "twin_sample": (ct.c_int64, ct.c_void_p, ct.c_int32, ct.c_int32),
    "lloyal_sample": (ct.c_int64, ct.c_void_p, ct.c_int32, ct.c_int32),
    "twin_set_state": (ct.c_size_t, ct.c_void_p, ct.c_char_p, ct.c_size_t),
    "twin_seq_state_size": (ct.c_size_t, ct.c_void_p, ct.c_int32),
    "twin_seq_state": (ct.c_size_t, ct.c_void_p, ct.c_int32, ct.c_void_p, ct.c_size_t),
    "twin_save": (ct.c_int64, ct.c_void_p, ct.c_int32, ct.c_uint32, ct.c_void_p, ct.c_size_t, ct.c_void_p),
    "twin_restore": (ct.c_int64, ct.c_void_p, ct.c_int32, ct.c_uint32, ct.c_void_p, ct.c_size_t),
    "twin_seq_cp": (ct.c_int64, ct.c_void_p, ct.c_int32, ct.c_int32),
    "twin_seq_rm": (ct.c_int64, ct.c_void_p, ct.c_int32),
    "twin_slices": (ct.c_size_t, ct.c_void_p, ct.c_int32),
    "blocks_new": (ct.c_void_p, ct.c_size_t),
    "blocks_free": (None, ct.c_void_p),
    "blocks_copy": (ct.c_int64, ct.c_void_p),
    "blocks_equal": (ct.c_bool, ct.c_void_p),
    "copies_new": (ct.c_void_p, ct.c_void_p, ct.c_int32),
    "copies_free": (None, ct.c_void_p),
    "copies_run": (ct.c_int64, ct.c_void_p),
}


def arguments(description: str | None) -> argparse.ArgumentParser:
    """What every benchmark with twins asks for."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--twins", type=Path, default=BUILT, help="the built library (see benchmarks/README.md)")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument(
        "--thread-time",
        action="store_true",
        help="count the processor time of this thread, not the wall: for machines that do other work",
    )
    return parser


class Library:
    """The functions of libtwins, and the clock for both sides."""

    def __init__(self, path: Path, *, thread_time: bool = False) -> None:
        if not path.exists():
            raise SystemExit(f"{path} is missing: build it as benchmarks/README.md says, or name it with --twins")
        self.calls = ct.CDLL(str(path))
        for name, (result, *parameters) in _SIGNATURES.items():
            function = getattr(self.calls, name)
            function.restype, function.argtypes = result, parameters
        self.calls.use_thread_time(thread_time)
        self.clock = time.thread_time if thread_time else time.perf_counter

    def open(
        self,
        model: Path,
        *,
        n_ctx: int,
        n_batch: int = 512,
        n_ubatch: int = 512,
        n_seq_max: int = 1,
        flash_attn: bool = True,
    ) -> Twin:
        handle = self.calls.twin_open(str(model).encode(), n_ctx, n_batch, n_ubatch, n_seq_max, flash_attn)
        if not handle:
            raise RuntimeError(f"the twin cannot open {model}")
        return Twin(self.calls, handle)

    def borrow(self, ctx: lloyal.Context) -> Twin:
        """A twin in the context of our side: the same pages, and none of ours in its way. Clear it before and after."""
        # The handle is the first that ContextBase holds, behind the object's head and the table of its methods.
        handle = ct.c_void_p.from_address(id(ctx) + object.__basicsize__ + ct.sizeof(ct.c_void_p)).value
        return Twin(self.calls, self.calls.twin_borrow(handle))


class Twin:
    """A model and a context that only C++ touches. Times are in seconds."""

    def __init__(self, calls: Any, handle: int) -> None:
        self._calls = calls
        self._handle = handle
        self._blob = np.zeros(0, dtype=np.uint8)
        self._blob_size = 0

    def close(self) -> None:
        self._calls.twin_close(self._handle)
        self._handle = None

    def generate(self, prompt: Sequence[int], n: int) -> tuple[float, list[int]]:
        tokens = np.asarray(prompt, dtype=np.int32)
        out = np.empty(n, dtype=np.int32)
        ns = self._calls.twin_generate(self._handle, tokens.ctypes.data, len(tokens), n, out.ctypes.data)
        return _seconds(ns, "generate"), out.tolist()

    def branches(self, prompt: Sequence[int], n_branches: int, n: int, picking: str) -> tuple[float, list[list[int]]]:
        """`n` steps of several texts that begin with the prompt; the tokens by text."""
        tokens = np.asarray(prompt, dtype=np.int32)
        out = np.empty((n, n_branches), dtype=np.int32)
        ns = self._calls.twin_branches(
            self._handle, tokens.ctypes.data, len(tokens), n_branches, n, ("none", "greedy", "chain").index(picking),
            out.ctypes.data,
        )  # fmt: skip
        return _seconds(ns, "branches"), out.T.tolist()

    def set_state(self, state: bytes) -> None:
        if self._calls.twin_set_state(self._handle, state, len(state)) == 0:
            raise RuntimeError("the twin refused the state")

    def seq_state(self, seq_id: int) -> bytes:
        out = np.empty(self._calls.twin_seq_state_size(self._handle, seq_id), dtype=np.uint8)
        size = self._calls.twin_seq_state(self._handle, seq_id, out.ctypes.data, out.size)
        return out[:size].tobytes()

    def save(self, seq_id: int, flags: int) -> float:
        """llama.cpp's own save; the next `restore` reads what it wrote."""
        if self._blob.size == 0:
            self._blob = np.zeros(1 << 22, dtype=np.uint8)  # the cell table of 16 k tokens is 200 kB
        size = ct.c_size_t()
        ns = self._calls.twin_save(
            self._handle, seq_id, flags, self._blob.ctypes.data, self._blob.size, ct.addressof(size)
        )
        self._blob_size = size.value
        return _seconds(ns, "save")

    def restore(self, seq_id: int, flags: int) -> float:
        ns = self._calls.twin_restore(self._handle, seq_id, flags, self._blob.ctypes.data, self._blob_size)
        return _seconds(ns, "restore")

    def seq_cp(self, seq_from: int, seq_to: int) -> float:
        return _seconds(self._calls.twin_seq_cp(self._handle, seq_from, seq_to), "seq_cp")

    def seq_rm(self, seq_id: int) -> float:
        return _seconds(self._calls.twin_seq_rm(self._handle, seq_id), "seq_rm")

    def n_slices(self, seq_id: int) -> int:
        return int(self._calls.twin_slices(self._handle, seq_id))

    def copies(self, seq_id: int) -> Copies:
        return Copies(self._calls, self._handle, seq_id)


def sample_seconds(library: Library, whose: str, row: np.ndarray, n: int) -> float:
    """Seconds of one pick by a chain of penalties, top-k, top-p, temperature and distribution: "twin" or "lloyal"."""
    ns = getattr(library.calls, f"{whose}_sample")(row.ctypes.data, len(row), n)
    return _seconds(ns, "sample") / n


class Copies:
    """The copies of one full save by lloyal's copy list, without anything around them."""

    def __init__(self, calls: Any, twin: Any, seq_id: int) -> None:
        self._calls = calls
        self._handle = calls.copies_new(twin, seq_id)

    def run(self) -> float:
        return _seconds(self._calls.copies_run(self._handle), "copies")

    def close(self) -> None:
        self._calls.copies_free(self._handle)


class Blocks:
    """A memcpy of `size` bytes between two blocks that are in memory already."""

    def __init__(self, library: Library, size: int) -> None:
        self._calls = library.calls
        self._handle = self._calls.blocks_new(size)

    def copy(self) -> float:
        return _seconds(self._calls.blocks_copy(self._handle), "memcpy")

    def equal(self) -> bool:
        return bool(self._calls.blocks_equal(self._handle))

    def close(self) -> None:
        self._calls.blocks_free(self._handle)


def _seconds(ns: int, what: str) -> float:
    if ns < 0:
        raise RuntimeError(f"the twin's {what} failed")
    return ns / 1e9
