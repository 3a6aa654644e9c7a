"""Raw sequence states of llama.cpp, read without any of lloyal's code, so that two of them can be compared.

llama.cpp writes the rows of an attention cache in the order of their cells. Sorted by position two states are equal
byte for byte exactly if they hold the same rows, wherever the cells lie; and what is loaded into an empty cache from a
sorted state lies in cells 0, 1, 2 and so on.
"""

from __future__ import annotations

import dataclasses
import struct

import numpy as np

MAGIC = 0xAF143CD8
EXT_SIZE = 12  # M-RoPE coordinates and token of a cell
# Caches and recurrent states in the order llama.cpp writes them.
LAYERS_OF = {
    "attention": ("cache",),
    "sliding_window": ("cache", "cache"),
    "recurrent": ("recurrent",),
    "hybrid": ("cache", "recurrent"),
    "hybrid_sliding_window": ("cache", "cache", "recurrent"),
}


@dataclasses.dataclass
class Tensor:
    """K or V of one layer: its header as it is written, and bytes of shape (pieces, cells, bytes of a piece)."""

    header: bytes
    data: np.ndarray


@dataclasses.dataclass
class Cache:
    """One attention cache of one sequence, rows in order of position."""

    n_stream: int
    positions: np.ndarray
    ext: np.ndarray
    layers_header: bytes
    tensors: list[Tensor]

    def permuted(self, rng: np.random.Generator) -> Cache:
        rows = rng.permutation(len(self.positions))
        tensors = [Tensor(tensor.header, tensor.data[:, rows]) for tensor in self.tensors]
        return dataclasses.replace(self, positions=self.positions[rows], ext=self.ext[rows], tensors=tensors)

    def encode(self) -> bytes:
        parts = [struct.pack("<I", self.n_stream)]
        for stream in range(self.n_stream):
            # Which stream it was is no part of the content: llama.cpp reads it into the destination's.
            n = len(self.positions) if stream == 0 else 0
            parts.append(struct.pack("<I", n))
            if n == 0:
                continue
            for pos, ext in zip(self.positions, self.ext, strict=True):
                parts += [struct.pack("<iI", pos, 1), ext.tobytes(), struct.pack("<i", 0)]
            parts.append(self.layers_header)
            for tensor in self.tensors:
                parts += [tensor.header, tensor.data.tobytes()]
        return b"".join(parts)


@dataclasses.dataclass
class RawState:
    """What `state_seq_get_data_ext` gives for one sequence, taken apart."""

    caches: list[Cache]
    recurrent: bytes

    def without_stale(self, window: int) -> RawState:
        """Without rows of the window cache, the last one, that no next token attends to: their cells may be reused."""
        cache = self.caches[-1]
        kept = cache.positions > cache.positions.max(initial=0) + 1 - window
        tensors = [Tensor(tensor.header, tensor.data[:, kept]) for tensor in cache.tensors]
        cache = dataclasses.replace(cache, positions=cache.positions[kept], ext=cache.ext[kept], tensors=tensors)
        return RawState([*self.caches[:-1], cache], self.recurrent)

    def encode(self) -> bytes:
        """A blob for `state_seq_set_data_ext`."""
        return struct.pack("<Ii", MAGIC, 0) + b"".join(cache.encode() for cache in self.caches) + self.recurrent

    def permuted(self, rng: np.random.Generator) -> RawState:
        """The same rows in a random order: llama.cpp puts them into its cells as they come."""
        return RawState([cache.permuted(rng) for cache in self.caches], self.recurrent)


def parse(blob: bytes, kind: str, mrope: bool = False, has_v: bool = True) -> RawState:
    """Take a state of memory `kind` apart and sort its rows; every byte of it must be accounted for."""
    at = 8
    assert struct.unpack_from("<I", blob)[0] == MAGIC

    def take(form: str) -> tuple[int, ...]:
        nonlocal at
        found = struct.unpack_from(form, blob, at)
        at += struct.calcsize(form)
        return found

    def tensor(n_cells: int, order: np.ndarray, transposed: bool) -> Tensor:
        nonlocal at
        begin = at
        if transposed:
            _, size, n_pieces = take("<iII")
        else:
            _, size = take("<iQ")
            n_pieces = 1
        header, n = blob[begin:at], n_pieces * n_cells * size
        data = np.frombuffer(blob, np.uint8, n, at).reshape(n_pieces, n_cells, size)
        at += n
        return Tensor(header, data[:, order])

    def cache() -> Cache:
        nonlocal at
        (n_stream,) = take("<I")
        found = Cache(n_stream, np.zeros(0, np.int32), np.zeros((0, 0), np.uint8), b"", [])
        for _ in range(n_stream):
            (n,) = take("<I")
            if n == 0:
                continue
            assert found.positions.size == 0, "one sequence in two streams"
            cell = np.dtype([("pos", "<i4"), ("n_seq", "<u4"), ("ext", "V", EXT_SIZE * mrope), ("seq", "<i4")])
            cells = np.frombuffer(blob, cell, n, at)
            at += cells.nbytes
            assert (cells["n_seq"] == 1).all()
            order = np.argsort(cells["pos"], kind="stable")
            found.positions = cells["pos"][order]
            found.ext = np.frombuffer(cells["ext"].tobytes(), np.uint8).reshape(n, -1)[order]
            transposed, n_layer = take("<II")
            found.layers_header = blob[at - 8 : at]
            found.tensors = [tensor(n, order, False) for _ in range(n_layer)]
            if has_v:  # latent attention reads V out of K
                found.tensors += [tensor(n, order, bool(transposed)) for _ in range(n_layer)]
        return found

    caches = [cache() for part in LAYERS_OF[kind] if part == "cache"]
    recurrent = blob[at:]
    assert bool(recurrent) == ("recurrent" in LAYERS_OF[kind]), f"{len(recurrent)} bytes are left of a {kind} state"
    return RawState(caches, recurrent)
