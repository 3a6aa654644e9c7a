"""Processes: how they end, what a fork may do, and what Ctrl-C stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from tests.lifetimes.work import python, silent

# Everything a program may hold when it ends, at module level.
EVERYTHING = """
    import sys, threading
    import numpy as np
    import lloyal

    def batch_of(tokens, pos0=0, seq_id=0):
        batch = lloyal.Batch()
        batch.extend(tokens, pos0, seq_id, "last")
        return batch

    model = lloyal.Model(lloyal.models.path("nano"))
    hybrid = lloyal.Model(lloyal.models.path("nano-hybrid"))
    vocab = model.vocab
    ctx = lloyal.Context(model, n_ctx=512, n_threads=int(sys.argv[1]))
    other = lloyal.Context(hybrid, n_ctx=512, n_threads=int(sys.argv[1]), n_rs_seq=4)
    batch = batch_of(vocab.tokenize("def add(a, b):"))
    for c in (ctx, other):
        c.decode(batch)
    memory, view, array = ctx.memory, ctx.logits(), np.asarray(other.logits())
    device = ctx.state_seq_get_data_ext(0, lloyal.StateSeqFlags.ON_DEVICE)
    sampler = lloyal.Sampler.chain(lloyal.Sampler.top_k(5), lloyal.Sampler.dist(1))
    token = sampler.sample(ctx)
    end = ctx.memory.seq_pos_max(0) + 1
    checkpoints = [ctx.checkpoint(0, where=where) for where in ("device", "host", "cells")]
    cycle = [ctx, other, view]
    cycle.append(cycle)
    devices = lloyal.devices()
"""


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize(
    "end",
    [
        "",
        "sys.exit(0)",
        "raise SystemExit",
        "import atexit; atexit.register(ctx.decode, batch_of([1], end))",
        "import atexit; atexit.register(lambda: (model.close(), ctx.close()))",
        "del model, hybrid",
        "threading.Thread(target=lambda: [ctx.decode(batch_of([1], end + i)) for i in range(20)]).start()",
        "import os; os._exit(0)",
    ],
    ids=[
        "falls off",
        "sys.exit",
        "SystemExit",
        "decodes at exit",
        "closes at exit",
        "models dropped",
        "thread still decodes",
        "_exit",
    ],
)
def test_exit_with_everything_open_is_silent(end: str, n_threads: int) -> None:
    silent(textwrap.dedent(EVERYTHING) + end, n_threads)


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.3])
def test_exit_while_a_daemon_thread_decodes(seconds: float) -> None:
    """The process ends while a thread that nobody waits for is inside llama.cpp."""
    silent(
        textwrap.dedent(EVERYTHING)
        + textwrap.dedent(f"""
        import time
        long = lloyal.Context(model, n_ctx=8192, n_batch=8192, n_threads=1)
        def work():
            while True:
                long.memory.clear()
                long.decode(batch_of([i % 500 for i in range(4000)]))
        threading.Thread(target=work, daemon=True).start()
        time.sleep({seconds})
    """),
        1,
    )


def test_importing_alone_starts_nothing_and_says_nothing() -> None:
    silent("import lloyal; assert not any(lloyal.live_handles().values())")


# fork. llama.cpp's threads, sockets and devices stay with the parent, so a child may drop what it inherited, or exec,
# or exit, and nothing else.

FORK = textwrap.dedent(EVERYTHING) + textwrap.dedent("""
    import os, signal, warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    signal.alarm(60)

    def wait(child):
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == 0, f"the child ended with {status}"
        # the parent goes on as if nothing had been
        assert int(view.argmax()) == want
        ctx.decode(batch_of([token], ctx.memory.seq_pos_max(0) + 1))
        other.decode(batch_of([token], other.memory.seq_pos_max(0) + 1))
        ctx.state_seq_set_data_ext(device, 1, lloyal.StateSeqFlags.ON_DEVICE)

    want = int(view.argmax())
