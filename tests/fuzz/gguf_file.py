"""A GGUF file as lists that can be changed, and its bytes with the place of every number in them."""

from __future__ import annotations

import dataclasses
import math
import struct

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FORMATS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}
RANGES = {
    U8: (0, 2**8 - 1),
    I8: (-(2**7), 2**7 - 1),
    U16: (0, 2**16 - 1),
    I16: (-(2**15), 2**15 - 1),
    U32: (0, 2**32 - 1),
    I32: (-(2**31), 2**31 - 1),
    BOOL: (0, 1),
    U64: (0, 2**64 - 1),
    I64: (-(2**63), 2**63 - 1),
}

# Tensor types by number: values in a block and bytes of it.
BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74),
    18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2),
    26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
    40: (64, 36), 41: (128, 18), 42: (64, 18),
}  # fmt: skip


@dataclasses.dataclass
class Array:
    """Values of one type; those of strings are bytes."""

    kind: int
    values: list[object]


@dataclasses.dataclass
class Pair:
    key: bytes
    kind: int
    value: object


@dataclasses.dataclass
class Tensor:
    name: bytes
    shape: list[int]  # the row length first
    kind: int
    data: bytes
    offset: int | None = None  # instead of where it lies


@dataclasses.dataclass
class File:
    pairs: list[Pair]
    tensors: list[Tensor]
    version: int = 3
    alignment: int = 32

    def find(self, key: bytes) -> Pair | None:
        return next((pair for pair in self.pairs if pair.key == key), None)

    @property
    def arch(self) -> bytes:
        pair = self.find(b"general.architecture")
        return pair.value if pair and isinstance(pair.value, bytes) else b""

    def copy(self) -> File:
        pairs = [
            Pair(p.key, p.kind, Array(p.value.kind, list(p.value.values)) if isinstance(p.value, Array) else p.value)
            for p in self.pairs
        ]
        tensors = [Tensor(t.name, list(t.shape), t.kind, t.data) for t in self.tensors]
        return File(pairs, tensors, self.version, self.alignment)


def n_bytes(shape: list[int], kind: int) -> int:
    """What a tensor takes; rows that do not divide into blocks are rounded up."""
    block, size = BLOCKS.get(kind, (1, 1))
    n = 1
    for extent in shape[1:]:
        n *= extent
    return n * (-(-shape[0] // block) * size if shape else 0)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def number(self, kind: int) -> int | float:
        (value,) = struct.unpack_from("<" + FORMATS[kind], self.data, self.at)
        self.at += struct.calcsize(FORMATS[kind])
        return value

    def string(self) -> bytes:
        size = int(self.number(U64))
        self.at += size
        return self.data[self.at - size : self.at]

    def value(self, kind: int) -> object:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            inner = int(self.number(U32))
            n = int(self.number(U64))
            return Array(inner, [self.value(inner) for _ in range(n)])
        return self.number(kind)


def parse(data: bytes) -> File:
    """The contents of a genuine file."""
    reader = _Reader(data)
    reader.at = 4
    version = int(reader.number(U32))
    n_tensors, n_pairs = int(reader.number(U64)), int(reader.number(U64))
    pairs = []
    for _ in range(n_pairs):
        key = reader.string()
        kind = int(reader.number(U32))
        pairs.append(Pair(key, kind, reader.value(kind)))
    found = []
    for _ in range(n_tensors):
        name = reader.string()
        shape = [int(reader.number(U64)) for _ in range(int(reader.number(U32)))]
        found.append((name, shape, int(reader.number(U32)), int(reader.number(U64))))
    start = -(-reader.at // 32) * 32
    tensors = [
        Tensor(name, shape, kind, data[start + offset : start + offset + n_bytes(shape, kind)])
        for name, shape, kind, offset in found
    ]
    return File(pairs, tensors, version)


@dataclasses.dataclass
class Bytes:
    """A file as bytes; `spots` are the (offset, size) of the numbers that say how the rest is to be read."""

    data: bytearray
    spots: list[tuple[int, int]]
    n_header: int  # bytes before the tensors' data


class _Writer:
    def __init__(self) -> None:
        self.data = bytearray()
        self.spots: list[tuple[int, int]] = []

    def number(self, kind: int, value: int | float, spot: bool = False) -> None:
        if kind in RANGES:
            low, high = RANGES[kind]
            value = min(max(int(value), low), high) if math.isfinite(value) else high
        elif abs(value) > 3e38:
            value = math.copysign(math.inf, value)
        packed = struct.pack("<" + FORMATS[kind], value)
        if spot:
            self.spots.append((len(self.data), len(packed)))
        self.data += packed

    def string(self, value: bytes) -> None:
        self.number(U64, len(value), spot=True)
        self.data += value

    def value(self, kind: int, value: object) -> None:
        if kind == STRING:
            self.string(value if isinstance(value, bytes) else str(value).encode())
        elif kind == ARRAY:
            value = value if isinstance(value, Array) else Array(U8, [])
            self.number(U32, value.kind, spot=True)
            self.number(U64, len(value.values), spot=True)
            for item in value.values:
                self.value(value.kind, item)
        elif kind in FORMATS:
            self.number(kind, value if isinstance(value, (int, float)) else 0)


def encode(file: File) -> Bytes:
    """The bytes of `file`, whatever it says."""
    writer = _Writer()
    writer.data += b"GGUF"
    writer.number(U32, file.version, spot=True)
    writer.number(U64, len(file.tensors), spot=True)
    writer.number(U64, len(file.pairs), spot=True)
    for pair in file.pairs:
        writer.string(pair.key)
        writer.number(U32, pair.kind, spot=True)
        writer.value(pair.kind, pair.value)
    alignment = max(1, min(file.alignment, 4096))
    at = 0
    for tensor in file.tensors:
        writer.string(tensor.name)
        writer.number(U32, len(tensor.shape), spot=True)
        for extent in tensor.shape:
            writer.number(U64, extent, spot=True)
        writer.number(U32, tensor.kind, spot=True)
        writer.number(U64, at if tensor.offset is None else tensor.offset, spot=True)
        at += -(-len(tensor.data) // alignment) * alignment
    n_header = len(writer.data)
    writer.data += bytes(-n_header % alignment)
    for tensor in file.tensors:
        writer.data += tensor.data + bytes(-len(tensor.data) % alignment)
    return Bytes(writer.data, writer.spots, n_header)
