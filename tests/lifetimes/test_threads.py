"""One context, one caller; everything else may go on meanwhile."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lloyal
from lloyal import StateSeqFlags
from lloyal.errors import Aborted, Busy, LloyalError, NoLogits
from tests.lifetimes.work import batch_of, prompt, start, wait_until

N_LONG = 3000  # tokens whose prefill takes a good part of a second on one core


@pytest.fixture
def ctx(nano: lloyal.Model) -> Iterator[lloyal.Context]:
    with lloyal.Context(nano, n_ctx=4096, n_batch=4096, n_ubatch=256, n_seq_max=2, n_threads=1) as made:
        yield made


def working(ctx: lloyal.Context) -> Callable[[], bool]:
    """True while somebody is inside the context."""

    def inside() -> bool:
        try:
            ctx.memory.seq_pos_max(1)
        except Busy:
            return True
        return False

    return inside


INSIDE: dict[str, Callable[[lloyal.Context], object]] = {
    "decode": lambda ctx: ctx.decode(batch_of([1], 0, 1)),
    "logits": lambda ctx: ctx.logits(),
    "embeddings": lambda ctx: ctx.embeddings(),
    "synchronize": lambda ctx: ctx.synchronize(),
    "set_n_threads": lambda ctx: ctx.set_n_threads(1, 1),
    "memory.seq_rm": lambda ctx: ctx.memory.seq_rm(0),
    "memory.seq_cp": lambda ctx: ctx.memory.seq_cp(0, 1),
    "memory.clear": lambda ctx: ctx.memory.clear(),
    "memory.can_rollback": lambda ctx: ctx.memory.can_rollback(0, 1),
    "state_seq_get_data_ext": lambda ctx: ctx.state_seq_get_data_ext(0, StateSeqFlags.ON_DEVICE),
    "state_seq_set_data_ext": lambda ctx: ctx.state_seq_set_data_ext(b"", 0, 0),
    "state_get_data": lambda ctx: ctx.state_get_data(),
    "sample": lambda ctx: lloyal.Sampler.greedy().sample(ctx),
    "checkpoint": lambda ctx: ctx.checkpoint(0),
}


def test_a_second_thread_inside_is_told_so(nano: lloyal.Model, ctx: lloyal.Context) -> None:
    thread, result = start(lambda: ctx.decode(batch_of(prompt(nano, N_LONG))))
    wait_until(working(ctx))
    told = {}
    for name, call in INSIDE.items():
        try:
            told[name] = call(ctx)
        except LloyalError as error:
            told[name] = type(error)
    still = working(ctx)()
    thread.join()
    assert result == [None]
    assert still, "the decode was over before every call was tried"
    assert told == dict.fromkeys(INSIDE, Busy)
    # and it left no trace
    twin = lloyal.Context(nano, n_ctx=4096, n_batch=4096, n_ubatch=256, n_seq_max=2, n_threads=1)
    twin.decode(batch_of(prompt(nano, N_LONG)))
    assert np.array_equal(ctx.logits(copy=True), twin.logits(copy=True))
    twin.close()


def test_what_needs_no_caller_works_meanwhile(nano: lloyal.Model, ctx: lloyal.Context) -> None:
    other = lloyal.Context(nano, n_ctx=256, n_threads=1)
    thread, result = start(lambda: ctx.decode(batch_of(prompt(nano, N_LONG))))
    wait_until(working(ctx))
    assert ctx.n_ctx == 4096
    assert ctx.memory.kind == "attention"
    assert "Context" in repr(ctx)
    other.decode(batch_of(prompt(nano, 10)))
    assert nano.vocab.detokenize(nano.vocab.tokenize("def f():"), remove_special=True) == "def f():"
    assert working(ctx)(), "the decode was over too early to tell"
    thread.join()
    assert result == [None]
    other.close()


def test_a_view_cannot_be_read_while_somebody_is_inside(nano: lloyal.Model, ctx: lloyal.Context) -> None:
    ctx.decode(batch_of(prompt(nano, 5)))
    view = ctx.logits()
    thread, result = start(lambda: ctx.decode(batch_of(prompt(nano, N_LONG), 5)))
    wait_until(working(ctx))
    for read in (lambda: view[0], view.argmax, view.copy, lambda: np.asarray(view), lambda: memoryview(view)):
        with pytest.raises((Busy, NoLogits)):
            read()
    thread.join()
    assert result == [None]


def test_a_batch_cannot_change_while_it_is_decoded(nano: lloyal.Model, ctx: lloyal.Context) -> None:
    batch = batch_of(prompt(nano, N_LONG))
    other = lloyal.Context(nano, n_ctx=4096, n_batch=4096, n_threads=1)
    thread, result = start(lambda: ctx.decode(batch))
    wait_until(working(ctx))
    changes = (
        batch.clear,
        lambda: batch.add(1, 0, 0),
        lambda: batch.extend([1], 0, 0),
        lambda: batch.set_logits(0, True),
        lambda: batch.extend_embd(np.zeros((1, nano.n_embd), np.float32), 0, 0),
        lambda: other.decode(batch),
    )
    for change in changes:
        with pytest.raises(Busy, match="batch"):
            change()
    assert len(batch) == N_LONG
    assert batch[0][1] == 0
    thread.join()
    assert result == [None]
    batch.clear()
    other.close()


def test_closing_during_a_decode_lets_it_finish(nano: lloyal.Model) -> None:
    before = lloyal.live_handles()["contexts"]
    ctx = lloyal.Context(nano, n_ctx=4096, n_batch=4096, n_ubatch=256, n_seq_max=2, n_threads=1)
    thread, result = start(lambda: ctx.decode(batch_of(prompt(nano, N_LONG))))
    wait_until(working(ctx))
    ctx.close()
    assert ctx.closed
    assert lloyal.live_handles()["contexts"] == before + 1
    thread.join()
    assert result == [None]
    assert lloyal.live_handles()["contexts"] == before


def test_closing_the_model_during_a_decode() -> None:
    before = lloyal.live_handles()
    model = lloyal.Model(lloyal.models.path("nano"))
    tokens = prompt(model, N_LONG)
    ctx = lloyal.Context(model, n_ctx=4096, n_batch=4096, n_seq_max=2, n_threads=1)
    thread, result = start(partial(ctx.decode, batch_of(tokens)))
    wait_until(working(ctx))
    model.close()
    ctx.close()
    del model, ctx
    thread.join()
    assert result == [None]
    thread_gone = lloyal.live_handles()
    assert thread_gone == before


def test_many_threads_close_one_context(nano: lloyal.Model) -> None:
    before = lloyal.live_handles()
    for _ in range(20):
        ctx = lloyal.Context(nano, n_ctx=256, n_threads=1)
        barrier = threading.Barrier(4)

        def close(ctx: lloyal.Context = ctx, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            ctx.close()

        threads = [start(close) for _ in range(4)]
        for thread, result in threads:
            thread.join()
            assert result == [None]
        assert ctx.closed
    assert lloyal.live_handles() == before


def test_abort_from_another_thread(nano: lloyal.Model, ctx: lloyal.Context) -> None:
    tokens = prompt(nano, N_LONG)
    thread, result = start(lambda: ctx.decode(batch_of(tokens)))
    wait_until(working(ctx))
    asked = time.monotonic()
    ctx.abort()
    thread.join()
    assert time.monotonic() - asked < 30.0
    assert isinstance(result[0], Aborted)
    # What was finished stays, in whole micro-batches, and goes on right.
    done = ctx.memory.seq_pos_max(0) + 1
    assert 0 <= done < N_LONG
    assert done % 256 == 0
    assert ctx.memory.provenance(0)[-1][1:2] == ((done,) if done else ()) if done else ctx.memory.provenance(0) == []
    with pytest.raises(NoLogits):
        ctx.logits()
    ctx.decode(batch_of(tokens[done : done + 256], done))
    with lloyal.Context(nano, n_ctx=4096, n_batch=4096, n_ubatch=256, n_seq_max=2, n_threads=1) as twin:
        twin.decode(batch_of(tokens[: done + 256]))
        assert np.max(np.abs(ctx.logits(copy=True) - twin.logits(copy=True))) < 1e-3


def test_abort_of_a_recurrent_state_empties_what_it_broke(nano_hybrid: lloyal.Model) -> None:
    params: dict[str, Any] = {"n_ctx": 4096, "n_batch": 4096, "n_ubatch": 256, "n_seq_max": 3, "n_threads": 1}
    tokens = prompt(nano_hybrid, N_LONG)
    with lloyal.Context(nano_hybrid, **params) as ctx, lloyal.Context(nano_hybrid, **params) as twin:
        for c in (ctx, twin):
            c.decode(batch_of(tokens[:20], 0, 2))
        thread, result = start(lambda: ctx.decode(batch_of(tokens)))
        wait_until(working(ctx))
        ctx.abort()
        thread.join()
        assert isinstance(result[0], Aborted)
        assert "empty" in str(result[0])
        assert ctx.memory.seq_pos_max(0) == -1
        assert ctx.memory.provenance(0) == []
        for c in (ctx, twin):
            c.decode(batch_of(tokens[:100]))
        assert np.max(np.abs(ctx.logits(copy=True) - twin.logits(copy=True))) < 1e-3
        for c in (ctx, twin):  # a sequence that was not in the batch is as it was
            c.decode(batch_of(tokens[20:30], 20, 2))
        assert np.max(np.abs(ctx.logits(copy=True) - twin.logits(copy=True))) < 1e-3


def test_abort_of_tokens_in_two_sequences_takes_them_from_both(nano: lloyal.Model, ctx: lloyal.Context) -> None:
    tokens = prompt(nano, N_LONG)
    batch = lloyal.Batch()
    for pos, token in enumerate(tokens):
        batch.add(token, pos, [0, 1])
    thread, result = start(lambda: ctx.decode(batch))
    other = lloyal.Context(nano, n_ctx=256, n_threads=1)
    wait_until(working(ctx))
    time.sleep(0.05)
    ctx.abort()
    thread.join()
    assert isinstance(result[0], Aborted)
    done = ctx.memory.seq_pos_max(0) + 1
    assert done < N_LONG
    assert ctx.memory.seq_pos_max(1) + 1 == done
    assert ctx.memory.provenance(1) == ctx.memory.provenance(0)
    for seq in (0, 1):
        ctx.decode(batch_of(tokens[done : done + 50], done, seq))
    other.close()


def test_abort_without_a_decode_does_nothing(nano: lloyal.Model, ctx: lloyal.Context) -> None:
    ctx.abort()
    ctx.decode(batch_of(prompt(nano, 10)))
    assert ctx.memory.seq_pos_max(0) == 9


# The GIL. A thread counts and offers the GIL after every count, and nobody is made to give it up: what the counter
# gains while a call runs, it gains because the call let go. Counts, not seconds: a busy machine only makes them fewer.

SECONDS = 5.0  # at most
CALLS = 10
COUNTS = 30  # opening a file lets go too, for a count or two; copying a state takes as long as a few


class Counter:
    def __init__(self) -> None:
        self.n = 0
        self.running = True
        self.thread = threading.Thread(target=self.count)
        self.thread.start()

    def count(self) -> None:
        while self.running:
            self.n += 1
            time.sleep(0)

    def gains(self, work: Callable[[], object]) -> bool:
        first = self.n
        for _ in range(CALLS):
            work()
            if self.n - first >= COUNTS:
                return True
        return False

    def stop(self) -> None:
        self.running = False
        self.thread.join()


def lets_go(work: Callable[[], object]) -> bool:
    """Whether another thread counts while `work` runs; it is tried until one does."""
    interval = sys.getswitchinterval()
    gc.collect()  # what others have left lets go when it is freed
    counter = Counter()
    sys.setswitchinterval(1000.0)
    gc.disable()
    try:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            if counter.gains(work):
                return True
        return False
    finally:
        gc.enable()
        sys.setswitchinterval(interval)
        counter.stop()


def test_holding_the_gil_would_show() -> None:
    numbers = list(range(300_000))
    assert not lets_go(lambda: sum(numbers))


def test_loading_releases_the_gil() -> None:
    def load() -> None:
        lloyal.Model(lloyal.models.path("nano"), use_mmap=False, check_tensors=True).close()

    assert lets_go(load)


def test_prefill_releases_the_gil(nano: lloyal.Model, ctx: lloyal.Context) -> None:
    batch = batch_of(prompt(nano, 512))

    def prefill() -> None:
        ctx.memory.seq_rm(0)
        ctx.decode(batch)

    assert lets_go(prefill)


def test_generation_releases_the_gil(nano: lloyal.Model, ctx: lloyal.Context) -> None:
    ctx.decode(batch_of(prompt(nano, 5)))
    batch = lloyal.Batch()

    def step() -> None:
        batch.clear()
        batch.add(ctx.logits().argmax(), ctx.memory.seq_pos_max(0) + 1, 0, True)
        ctx.decode(batch)

    assert lets_go(step)


def test_saving_and_loading_states_release_the_gil(nano: lloyal.Model, ctx: lloyal.Context, tmp_path: Path) -> None:
    ctx.decode(batch_of(prompt(nano, N_LONG)))
    out = bytearray(ctx.state_get_size())
    n = ctx.state_get_data(out=out)
    assert lets_go(lambda: ctx.state_get_data(out=out))
    assert lets_go(lambda: ctx.state_set_data(memoryview(out)[:n]))
    assert lets_go(lambda: ctx.state_seq_get_data_ext(0, StateSeqFlags.ON_DEVICE))
    path = tmp_path / "state"
    ctx.state_seq_save_file(path, 0)
    assert lets_go(lambda: ctx.state_seq_load_file(path, 0))