""")


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize(
    "child_does",
    [
        "os._exit(0)",
        "sys.exit(0)",
        "pass",
        "del ctx, other, model, hybrid, view, array, memory, cycle, checkpoints, sampler; import gc; gc.collect()",
        "[part.close() for part in (ctx, other, model, hybrid, sampler)]; [ck.release() for ck in checkpoints]",
        "os.execv(sys.executable, [sys.executable, '-c', ''])",
    ],
    ids=["_exit", "sys.exit", "falls off", "drops everything", "closes everything", "exec"],
)
def test_a_forked_child_leaves_llama_cpp_alone(child_does: str, n_threads: int) -> None:
    script = FORK + f"child = os.fork()\nif child == 0:\n    {child_does}\nelse:\n    wait(child)\n"
    silent(script, n_threads)


def test_a_forked_child_is_told_why_it_cannot() -> None:
    silent(
        FORK
        + textwrap.dedent("""
        from lloyal.errors import Unsupported
        child = os.fork()
        if child == 0:
            calls = (lambda: ctx.decode(batch), lambda: ctx.n_ctx, lambda: ctx.memory.seq_rm(0),
                     lambda: ctx.state_get_data(), lambda: model.desc, lambda: lloyal.Context(model),
                     lambda: lloyal.Model(lloyal.models.path("nano")),
                     lambda: lloyal.devices(), lambda: checkpoints[0].restore(0), lambda: ctx.checkpoint(0))
            for i, call in enumerate(calls):
                try:
                    call()
                except Unsupported as error:
                    assert "fork" in str(error), error
                else:
                    raise AssertionError(f"call {i} went through")
            # what is plain memory is still there
            assert vocab.detokenize(vocab.tokenize("def f"), remove_special=True) == "def f"
            assert len(batch) == end
        else:
            wait(child)
    """),
        1,
    )


def test_a_process_that_forked_before_may_start_in_the_child() -> None:
    silent("""
        import os, sys, lloyal
        child = os.fork()
        if child == 0:
            model = lloyal.Model(lloyal.models.path("nano"))
            with model, lloyal.Context(model, n_ctx=256, n_threads=2) as ctx:
                batch = lloyal.Batch()
                batch.extend(model.vocab.tokenize("def f"), 0, 0, "last")
                ctx.decode(batch)
                ctx.logits().argmax()
        else:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            with lloyal.Model(lloyal.models.path("nano")) as model:
                assert model.n_layer > 0
    """)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_pools_end(method: str) -> None:
    """A pool whose workers were forked after a decode does other work, and ends."""
    script = FORK + textwrap.dedent(f"""
        import math, multiprocessing
        if __name__ == "__main__":
            with multiprocessing.get_context("{method}").Pool(2) as pool:
                assert pool.map(math.factorial, range(5)) == [1, 1, 2, 6, 24]
            pool.join()
            assert int(view.argmax()) == want
    """)
    if method == "fork":
        silent(script, 2)
    else:  # the others start from a file; there is none here, so only their ends are tried
        silent(script.replace('if __name__ == "__main__":', "if True:"), 2)


# Ctrl-C

PREFILL = """
    import json, signal, sys, threading, time
    import numpy as np
    import lloyal

    n = 16_000
    model = lloyal.Model(lloyal.models.path("nano"))
    tokens = [i % len(model.vocab) for i in range(n)]
    ctx = lloyal.Context(model, n_ctx=16_384, n_batch=16_384, n_threads=1)
    batch = lloyal.Batch()
    batch.extend(tokens, 0, 0, "last")
    print("ready", flush=True)
    raised = None
    try:
        ctx.decode(batch)
    except KeyboardInterrupt:
        raised = time.monotonic()
    done = ctx.memory.seq_pos_max(0) + 1
    # go on where it stopped, beside a context that was never disturbed
    twin = lloyal.Context(model, n_ctx=16_384, n_batch=16_384, n_threads=1)
    more = tokens[done : done + 100] if done < n else []
    rows = []
    for c, start in ((ctx, done), (twin, 0)):
        batch.clear()
        batch.extend(tokens[start:done + 100], start, 0, "last")
        c.decode(batch)
        rows.append(c.logits(copy=True))
    print(json.dumps({"raised": raised, "done": done, "far": float(np.max(np.abs(rows[0] - rows[1])))}))
