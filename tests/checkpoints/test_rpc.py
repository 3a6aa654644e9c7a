"""What a checkpoint moves over the socket when the cache is on an RPC device: names of places, never the rows.

The caches are filled with made-up rows by llama.cpp's own copy, so that 64 k cells take no decoding.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Iterator

import numpy as np
import pytest

import lloyal
from tests.checkpoints.raw_state import RawState, parse
from tests.decode import feed
from tests.models import KINDS, N_LAYER, N_VOCAB, tiny
from tests.rpc import CountingProxy, server

LIMIT = 64_000


@pytest.fixture(scope="module")
def proxy() -> Iterator[CountingProxy]:
    with server() as endpoint, CountingProxy(endpoint) as counting:
        yield counting


class Bench:
    """A context whose cache is on the server, and the bytes that calls move."""

    def __init__(self, proxy: CountingProxy, name: str, n_cells: int, **parameters: object) -> None:
        self.proxy = proxy
        self.name = name
        self.model = lloyal.Model(tiny(name), devices=lloyal.llama.rpc_device(proxy.endpoint))
        self.ctx = lloyal.Context(
            self.model,
            **(
                {
                    "n_ctx": n_cells + 512,
                    "n_batch": 32,
                    "n_ubatch": 32,
                    "n_seq_max": 4,
                    "n_threads": 1,
                }
                | parameters
            ),
        )
        feed(self.ctx, (0, 0, [random.Random(0).randrange(N_VOCAB) for _ in range(30)]))
        self.example = self.state(0)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.ctx.close()
        self.model.close()

    def state(self, seq_id: int) -> RawState:
        return parse(self.ctx.state_seq_get_data_ext(seq_id), KINDS[self.name], self.name == "qwen35")

    def made_up(self, n_rows: int, pos0: int = 0) -> bytes:
        """A state of `n_rows`: the example's rows again and again, with positions of their own."""
        caches = []
        for cache in self.example.caches:
            rows = np.arange(n_rows) % len(cache.positions)
            tensors = [dataclasses.replace(t, data=t.data[:, rows]) for t in cache.tensors]
            positions = np.arange(pos0, pos0 + n_rows, dtype=np.int32)
            caches.append(dataclasses.replace(cache, positions=positions, ext=cache.ext[rows], tensors=tensors))
        return RawState(caches, self.example.recurrent).encode()

    def fill(self, n_rows: int, n_runs: int) -> None:
        """Sequence 0 gets `n_rows` in `n_runs` runs of cells, and the free ones lie so when it is gone."""
        self.ctx.memory.clear()
        if n_runs > 1:
            self.ctx.state_seq_set_data_ext(self.made_up(n_rows + n_runs), 1)
            step = n_rows // n_runs
            for i in range(n_runs):
                self.ctx.memory.seq_rm(1, i * (step + 1), i * (step + 1) + step)
            n_rows = step * n_runs
        self.ctx.state_seq_set_data_ext(self.made_up(n_rows), 0)

    def moved(self) -> int:
        """Bytes so far, once nothing more arrives: the client does not wait for what it writes."""
        total = -1
        while total != self.proxy.total:
            total = self.proxy.total
            time.sleep(0.03)
        return total

    def bytes_of_a_save_and_a_restore(self, where: str, dest: int = 2) -> tuple[int, int, int]:
        before = self.moved()
        checkpoint = self.ctx.checkpoint(0, where=where)
        saved = self.moved() - before
        nbytes = checkpoint.nbytes
        self.ctx.memory.seq_rm(0)
        before = self.moved()
        checkpoint.restore(dest)
        restored = self.moved() - before
        checkpoint.release()
        return nbytes, saved, restored


