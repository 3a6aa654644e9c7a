"""A model whose cache is large and whose layers are cheap, and states of its cache that are edited as arrays."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np

# K and V rows as wide as those of a model of 1 B weights (8 heads of 64 values), in two layers: 4 KiB a token at f16,
# so that 16 k tokens are 64 MiB. Everything else is as small as it may be: filling the cache is what takes time.
N_LAYER, N_HEAD, HEAD, N_EMBD, N_FF, N_VOCAB = 2, 8, 64, 64, 96, 128


def write_thin_model(path: Path) -> Path:
    """A llama with random weights, under 1 MB."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(1 << 17)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(N_LAYER)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_rope_dimension_count(HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(N_VOCAB)
    writer.add_tokenizer_model("test")
    writer.add_token_list([f"tok_{i}" for i in range(N_VOCAB)])
    writer.add_token_scores([0.0] * N_VOCAB)

    def matrix(name: str, n_in: int, n_out: int) -> None:
        writer.add_tensor(name, rng.normal(0.0, n_in**-0.5, (n_out, n_in)).astype(np.float32))

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(N_EMBD, dtype=np.float32))

    matrix("token_embd.weight", N_EMBD, N_VOCAB)
    norm("output_norm.weight")
    matrix("output.weight", N_EMBD, N_VOCAB)
    for i in range(N_LAYER):
        norm(f"blk.{i}.attn_norm.weight")
        for part in "qkv":
            matrix(f"blk.{i}.attn_{part}.weight", N_EMBD, N_HEAD * HEAD)
        matrix(f"blk.{i}.attn_output.weight", N_HEAD * HEAD, N_EMBD)
        norm(f"blk.{i}.ffn_norm.weight")
        matrix(f"blk.{i}.ffn_gate.weight", N_EMBD, N_FF)
        matrix(f"blk.{i}.ffn_up.weight", N_EMBD, N_FF)
        matrix(f"blk.{i}.ffn_down.weight", N_FF, N_EMBD)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


_CELL = np.dtype([("pos", "<i4"), ("n_seq", "<u4"), ("seq", "<i4")])


class CacheState:
    """llama.cpp's state of a plain attention cache (unified, V not transposed, each cell of one sequence).

    Attributes
    ----------
    cells : structured array of pos, n_seq, seq, in the order of the cells
    rows : list of uint8 arrays, shape (n cells, bytes of a row)
        K of every layer, then V of every layer.
    """

    def __init__(self, data: bytes, start: int) -> None:
        """`start`: where the cache begins, after the architecture's name or the 8 bytes before a sequence's state."""
        self._head = data[:start]
        n_stream, n = struct.unpack_from("<II", data, start)
        if n_stream != 1:
            raise ValueError(f"a state of {n_stream} streams: use kv_unified=True")
        at = start + 8
        self.cells = np.frombuffer(data, _CELL, n, at).copy()
        at += self.cells.nbytes
        v_trans, n_layer = struct.unpack_from("<II", data, at)
        if v_trans:
            raise ValueError("V is transposed: use flash attention")
        self._flags = data[at : at + 8]
        at += 8
        self.rows: list[np.ndarray] = []
        self._types: list[bytes] = []
        for _ in range(2 * n_layer):
            self._types.append(data[at : at + 12])
            (size,) = struct.unpack_from("<Q", data, at + 4)
            at += 12
            self.rows.append(np.frombuffer(data, np.uint8, n * size, at).reshape(n, size))
            at += n * size
        if at != len(data):
            raise ValueError(f"{len(data) - at} bytes are left over")

    @classmethod
    def of_context(cls, data: bytes) -> CacheState:
        return cls(data, 4 + struct.unpack_from("<I", data)[0])

    @classmethod
    def of_sequence(cls, data: bytes) -> CacheState:
        return cls(data, 8)

    def to_bytes(self) -> bytes:
        parts: list[Any] = [self._head, struct.pack("<II", 1, len(self.cells)), self.cells.tobytes(), self._flags]
        for kind, rows in zip(self._types, self.rows, strict=True):
            parts += [kind, rows.tobytes()]
        return b"".join(parts)

    def reordered(self, order: np.ndarray) -> CacheState:
        """The same rows in other cells."""
        other = CacheState.__new__(CacheState)
        other.__dict__.update(self.__dict__)
        other.cells = self.cells[order]
        other.rows = [rows[order] for rows in self.rows]
        return other

    def with_other_rows(self) -> CacheState:
        """Other content at the same positions in the same cells."""
        other = self.reordered(np.arange(len(self.cells)))
        other.rows = [np.roll(rows, 1, axis=0) for rows in self.rows]
        return other

    def same_rows(self, other: CacheState) -> bool:
        """True if both hold the same content at the same positions, in whatever cells."""
        a, b = (state.reordered(np.argsort(state.cells["pos"], kind="stable")) for state in (self, other))
        return np.array_equal(a.cells["pos"], b.cells["pos"]) and all(map(np.array_equal, a.rows, b.rows))

    def n_runs(self, seq_id: int) -> int:
        """Runs of neighbouring cells that a sequence lies in."""
        cells = np.flatnonzero(self.cells["seq"] == seq_id)
        return int(np.count_nonzero(np.diff(cells) != 1)) + 1


def scattered(state: CacheState, n_runs: int, seed: int = 0) -> CacheState:
    """Two sequences of half the rows each, which lie in `n_runs` runs of random lengths, in turns."""
    n = len(state.cells) // 2
    cells = state.cells[: 2 * n].copy()
    cells["seq"] = np.repeat([0, 1], n)
    cells["pos"] = np.tile(np.arange(n), 2)
    rng = np.random.default_rng(seed)
    order = []
    pieces = [np.split(np.arange(n), np.sort(rng.choice(np.arange(1, n), n_runs - 1, replace=False))) for _ in range(2)]
    for first, second in zip(*pieces, strict=True):
        order += [first, second + n]
    halves = state.reordered(np.arange(2 * n))
    halves.cells = cells
    return halves.reordered(np.concatenate(order))


def in_lockstep(like: CacheState, n_seqs: int, n_rows: int, *, side_by_side: bool = False) -> CacheState:
    """Sequences that were decoded together, a row of each in turn; or the same rows, one sequence after the other."""
    state = like.reordered(np.arange(n_seqs * n_rows) % len(like.cells))
    state.cells["seq"] = np.tile(np.arange(n_seqs), n_rows)
    state.cells["pos"] = np.repeat(np.arange(n_rows), n_seqs)
    return state.reordered(np.argsort(state.cells["seq"], kind="stable")) if side_by_side else state