"""


def interrupt(script: str, after: float) -> dict[str, float]:
    """Send SIGINT `after` seconds into the decode; what the script found, and the seconds until its exception."""
    with subprocess.Popen(
        [sys.executable, "-P", "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(after)
        sent = time.monotonic()  # the same clock in every process
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    found: dict[str, float] = json.loads(out)
    assert found["raised"] is not None, "the decode was over before the signal"
    found["seconds"] = found["raised"] - sent
    return found


def test_ctrl_c_stops_a_long_prefill() -> None:
    """It takes under 200 ms where nothing else runs; a busy machine may take ten times that."""
    found = interrupt(PREFILL, 0.3)
    assert found["done"] < 16_000
    assert found["far"] < 1e-3, "the context goes on wrong"
    assert found["seconds"] < 2.0


def test_ctrl_c_stops_generation() -> None:
    found = interrupt(
        """
        import json, time
        import lloyal

        model = lloyal.Model(lloyal.models.path("nano"))
        ctx = lloyal.Context(model, n_ctx=8192, n_threads=1)
        batch = lloyal.Batch()
        batch.extend(model.vocab.tokenize("def "), 0, 0, "last")
        ctx.decode(batch)
        print("ready", flush=True)
        raised = None
        try:
            while ctx.memory.seq_pos_max(0) < 8000:
                token = ctx.logits().argmax()
                batch.clear()
                batch.add(token, ctx.memory.seq_pos_max(0) + 1, 0, True)
                ctx.decode(batch)
        except KeyboardInterrupt:
            raised = time.monotonic()
        batch.clear()
        batch.add(5, ctx.memory.seq_pos_max(0) + 1, 0, True)
        ctx.decode(batch)
        print(json.dumps({"raised": raised}))
        """,
        0.2,
    )
    assert found["seconds"] < 2.0


def test_a_signal_handler_that_returns_does_not_stop_the_decode() -> None:
    done = python("""
        import os, signal, threading, time
        import lloyal

        seen = []
        signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
        model = lloyal.Model(lloyal.models.path("nano"))
        ctx = lloyal.Context(model, n_ctx=4096, n_batch=4096, n_threads=1)
        batch = lloyal.Batch()
        batch.extend([i % 500 for i in range(3000)], 0, 0, "last")
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        began = time.monotonic()
        ctx.decode(batch)
        print(seen == [signal.SIGUSR1], ctx.memory.seq_pos_max(0))
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True 2999\n", "")


def test_a_signal_handler_may_raise_anything() -> None:
    done = python("""
        import os, signal, threading
        import lloyal

        class Stop(Exception):
            pass

        def handle(number, frame):
            raise Stop("enough")

        signal.signal(signal.SIGUSR1, handle)
        model = lloyal.Model(lloyal.models.path("nano"))
        ctx = lloyal.Context(model, n_ctx=8192, n_batch=8192, n_threads=1)
        batch = lloyal.Batch()
        batch.extend([i % 500 for i in range(8000)], 0, 0, "last")
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        try:
            ctx.decode(batch)
        except Stop as error:
            print(error, ctx.memory.seq_pos_max(0) < 7999)
        batch.clear()
        batch.add(1, ctx.memory.seq_pos_max(0) + 1, 0, True)
        ctx.decode(batch)
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "enough True\n", "")


def test_ctrl_c_while_another_thread_decodes() -> None:
    """The main thread gets the interrupt; the decode of the other thread goes on."""
    done = python("""
        import os, signal, threading, time
        import lloyal

        model = lloyal.Model(lloyal.models.path("nano"))
        ctx = lloyal.Context(model, n_ctx=4096, n_batch=4096, n_threads=1)
        batch = lloyal.Batch()
        batch.extend([i % 500 for i in range(3000)], 0, 0, "last")
        thread = threading.Thread(target=ctx.decode, args=(batch,))
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            thread.start()
            time.sleep(30)
        except KeyboardInterrupt:
            print("interrupted")
        thread.join()
        print(ctx.memory.seq_pos_max(0))
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n2999\n", "")


def test_no_children_are_left() -> None:
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
