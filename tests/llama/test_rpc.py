"""Devices of an RPC server: a cache in another process, and what moves over the socket."""

from __future__ import annotations

import gc
import json
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lloyal.llama as ll
from lloyal.errors import InvalidArgument, LoadFailed
from tests.fuzz.gguf_file import encode, parse
from tests.fuzz.gguf_mutate import retype
from tests.models import N_VOCAB, tiny
from tests.rpc import CountingProxy, free_port, server

ON_DEVICE = ll.StateSeqFlags.ON_DEVICE
N_TOKENS = 1000
TOKENS = np.random.default_rng(7).integers(0, N_VOCAB, N_TOKENS, dtype=np.int32)


@pytest.fixture(scope="module")
def proxy() -> Iterator[CountingProxy]:
    with server() as endpoint, CountingProxy(endpoint) as counting:
        yield counting


def context(model: ll.Model) -> ll.Context:
    return ll.Context(model, n_ctx=2048, n_batch=512, n_seq_max=2, n_threads=1)


def decode(ctx: ll.Context, tokens: np.ndarray, pos0: int, seq_id: int = 0) -> np.ndarray:
    batch = ll.Batch()
    for begin in range(0, len(tokens), 500):
        batch.clear()
        batch.extend(tokens[begin : begin + 500], pos0 + begin, seq_id, logits="last")
        ctx.decode(batch)
    return np.asarray(ctx.logits(copy=True))


def test_a_model_on_a_server_computes_what_it_computes_here(proxy: CountingProxy) -> None:
    devices = ll.rpc_device(proxy.endpoint)
    assert [device.backend for device in devices] == ["RPC"]
    assert devices == ll.rpc_device(proxy.endpoint)
    assert all(total > 0 for _, total in (device.memory for device in devices))
    with ll.Model(tiny("llama"), devices=[]) as here, ll.Model(tiny("llama"), devices=devices) as there:
        with context(here) as ctx:
            expected = decode(ctx, TOKENS, 0)
        with context(there) as ctx:
            got = decode(ctx, TOKENS, 0)
    np.testing.assert_allclose(got, expected, atol=1e-3 * np.abs(expected).max())


def test_tensors_go_where_they_are_sent(proxy: CountingProxy) -> None:
    devices = ll.rpc_device(proxy.endpoint)

    def weights(**params: Any) -> tuple[np.ndarray, dict[bool, int]]:
        with ll.Model(tiny("llama"), **params) as model, context(model) as ctx:
            there = dict.fromkeys((True, False), 0)
            for use in ctx.memory_breakdown():
                there[use.is_host] += use.model
            return decode(ctx, TOKENS[:100], 0), there

    expected, all_there = weights(devices=devices)
    got, split = weights(devices=devices, tensor_buft_overrides={r"blk\.0\.ffn": "CPU"})
    np.testing.assert_allclose(got, expected, atol=1e-3 * np.abs(expected).max())
    assert 0 < split[False] < all_there[False]
    assert split[True] - all_there[True] >= all_there[False] - split[False]

    with pytest.raises(
        InvalidArgument, match=r"'ffn' goes to RPC\d, which the model does not use: name it in devices="
    ):
        ll.Model(tiny("llama"), devices=[], tensor_buft_overrides={"ffn": devices[0]})


def test_its_cache_is_not_host_memory(proxy: CountingProxy) -> None:
    with ll.Model(tiny("llama"), devices=ll.rpc_device(proxy.endpoint)) as model, context(model) as ctx:
        decode(ctx, TOKENS[:10], 0)
        holders = [use for use in ctx.memory_breakdown() if use.context > 0]
        assert holders
        assert [use.is_host for use in holders] == [False]
        assert proxy.endpoint in holders[0].buffer


@pytest.mark.parametrize("name", ["llama", "gemma3", "mamba2", "lfm2", "qwen35"])
def test_raw_device_state_stays_on_the_server(proxy: CountingProxy, name: str) -> None:
    with ll.Model(tiny(name), devices=ll.rpc_device(proxy.endpoint)) as model, context(model) as ctx:
        decode(ctx, TOKENS, 0)
        before = proxy.total
        state = ctx.state_seq_get_data_ext(0, 0)
        host_path = proxy.total - before
        assert host_path >= 0.9 * len(state)

        before = proxy.total
        blob = ctx.state_seq_get_data_ext(0, ON_DEVICE)
        saved = proxy.total - before
        decode(ctx, TOKENS[:300], N_TOKENS)
        before = proxy.total
        ctx.state_seq_set_data_ext(blob, 0, ON_DEVICE)
        restored = proxy.total - before
        assert max(saved, restored) < 64_000
        # the restored sequence holds the same bytes: what the host path reads says so
        assert ctx.state_seq_get_data_ext(0, 0) == state
        got = decode(ctx, TOKENS[:1], N_TOKENS)
        ctx.memory.clear()
        decode(ctx, TOKENS, 0)
        np.testing.assert_array_equal(decode(ctx, TOKENS[:1], N_TOKENS), got)


def test_host_path_moves_a_state_of_a_megabyte(proxy: CountingProxy) -> None:
    with ll.Model(tiny("llama"), devices=ll.rpc_device(proxy.endpoint)) as model, context(model) as ctx:
        decode(ctx, TOKENS, 0)
        assert len(ctx.state_seq_get_data_ext(0, 0)) > 1_000_000


