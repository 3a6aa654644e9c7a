"""Drafters that do what none should: the text is that of plain steps, or an error says what was wrong."""

from __future__ import annotations

import gc
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest

import lloyal
from lloyal import BranchStore, Context, Sampling
from lloyal.errors import Busy, CacheFull, InvalidArgument, LloyalError
from lloyal.kv import Tenancy
from lloyal.speculative import Chain, NGram, Speculator, Suffix

PROMPT = 'def fibonacci(n):\n    """Return the n-th number."""\n'
GREEDY = Sampling(temperature=0)


class By:
    """A drafter by a function of a text's tokens."""

    def __init__(self, guess: Callable[[list[int], int], Any]) -> None:
        self.by = guess

    def check(self, vocab: lloyal.Vocab) -> None:
        pass

    def start(self) -> list[int]:
        return []

    def feed(self, text: list[int], tokens: Sequence[int]) -> None:
        text += tokens

    def propose(self, texts: Sequence[list[int]], n: int) -> Any:
        return [self.by(text, n) for text in texts]


@pytest.fixture(scope="module")
def ctx() -> Iterator[Context]:
    exact: dict[str, Any] = {"type_k": "f32", "type_v": "f32", "flash_attn": "off"}
    with lloyal.Model(lloyal.models.path("nano")) as model:
        with Context(model, n_ctx=2048, n_seq_max=4, n_threads=1, **exact) as ctx:
            yield ctx


@pytest.mark.parametrize("accept", ["exact", "coupled", "ratio"])
def test_a_guess_that_ends_the_text(ctx: Context, accept: Any) -> None:
    """It is picked by the step after, and never read."""
    end = ctx.vocab.eos
    for temperature in (0, 1.0):
        noise = "keyed" if accept == "coupled" else "stream"
        sampling = Sampling(temperature=temperature, seed=2, noise=noise)  # type: ignore[arg-type]
        with BranchStore(ctx) as store:
            branch = store.create(PROMPT, sampling=sampling, grammar='root ::= "ab"')
            begin = branch.position
            word = ctx.vocab.tokenize("ab", add_special=False)
            speculator = Speculator(
                ctx, By(lambda text, n, begin=begin, word=word: [*word, end][len(text) - begin :]), n=4, accept=accept
            )
            made: list[int] = []
            while not branch.ended:
                made += speculator.step([branch])[0]
                held = ctx.memory.seq_pos_max(branch.seq_id) + 1 if branch.seq_id is not None else branch.position
                assert branch.ended or held == branch.position
            assert ctx.vocab.detokenize(made[:-1]) == "ab"
            assert ctx.vocab.is_eog(made[-1])
            assert branch.position == begin + len(made) - 1


def test_an_exception_keeps_no_sequence(ctx: Context) -> None:
    def fails(text: list[int], n: int) -> Any:
        raise ValueError("bad drafter")

    speculator, held = Speculator(ctx, By(fails), n=4), []
    with BranchStore(ctx) as store:
        for _ in range(6):
            branch = store.create(PROMPT, sampling=GREEDY)
            with pytest.raises(ValueError, match="bad drafter") as caught:
                speculator.step([branch])
            held.append(caught.value)
            branch.prune()
            del branch, caught
            gc.collect()
            assert Tenancy(ctx).available == 4
    assert len(held) == 6


def test_picks_are_of_use_during_their_step_only(ctx: Context) -> None:
    """Also from another thread, which must not see a draw that is being read."""
    kept: list[Any] = []

    class Keeps(By):
        def guess(self, texts: Any, n: int, picks: Any) -> Any:
            kept[:] = picks
            picks.clear()
            return [[5, 6, 7, 8][:n] for _ in texts]

    done = threading.Event()
    seen: set[type] = set()

    def other() -> None:
        while not done.is_set():
            for pick in list(kept):
                for ask in (lambda pick=pick: pick.forced("", 64), lambda pick=pick: pick._draws.sampler(0)):
                    try:
                        ask()
                    except (LloyalError, IndexError) as error:
                        seen.add(type(error))

    thread = threading.Thread(target=other)
    thread.start()
    try:
        speculator = Speculator(ctx, Keeps(lambda text, n: []), n=4)
        end = time.monotonic() + 3.0
        with BranchStore(ctx) as store:
            while time.monotonic() < end:
                branch = store.create(PROMPT, sampling=GREEDY, grammar="root ::= [^\\x00]+")
                for _ in range(10):
                    with suppress(Busy):
                        speculator.step([branch])
                branch.prune()
    finally:
        done.set()
        thread.join()
    with pytest.raises(InvalidArgument, match="has been read"):
        kept[0].forced()
    with pytest.raises(InvalidArgument, match="has been read"):
        kept[0].sampler()


