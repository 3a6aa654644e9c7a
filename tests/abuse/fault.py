"""Faults put into ggml from outside: functions of the CPU buffer type replaced while a block runs."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

from lloyal.llama import backend

# The members of ggml_backend_buffer_type_i, in order: get_name, alloc_buffer, get_alignment, get_max_size.
ALLOC_BUFFER = 1
GET_MAX_SIZE = 3

_ALLOC = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_MAX_SIZE = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p)


@contextlib.contextmanager
def _member(index: int, replacement: object) -> Iterator[None]:
    # Beside the compiled extensions; in an editable install lloyal/__init__.py is elsewhere.
    (library,) = (Path(backend.__file__).parents[1] / "lib").glob("libggml-base.*")
    ggml = ctypes.CDLL(str(library))
    ggml.ggml_backend_cpu_buffer_type.restype = ctypes.c_void_p
    slot = ctypes.c_void_p.from_address(ggml.ggml_backend_cpu_buffer_type() + index * ctypes.sizeof(ctypes.c_void_p))
    original = slot.value
    slot.value = ctypes.cast(replacement, ctypes.c_void_p).value
    try:
        yield
    finally:
        slot.value = original


@contextlib.contextmanager
def no_device_memory() -> Iterator[list[int]]:
    """Every allocation of a buffer fails; gives the sizes that were asked for."""
    asked: list[int] = []

    def allocate(_buffer_type: int, size: int) -> None:
        asked.append(size)

    with _member(ALLOC_BUFFER, _ALLOC(allocate)):
        yield asked


@contextlib.contextmanager
def largest_buffer(size: int) -> Iterator[None]:
    """Buffers may have at most `size` bytes."""
    with _member(GET_MAX_SIZE, _MAX_SIZE(lambda _buffer_type: size)):
        yield