def test_the_connection_ends_with_the_last_user(proxy: CountingProxy) -> None:
    before = ll.live_handles()["connections"]
    devices = ll.rpc_device(proxy.endpoint)
    assert ll.live_handles()["connections"] == before
    model = ll.Model(tiny("llama"), devices=devices)
    ctx = context(model)
    model.close()
    assert ll.live_handles()["connections"] == before + 1
    ctx.close()
    gc.collect()
    assert ll.live_handles()["connections"] == before


def test_a_server_that_restarts_serves_the_same_device_object() -> None:
    port = 0
    with server() as endpoint:
        port = int(endpoint.split(":")[1])
        devices = ll.rpc_device(endpoint)
        ll.Model(tiny("llama"), devices=devices).close()
    with pytest.raises(LoadFailed, match=f"no RPC server at 127.0.0.1:{port}"):
        ll.Model(tiny("llama"), devices=devices)
    with pytest.raises(LoadFailed, match=f"no RPC server at 127.0.0.1:{port}"):
        _ = devices[0].memory


def test_several_devices_of_one_server() -> None:
    with server(n_devices=2) as endpoint:
        devices = ll.rpc_device(endpoint)
        assert len(set(devices)) == 2
        with ll.Model(tiny("llama"), devices=devices) as model, context(model) as ctx:
            decode(ctx, TOKENS[:10], 0)
            assert sum(use.context > 0 for use in ctx.memory_breakdown()) == 2


@pytest.mark.parametrize(
    "endpoint", ["", "50052", "127.0.0.1", ":50052", "127.0.0.1:0", "127.0.0.1:65536", "[::1]:50052", "a:b"]
)
def test_an_endpoint_is_host_and_port(endpoint: str) -> None:
    with pytest.raises(InvalidArgument, match="endpoint="):
        ll.rpc_device(endpoint)


def test_nobody_there() -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    with pytest.raises(LoadFailed, match=f"no RPC server at {endpoint}: Connection refused"):
        ll.rpc_device(endpoint)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "closed the connection"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(50), "no RPC server of llama.cpp"),
        (struct.pack("<QBBBB", 28, 6, 0, 0, 0) + bytes(24), "speaks version 6.0"),
        (struct.pack("<QBBBB", 28, 7, 9, 0, 0) + bytes(24), "speaks version 7.9"),
        (struct.pack("<QBBBB", 28, 7, 0, 0, 0) + bytes(24) + struct.pack("<QI", 4, 0), "has no devices"),
        (None, "did not answer within 0.3 seconds"),
    ],
)
def test_something_else_listens(answer: bytes | None, message: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"127.0.0.1:{listener.getsockname()[1]}"
        done = threading.Event()

        def talk() -> None:
            link, _ = listener.accept()
            with link:
                if answer is None:
                    done.wait()
                else:
                    link.recv(64)
                    link.sendall(answer)

        thread = threading.Thread(target=talk)
        thread.start()
        with pytest.raises(LoadFailed, match=message):
            ll.rpc_device(endpoint, timeout=0.3)
        done.set()
        thread.join()


def test_a_busy_server_is_named() -> None:
    with server() as endpoint:
        holder = subprocess.Popen(
            [sys.executable, "-P", "-c", "import lloyal.llama as ll, sys\n"
             f"m = ll.Model({str(tiny('llama'))!r}, devices=ll.rpc_device({endpoint!r}))\n"
             "print('loaded', flush=True)\nsys.stdin.read()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"loaded\n"
        with pytest.raises(LoadFailed, match="it may be serving somebody else"):
            ll.rpc_device(endpoint, timeout=0.3)
        holder.communicate()
        assert len(ll.rpc_device(endpoint)) == 1


def test_leaving_everything_open_exits_silently(proxy: CountingProxy) -> None:
    code = f"""
import json, lloyal.llama as ll
model = ll.Model({str(tiny("llama"))!r}, devices=ll.rpc_device({proxy.endpoint!r}))
ctx = ll.Context(model, n_ctx=256, n_threads=1)
batch = ll.Batch(); batch.extend([1, 2, 3], 0, 0, logits="last"); ctx.decode(batch)
blob = ctx.state_seq_get_data_ext(0, ll.StateSeqFlags.ON_DEVICE)
print(json.dumps(ctx.logits().argmax()))
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert 0 <= json.loads(done.stdout) < N_VOCAB


def test_serve_refuses_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="IPv4"):
        ll.rpc_serve("example.invalid:50052")
    with pytest.raises(InvalidArgument, match="nothing to serve"):
        ll.rpc_serve("127.0.0.1:50052", devices=[])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LoadFailed, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            ll.rpc_serve(f"127.0.0.1:{port}")


def test_serving_beyond_loopback_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    # 192.0.2.0/24 is reserved for documentation: nothing can listen there
    with pytest.raises(LoadFailed, match=r"cannot listen on 192.0.2.1:50052"):
        ll.rpc_serve("192.0.2.1:50052")
    assert "never expose it to an open network" in caplog.text


def test_a_server_is_not_asked_for_what_it_would_die_of(proxy: CountingProxy, tmp_path: Path) -> None:
    """It says of itself that it can do everything, and its processor aborts as ours would."""
    file = parse(tiny("llama").read_bytes())
    retype(next(tensor for tensor in file.tensors if tensor.name == b"blk.1.attn_norm.weight"), 1)
    path = tmp_path / "m.gguf"
    path.write_bytes(encode(file).data)
    refusal = r"'blk.1.attn_norm.weight' \(f16"
    with ll.Model(path, devices=ll.rpc_device(proxy.endpoint)) as model, pytest.raises(LoadFailed, match=refusal):
        context(model)