@pytest.mark.parametrize(
    ("guess", "said"),
    [
        (lambda text, n: None, "a list of tokens is needed"),
        (lambda text, n: 7, "a list of tokens is needed"),
        (lambda text, n: [10**12], "token=1000000000000"),
        (lambda text, n: ["a"], "token='a'"),
    ],
)
def test_what_is_no_guess_is_refused_by_name(ctx: Context, guess: Any, said: str) -> None:
    with BranchStore(ctx) as store:
        branch = store.create(PROMPT, sampling=GREEDY)
        before = branch.tokens
        with pytest.raises((TypeError, InvalidArgument), match=said):
            Speculator(ctx, By(guess), n=4).step([branch])
        assert branch.tokens == before
    with pytest.raises(TypeError, match="is a class"):
        Speculator(ctx, NGram)  # type: ignore[arg-type]


def test_a_stop_iteration_of_a_drafter_is_an_error(ctx: Context) -> None:
    def stops(text: list[int], n: int) -> Any:
        raise StopIteration

    generation = lloyal.generate(ctx, PROMPT, max_tokens=8, sampling=GREEDY, draft=Speculator(ctx, By(stops), n=4))
    with pytest.raises(RuntimeError, match="has raised StopIteration"):
        list(generation)


def test_a_text_that_went_back_is_heard_anew(ctx: Context) -> None:
    heard: list[list[int]] = []
    with BranchStore(ctx) as store:
        speculator = Speculator(ctx, By(lambda text, n: heard.append(list(text)) or []), n=2)
        branch = store.create(PROMPT, sampling=GREEDY)
        for _ in range(3):
            speculator.step([branch])
        tokens = branch.tokens
        branch.rewind(3)
        branch.prefill([100, 101, tokens[-1], 50])
        speculator.step([branch])
        assert heard[-1] == branch.tokens
        kept = branch.checkpoint()
        branch.prefill([7, 8, 9])
        branch.restore(kept)
        speculator.step([branch])
        assert heard[-1] == branch.tokens


def test_one_without_room_leaves_the_others_in_a_chain(ctx: Context) -> None:
    def full(text: list[int], n: int) -> Any:
        raise CacheFull("mine is full")

    speculator = Speculator(ctx, Chain(By(full), By(lambda text, n: [5])), n=2)
    with BranchStore(ctx) as store:
        speculator.step([store.create(PROMPT, sampling=GREEDY)])
    assert speculator.stats.guessed == 1


def test_a_suffix_that_was_interrupted_goes_on() -> None:
    """Wherever a signal has come in between."""
    suffix, rng, stopped = Suffix(), random.Random(3), 0

    class Stop(Exception):
        pass

    def stop(*_: Any) -> None:
        raise Stop

    before = signal.signal(signal.SIGALRM, stop)
    try:
        for _ in range(600):
            text = suffix.start()
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(2e-5, 4e-4))
                while True:
                    suffix.feed(text, [rng.randrange(6) for _ in range(40)])
            except Stop:
                stopped += 1
            text = suffix.start()
            suffix.feed(text, [1, 2, 3, 1, 2])
            suffix.propose([text], 4)
        Suffix.from_bytes(suffix.to_bytes())
    finally:
        signal.signal(signal.SIGALRM, before)
    assert stopped == 600


def test_a_signal_handler_does_not_wait_for_its_own_thread() -> None:
    suffix, busy = Suffix(), 0
    other = suffix.start()

    def again(*_: Any) -> None:
        nonlocal busy
        try:
            suffix.feed(other, [9])
        except Busy:
            busy += 1

    before = signal.signal(signal.SIGALRM, again)
    signal.setitimer(signal.ITIMER_REAL, 1e-3, 1e-3)
    try:
        end = time.monotonic() + 20
        while not busy and time.monotonic() < end:
            suffix.feed(suffix.start(), list(range(2000)))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert busy


def test_keyed_noise_is_of_the_position(ctx: Context) -> None:
    """However the tokens before it have come: as a prompt, or read in the middle."""
    sampling = Sampling(temperature=1.0, seed=11, top_p=0.95, noise="keyed")
    with BranchStore(ctx) as store:
        tokens = ctx.vocab.tokenize(PROMPT)
        whole = list(store.create(tokens, sampling=sampling).generate(20))
        part = store.create(tokens[:-3], sampling=sampling)
        part.prefill(tokens[-3:])
        assert list(part.generate(20)) == whole
        again = store.create(tokens, sampling=sampling)
        again.rewind(3)
        again.prefill(tokens[-3:])
        assert list(again.generate(20)) == whole
