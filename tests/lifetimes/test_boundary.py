"""Arguments that lie, reach back, or are of a kind nobody thought of: an exception of ours, and a process that lives.

Each of these once ended the process, or wrote where it should not have. They run in processes of their own.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import textwrap
import threading

import pytest

import lloyal
from lloyal.kv import Tenancy

START = """
import os, sys, threading, time
import numpy as np
import lloyal
import lloyal.llama as ll
from lloyal.llama.rpc import connected

model = lloyal.Model(lloyal.models.path("nano-draft"))

def context(n_ctx=256, **more):
    return lloyal.Context(model, n_ctx=n_ctx, n_threads=1, **more)

def raises(kind, call):
    try:
        result = call()
    except kind as error:
        return error
    raise SystemExit(f"{kind} was not raised, the result is {result!r}")

class Lie(int):
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __lt__

class Two:
    def __index__(self): return 5
    def __int__(self): return 10**6
"""

CASES = {
    "an int that passes every comparison": """
        batch = ll.Batch()
        batch.add(1, 0, 0)
        raises(lloyal.errors.InvalidArgument, lambda: batch.set_logits(Lie(10**12), True))
        raises(lloyal.errors.InvalidArgument, lambda: context(n_seq_max=Lie(10**6)))
        raises(lloyal.errors.InvalidArgument, lambda: ll.Sampler.penalties(10, Lie(-5)))
        assert lloyal.ContextParams(n_ctx=Lie(512)).n_ctx.__class__ is int
    """,
    "a number that converts in two ways": """
        vocab = model.vocab
        assert vocab.text(Two()) == vocab.text(5)
        assert vocab.score(Two()) == vocab.score(5)
        assert vocab.attr(Two()) == vocab.attr(5)
        assert vocab.is_eog(Two()) == vocab.is_eog(5)
        assert vocab.is_control(Two()) == vocab.is_control(5)
        assert vocab.token_to_piece(Two()) == vocab.token_to_piece(5)
    """,
    "an index that empties what it indexes": """
        ctx = context()
        class Clear:
            def __init__(self, batch): self.batch = batch
            def __index__(self): self.batch.clear(); return 1
        for use in ("set_pos", "add_seq", "set_output_logits", "getitem", "set_embd_token"):
            batch = ll.BatchExt(ctx)
            for _ in range(200):
                batch.add_token(0, 5)
            calls = {
                "set_pos": lambda: batch.set_pos(199, Clear(batch)),
                "add_seq": lambda: batch.add_seq(199, Clear(batch)),
                "set_output_logits": lambda: batch.set_output_logits(Clear(batch), True),
                "getitem": lambda: batch[Clear(batch)],
                "set_embd_token": lambda: batch.set_embd_token(Clear(batch), np.zeros(batch.n_embd, "f4")),
            }
            raises(lloyal.errors.InvalidArgument, calls[use])
            assert len(batch) == 0
        plain = ll.Batch()
        plain.extend([1] * 200, 0, 0)
        raises(IndexError, lambda: plain[Clear(plain)])
    """,
    "parameters of a class that changes its mind": """
        class Params(lloyal.ContextParams):
            def __getattribute__(self, name):
                return 10**6 if name == "n_seq_max" and made else super().__getattribute__(name)
        made = []
        params = Params(n_ctx=256)
        made.append(params)
        raises(lloyal.errors.InvalidArgument, lambda: lloyal.Context(model, params=params))
    """,
    "arrays of outputs that outlive them": """
        ctx = context(16384, n_batch=16384, n_seq_max=1)
        def decode(n):
            ctx.memory.clear()
            batch = ll.Batch()
            batch.extend([5] * n, 0, 0, True)
            ctx.decode(batch)
        decode(200)
        view = ctx.logits()
        row, plain, bytes_ = np.asarray(view), memoryview(view), view[:10]
        before = row.copy()
        best = view.argmax()
        decode(2000)
        assert (row == before).all() and plain.tolist() == before.tolist() and (bytes_ == before[:10]).all()
        assert row.argmax() == best and not row.flags.writeable
        for use in (view.argmax, lambda: view[0], lambda: np.asarray(view), view.copy, lambda: view[:3]):
            raises(lloyal.errors.NoLogits, use)
        assert repr(view).endswith("stale>")
    """,
    "a state into an array of objects": """
        ctx = context()
        lloyal.prefill(ctx, [1, 2, 3])
        objects = np.array([float(i) for i in range(20000)], dtype=object)
        for out in (objects, np.zeros(9999, "V8"), np.zeros(9999, "U2")):
            raises(TypeError, lambda: ctx.state_seq_get_data(0, out))
            raises(TypeError, lambda: ctx.state_get_data(out))
            raises((TypeError, ValueError), lambda: ctx.state_seq_set_data(out, 0))
        out = np.zeros(100_000, "i4")
        assert bytes(memoryview(out).cast("B")[:ctx.state_seq_get_data(0, out)]) == ctx.state_seq_get_data(0)
    """,
    "a number for a path": """
        ctx = context()
        calls = [
            lambda: ctx.state_seq_load_file(1, 0), lambda: ctx.state_load_file(1), lambda: ctx.state_save_file(1),
            lambda: ctx.state_seq_save_file(1, 0), lambda: model.save(1), lambda: lloyal.Model(1),
            lambda: ll.LoraAdapter(model, 1),
            lambda: ll.quantize(1, "x"), lambda: ll.quantize(lloyal.models.path("nano-draft"), 1),
            lambda: ll.rpc_serve("127.0.0.1:50999", cache_dir=1),
        ]
        for call in calls:
            raises(TypeError, call)
        os.fstat(1)
    """,
    "None for a device": """
        raises(TypeError, lambda: connected(None))
        raises(TypeError, lambda: ll.rpc_serve("127.0.0.1:50999", devices=[None]))
        raises(lloyal.errors.InvalidArgument, lambda: lloyal.Model(lloyal.models.path("nano-draft"), devices=[None]))
        raises(TypeError, lambda: context().set_adapters_lora([None]))
        raises(TypeError, lambda: context().decode(None))
    """,
    "outputs read while another thread decodes": """
        ctx = context(2048, n_batch=1024, n_seq_max=1)
        ctx.set_sampler(0, ll.Sampler.chain(ll.Sampler.top_k(600), ll.Sampler.temp(0.5)))
        def decode(n):
            ctx.memory.clear()
            batch = ll.Batch()
            batch.extend([5] * n, 0, 0, True)
            ctx.decode(batch)
        decode(1)
        sys.setswitchinterval(1e-6)
        end, bad = time.time() + 2, []
        def read():
            while time.time() < end:
                try:
                    ids = ctx.sampled_candidates(-1)
                    probs = ctx.sampled_logits(-1)
                    probs = None if probs is None else np.asarray(probs)
                except lloyal.errors.LloyalError:
                    continue
                if ids is not None and (ids.min() < 0 or ids.max() >= len(model.vocab)):
                    bad.append(ids)
        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        while time.time() < end:
            for n in (1, 2, 900, 3, 1000):
                try:
                    decode(n)
                except lloyal.errors.Busy:
                    pass
        for thread in threads:
            thread.join()
        assert not bad
    """,
    "pooling with sequences that do not divide a micro-batch": """
        for n_seq_max in (3, 5, 7, 64):
            for pooling in ("mean", "cls", "last"):
                ctx = context(256, n_seq_max=n_seq_max, n_batch=256, n_ubatch=64, embeddings=True, pooling=pooling)
                assert ctx.n_ubatch % n_seq_max == 0
                batch = ll.Batch()
                for seq in range(n_seq_max):
                    batch.extend([1, 2, 3], 0, seq, True)
                ctx.decode(batch)
                assert np.isfinite(ctx.embeddings(seq_id=n_seq_max - 1, copy=True)).all()
        ctx = context(256, n_seq_max=3, n_batch=256, n_ubatch=64, pooling="mean")
        ctx.set_embeddings(True)
        batch = ll.Batch()
        batch.extend([1] * 60, 0, 2, True)
        ctx.decode(batch)
        raises(lloyal.errors.InvalidArgument, lambda: context(256, n_seq_max=8, n_batch=4, n_ubatch=4, pooling="mean"))
    """,
}


def run(code: str, **options: object) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", START + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=300,
        **options,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-2000:]}"


@pytest.mark.parametrize("name", CASES)
def test_the_process_lives(name: str) -> None:
    run(CASES[name])


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_NPROC"])
def test_threads_that_cannot_be_started(limit: str) -> None:
    """OpenMP would end the process with exit code 1. (Root has no limit on processes: memory runs out there.)"""
    code = f"""
        import resource
        before = context(n_threads_batch=512) if {limit!r} == "RLIMIT_AS" else None
        n = (4 << 30) if {limit!r} == "RLIMIT_AS" else 1
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        resource.setrlimit(resource.{limit}, (n, n))
        many = dict(n_threads=512, n_threads_batch=512)
        error = raises(lloyal.errors.InvalidArgument, lambda: lloyal.Context(model, n_ctx=256, **many))
        assert "n_threads=512" in str(error)
        error = raises(lloyal.errors.InvalidArgument, lambda: context().set_n_threads(1, 512))
        path = lloyal.models.path("nano-draft")
        raises(lloyal.errors.InvalidArgument, lambda: ll.quantize(path, "never.gguf", n_threads=512))
        if before is not None:
            raises(lloyal.errors.InvalidArgument, lambda: lloyal.prefill(before, list(range(100))))
            before.set_n_threads(1, 1)
            lloyal.prefill(before, list(range(100)))
        lloyal.prefill(context(), list(range(100)))
    """
    run(code, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)))


def test_two_threads_get_one_tenancy(nano_draft: lloyal.Model) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(50):
            with lloyal.Context(nano_draft, n_ctx=256, n_threads=1) as ctx:
                gate = threading.Barrier(4)
                found: list[Tenancy] = []

                def make(
                    ctx: lloyal.Context = ctx, gate: threading.Barrier = gate, found: list[Tenancy] = found
                ) -> None:
                    gate.wait()
                    found.append(Tenancy(ctx))

                threads = [threading.Thread(target=make) for _ in range(4)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                assert len({id(tenancy) for tenancy in found}) == 1
    finally:
        sys.setswitchinterval(interval)
