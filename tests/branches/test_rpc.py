"""Branches on a device behind a socket: forking, parking and resuming move no rows over it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

import lloyal
from lloyal import BranchStore, Sampling
from lloyal.llama import rpc_device
from tests.models import N_LAYER, N_VOCAB, tiny
from tests.rpc import CountingProxy, server

LIMIT = 64_000 + 2 * (N_LAYER - 2) * 2000  # two layers, and K and V of each further one
N = 1500


@pytest.fixture(scope="module")
def proxy() -> Iterator[CountingProxy]:
    with server() as endpoint, CountingProxy(endpoint) as counting:
        yield counting


def moved(proxy: CountingProxy) -> int:
    """Bytes so far, once nothing more arrives: the client does not wait for what it writes."""
    total = -1
    while total != proxy.total:
        total = proxy.total
        time.sleep(0.03)
    return total


@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2", "qwen35"])
def test_rows_stay_on_the_server(proxy: CountingProxy, name: str) -> None:
    prompt = np.random.default_rng(3).integers(0, N_VOCAB - 8, N).tolist()
    parameters = {"n_ctx": 2 * N, "n_seq_max": 4, "n_threads": 1}
    with (
        lloyal.Model(tiny(name), devices=rpc_device(proxy.endpoint)) as model,
        lloyal.Context(model, **parameters) as ctx,
        BranchStore(ctx) as store,
    ):
        root = store.create(prompt, sampling=Sampling(temperature=0))
        store.decode_each([(fork := root.fork(), 7)])
        costs = {}
        for what, run in (
            ("fork", lambda: root.fork(100)),
            ("seat", lambda: root.children[1].resume()),
            ("park", fork.park),
            ("resume", fork.resume),
        ):
            before = moved(proxy)
            run()
            costs[what] = moved(proxy) - before
        print(name, costs)
        assert max(costs.values()) <= LIMIT, costs
        assert costs["fork"] == 0
        before = moved(proxy)
        with root.checkpoint("host"):  # what moves when rows do
            assert moved(proxy) - before > LIMIT or name == "gemma3"


def test_a_rollback_that_waits_stays_on_the_server(proxy: CountingProxy) -> None:
    with (
        lloyal.Model(tiny("qwen35"), devices=rpc_device(proxy.endpoint)) as model,
        lloyal.Context(model, n_ctx=256, n_seq_max=4, n_rs_seq=4, n_threads=1) as ctx,
    ):
        lloyal.prefill(ctx, list(range(6)))
        ctx.memory.seq_rm(0, 4, -1)
        size = ctx.state_seq_get_size_ext(0, lloyal.StateSeqFlags.PARTIAL_ONLY)
        before = moved(proxy)
        ctx.memory.seq_cp(0, 1)
        cost = moved(proxy) - before
        assert cost < min(LIMIT, size)  # through the host it would go twice