@pytest.mark.parametrize("n_cells", [4 << 10, 16 << 10, 64 << 10])
def test_a_device_checkpoint_moves_no_rows(proxy: CountingProxy, n_cells: int) -> None:
    with Bench(proxy, "llama", n_cells) as bench:
        for n_runs in (1, 4):
            bench.fill(n_cells, n_runs)
            host = bench.bytes_of_a_save_and_a_restore("host")
            bench.fill(n_cells, n_runs)
            device = bench.bytes_of_a_save_and_a_restore("device")
            print(
                f"{n_cells} cells in {n_runs} runs: {device[0]} bytes of state; a device save moves {device[1]}, "
                f"its restore {device[2]}; by way of the host {host[1]} and {host[2]}"
            )
            assert device[0] == host[0] >= n_cells * N_LAYER * 2 * 64
            assert max(device[1:]) <= LIMIT
            assert min(host[1:]) >= host[0]


@pytest.mark.parametrize("name", ["llama", "gemma3", "mamba2", "lfm2", "falcon-h1", "qwen35"])
@pytest.mark.parametrize("partial", [False, True])
def test_every_kind_of_memory(proxy: CountingProxy, name: str, partial: bool) -> None:
    with Bench(proxy, name, 1 << 10) as bench:
        ctx = bench.ctx
        rng = random.Random(name)
        end = 30
        for _ in range(20):
            feed(ctx, (0, end, [rng.randrange(N_VOCAB) for _ in range(32)]))
            end += 32
        expected = bench.state(0).encode()
        before = bench.moved()
        with ctx.checkpoint(partial=partial) as checkpoint:
            saved = bench.moved() - before
            feed(ctx, (0, end, [1, 2, 3]))
            before = bench.moved()
            checkpoint.restore()
            restored = bench.moved() - before
            kind = "partial" if partial else "full"
            print(f"{name}, {kind}: {checkpoint.nbytes} bytes of state, {saved} and {restored} moved")
        assert bench.state(0).encode() == expected
        assert max(saved, restored) <= LIMIT


@pytest.mark.parametrize("flash", [True, False], ids=["fa", "no_fa"])
def test_bytes_of_few_runs(proxy: CountingProxy, flash: bool) -> None:
    """No more than llama.cpp's own device states move: a message a run and tensor, and there a row of transposed V."""
    n_cells = 4 << 10
    with Bench(proxy, "llama", n_cells, flash_attn=flash) as bench:
        moved = {}
        for n_runs in (1, 2, 8):
            bench.fill(n_cells, n_runs)
            before = bench.moved()
            bench.ctx.state_seq_get_data_ext(0, lloyal.StateSeqFlags.ON_DEVICE)
            raw = bench.moved() - before
            _, saved, restored = bench.bytes_of_a_save_and_a_restore("device")
            moved[n_runs] = (raw, saved, restored)
            assert saved <= 1.05 * raw + 500
            assert restored <= 1.05 * raw + 500
        print(f"flash attention {flash}: (raw, saved, restored) by runs {moved}")


@pytest.mark.parametrize("step", [64, 63])
@pytest.mark.parametrize("flash", [True, False], ids=["fa", "no_fa"])
def test_bytes_of_one_among_many(proxy: CountingProxy, flash: bool, step: int) -> None:
    """1000 rows, as one of 64 sequences that were decoded together has them: each in a place of its own."""
    n_rows = 1000
    with Bench(proxy, "llama", n_rows * step, flash_attn=flash) as bench:
        ctx = bench.ctx
        ctx.memory.clear()
        ctx.state_seq_set_data_ext(bench.made_up(n_rows), 0)
        expected = bench.state(0).encode()
        with ctx.checkpoint(0) as first:
            ctx.memory.clear()
            ctx.state_seq_set_data_ext(bench.made_up(n_rows * step), 1)
            for pos in range(0, n_rows * step, step):
                ctx.memory.seq_rm(1, pos, pos + 1)
            before = bench.moved()
            first.restore(0)
            restored = bench.moved() - before
        before = bench.moved()
        with ctx.checkpoint(0) as checkpoint:
            saved = bench.moved() - before
            ctx.memory.seq_rm(1)
            ctx.memory.seq_rm(0)
            checkpoint.restore(2)
        assert bench.state(2).encode() == expected
        print(f"one of {step}, flash attention {flash}: {saved} and {restored} bytes moved")
        assert max(saved, restored) <= LIMIT + 2000 * (2 * N_LAYER - 4)
