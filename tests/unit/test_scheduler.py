"""Who waits, who is read, who goes on: whatever fails and whoever leaves, each text is what it would be alone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import lloyal
from lloyal.errors import Busy, CacheFull, DecodeFailed, NoLease
from lloyal.kv import Tenancy
from lloyal.sampling import Sampling
from lloyal.scheduler import QuickStops, Scheduler, Text
from lloyal.tokenization import StopStrings
from tests.models import tiny, tokens

Make = Callable[..., lloyal.Context]
EXACT = {"type_k": "f32", "type_v": "f32"}


class Troubles:
    """Calls of a store that fail now and then, before they have done anything."""

    def __init__(self, scheduler: Scheduler, rng: random.Random) -> None:
        self.scheduler, self.rng = scheduler, rng
        self.doomed: dict[str, set[Any]] = {"step": set(), "decode_scatter": set(), "park": set()}
        self.seen: Counter[str] = Counter()
        for name in ("step", "decode_scatter", "park"):
            setattr(scheduler.store, name, self.wrap(name, getattr(scheduler.store, name)))

    def wrap(self, name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def call(given: Any) -> Any:
            branches = {"step": lambda: given, "decode_scatter": lambda: [b for b, _ in given], "park": lambda: [given]}
            now = self.rng.random()
            several = len(self.scheduler.live) + len(self.scheduler.reading) > 1
            error: Exception | None = None
            if any(branch.name in self.doomed[name] for branch in branches[name]()):
                error = DecodeFailed("doomed")
            elif now < 0.1:
                error = Busy("another")
            elif now < 0.2 and several and name != "park":
                error = CacheFull("full")
            if error is not None:
                self.seen[f"{name} {type(error).__name__}"] += 1
                raise error
            return run(given)

        return call


@pytest.mark.parametrize("seed", [*range(5), 135])  # the last: a text that cannot be parked while others went on
@pytest.mark.parametrize("name", ["llama", "lfm2-swa", "mamba2"])
def test_no_trouble_changes_a_text(name: str, seed: int, new_context: Make) -> None:
    rng = random.Random(f"{name} {seed}")
    with lloyal.Model(tiny(name)) as model:
        ctx = new_context(model, n_seq_max=rng.choice([1, 2, 5]), n_ctx=512, n_ubatch=16, **EXACT)
        single = new_context(model, **EXACT)
    scheduler = Scheduler(ctx)
    troubles = Troubles(scheduler, rng)
    sampling = Sampling(temperature=1.0, seed=7)
    texts: list[Text] = []
    gone: set[Text] = set()
    over: list[Text] = []
    given: Counter[Text] = Counter()

    def add() -> None:
        prompt = tokens(rng.randint(1, 60), len(texts))

        def make() -> lloyal.Branch:
            branch = scheduler.store.create(prompt, sampling=sampling, read=False)
            if text.index % 5 == 4:
                troubles.doomed["step" if text.index % 2 else "decode_scatter"].add(branch.name)
            return branch

        text = Text(prompt, make, rng.randint(1, 12), index=len(texts))
        texts.append(text)
        scheduler.add(text)

    for _ in range(5):
        add()
    for _ in range(3000):
        if scheduler.idle and len(texts) >= 30:
            break
        if len(texts) < 30 and rng.random() < 0.4:
            add()
        if rng.random() < 0.05:
            leaving = rng.choice(texts)
            if not leaving.over:
                scheduler.remove(leaving)
                gone.add(leaving)
        try:
            stepped, made, ended = scheduler.step()
        except Busy:
            continue
        over += ended
        for text, token in zip(stepped, made, strict=True):
            given[text] += 1
            assert text.tokens[given[text] - 1] == token
    assert scheduler.idle
    assert sorted(text.index for text in over) == [text.index for text in texts if text not in gone]
    for text in texts:
        if text in gone or text.index % 5 == 4:
            assert text in gone or isinstance(text.error, DecodeFailed)
            continue
        assert text.error is None
        single.memory.clear()
        expected = list(lloyal.generate(single, text.prompt, max_tokens=text.max_tokens, sampling=sampling))
        assert text.tokens == expected
        assert given[text] == len(expected)
        assert len(text.log_probs) == len(expected)
    assert troubles.seen["step CacheFull"] + troubles.seen["step Busy"] > 0
    scheduler.close()
    assert Tenancy(ctx).available == ctx.n_seq_max


def test_prompts_are_read_in_full_parts(new_context: Make) -> None:
    with lloyal.Model(tiny("llama")) as model:
        ctx = new_context(model, n_seq_max=8, n_ubatch=32)
    scheduler = Scheduler(ctx)
    sizes: list[int] = []
    read = scheduler.store.decode_scatter

    def count(items: Any) -> None:
        sizes.append(sum(len(part) for _, part in items))
        read(items)

    scheduler.store.decode_scatter = count  # type: ignore[method-assign]
    lengths = [5, 40, 1, 3, 70, 9]
    for i, length in enumerate(lengths):
        prompt = tokens(length, i)
        scheduler.add(
            Text(prompt, lambda prompt=prompt: scheduler.store.create(prompt, sampling=Sampling(), read=False), 1)
        )
    while not scheduler.idle:
        scheduler.step()
    assert sizes == [32, 32, 32, 32]
    assert sum(sizes) == sum(lengths)
    scheduler.close()


def test_without_a_sequence_a_text_fails(new_context: Make) -> None:
    with lloyal.Model(tiny("llama")) as model:
        ctx = new_context(model, n_seq_max=1)
    with Tenancy(ctx).lease():
        scheduler = Scheduler(ctx)
        text = Text([1], lambda: scheduler.store.create([1], sampling=Sampling(), read=False))
        scheduler.add(text)
        assert scheduler.step() == ([], [], [text])
        assert isinstance(text.error, NoLease)
        assert scheduler.idle
        scheduler.close()


def test_quick_stops_are_stop_strings() -> None:
    rng = random.Random(1)
    for _ in range(3000):
        strings = ["".join(rng.choices("ab", k=rng.randint(1, 3))) for _ in range(rng.randint(1, 2))]
        quick, plain = QuickStops(strings), StopStrings(strings)
        for _ in range(rng.randint(1, 8)):
            piece = "".join(rng.choices("abcd", k=rng.randint(0, 3)))
            assert quick.feed(piece) == plain.feed(piece)
            assert quick.found == plain.found
        assert quick.flush() == plain.flush()
    with pytest.raises(ValueError, match="empty"):
        QuickStops([""])
