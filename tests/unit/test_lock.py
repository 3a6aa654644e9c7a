"""The lock of a context: threads that ask wait in a queue, and nobody else does."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

import lloyal
from lloyal.errors import Busy
from lloyal.lock import Lock
from lloyal.sampling import Sampling
from tests.models import tiny, tokens

Make = Callable[..., lloyal.Context]


@pytest.fixture
def ctx(new_context: Make) -> lloyal.Context:
    with lloyal.Model(tiny("llama")) as model:
        return new_context(model, n_seq_max=4)


def in_threads(*runs: Callable[[], object]) -> None:
    """Run all at once; what one of them raises comes out."""
    errors: list[BaseException] = []

    def guarded(run: Callable[[], object]) -> None:
        try:
            run()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]


def take(ctx: lloyal.Context) -> None:
    with ctx.lock(timeout=0.01):
        pass


def test_threads_that_ask_never_meet(ctx: lloyal.Context) -> None:
    """Each generates in its own sequence; without the lock some of them would get Busy."""
    made: dict[int, list[int]] = {}

    def run(seq_id: int) -> None:
        with ctx.lock():
            texts = lloyal.generate(ctx, tokens(6), seq_id=seq_id, max_tokens=30, sampling=Sampling(temperature=0))
        while texts.stop_reason is None:
            with ctx.lock():
                next(texts, None)
        made[seq_id] = texts.tokens

    in_threads(*(lambda i=i: run(i) for i in range(4)))
    assert len(made) == 4
    assert {len(one) for one in made.values()} == {30}


def test_it_is_taken_again_inside(ctx: lloyal.Context) -> None:
    with ctx.lock(), ctx.lock(timeout=0):
        with pytest.raises(Busy, match="lock"):
            in_threads(lambda: take(ctx))
    in_threads(lambda: take(ctx))


def test_a_bare_call_takes_no_notice(ctx: lloyal.Context) -> None:
    with ctx.lock():
        in_threads(lambda: ctx.memory.seq_pos_max(0))


def test_it_goes_to_who_has_waited_longest() -> None:
    lock, order, ready = Lock(), [], []
    assert lock.acquire()

    def wait(i: int) -> None:
        ready.append(i)
        assert lock.acquire(10)
        order.append(i)
        lock.release()

    threads = []
    for i in range(5):
        threads.append(threading.Thread(target=wait, args=(i,)))
        threads[-1].start()
        while len(lock._waiting) <= i:
            time.sleep(0.001)
    lock.release()
    assert lock.acquire(10)  # behind the others, though it was awake
    assert order == [0, 1, 2, 3, 4]
    lock.release()
    for thread in threads:
        thread.join()


def test_ctrl_c_ends_the_wait(ctx: lloyal.Context) -> None:
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with ctx.lock():
            held.set()
            let_go.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt), ctx.lock():
        pass
    let_go.set()
    holder.join()
    timer.join()
    with ctx.lock(timeout=5):  # it was not left to who gave up
        pass
