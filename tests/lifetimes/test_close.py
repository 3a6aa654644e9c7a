"""Handles: closed in any order, twice, by whoever; freed when the last that needs them is gone."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import lloyal
from lloyal.errors import Closed
from tests.lifetimes.work import batch_of
from tests.models import tiny, tokens


@pytest.fixture
def no_gc() -> Iterator[None]:
    """Only reference counts free things."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def model() -> Iterator[lloyal.Model]:
    with lloyal.Model(tiny("llama")) as loaded:
        yield loaded


def small(model: lloyal.Model, **params: Any) -> lloyal.Context:
    return lloyal.Context(model, **({"n_ctx": 256, "n_seq_max": 2, "n_threads": 1} | params))


def live(kind: str) -> int:
    return lloyal.live_handles()[kind]


PARTS = ("model", "context", "sampler", "view", "memory", "vocab")


@pytest.mark.parametrize(
    "order", [order for i, order in enumerate(itertools.permutations(PARTS)) if i % 24 == 0 or i % 31 == 0]
)
def test_any_order_frees_everything(order: tuple[str, ...]) -> None:
    before = lloyal.live_handles()
    parts: dict[str, Any] = {"model": lloyal.Model(tiny("llama"))}
    parts["vocab"] = parts["model"].vocab
    parts["context"] = small(parts["model"])
    parts["memory"] = parts["context"].memory
    parts["sampler"] = lloyal.Sampler.chain(
        lloyal.Sampler.top_k(3), lloyal.Sampler.grammar(parts["vocab"], 'root ::= "a"*'), lloyal.Sampler.greedy()
    )
    parts["context"].decode(batch_of(tokens(5)))
    parts["view"] = parts["context"].logits()
    want = parts["view"].argmax()
    for i, name in enumerate(order):
        part = parts.pop(name)
        if hasattr(part, "close"):
            part.close()
        del part
        # What is left still works, whatever it was made from.
        if "view" in parts:
            assert parts["view"].argmax() == want
        if "vocab" in parts:
            assert len(parts["vocab"].tokenize("some text")) > 0
        if "sampler" in parts:
            assert parts["sampler"].name == "chain"
        assert sum(lloyal.live_handles().values()) > sum(before.values()) or i >= len(PARTS) - 3
    assert lloyal.live_handles() == before


def test_a_context_works_after_its_model_is_closed(model: lloyal.Model) -> None:
    ctx, twin = small(model), small(model)
    model.close()
    with pytest.raises(Closed, match="closed"):
        small(model)
    rows = []
    for c in (ctx, twin):
        c.decode(batch_of(tokens(9)))
        rows.append(c.logits(copy=True))
        c.close()
    assert np.array_equal(*rows)


def test_closing_twice(model: lloyal.Model) -> None:
    ctx, sampler = small(model), lloyal.Sampler.greedy()
    for part in (sampler, ctx, model):
        part.close()
        part.close()
        assert part.closed
        assert "closed" in repr(part)


def test_with_closes(model: lloyal.Model) -> None:
    with small(model) as ctx:
        assert not ctx.closed
    assert ctx.closed
    with pytest.raises(ZeroDivisionError), small(model) as ctx:
        raise ZeroDivisionError
    assert ctx.closed


CONTEXT_CALLS: dict[str, Callable[[lloyal.Context], object]] = {
    "decode": lambda ctx: ctx.decode(batch_of([1])),
    "encode": lambda ctx: ctx.encode(batch_of([1])),
    "logits": lambda ctx: ctx.logits(),
    "embeddings": lambda ctx: ctx.embeddings(),
    "synchronize": lambda ctx: ctx.synchronize(),
    "abort": lambda ctx: ctx.abort(),
    "n_ctx": lambda ctx: ctx.n_ctx,
    "perf": lambda ctx: ctx.perf(),
    "set_n_threads": lambda ctx: ctx.set_n_threads(1, 1),
    "state_get_size": lambda ctx: ctx.state_get_size(),
    "state_seq_get_data_ext": lambda ctx: ctx.state_seq_get_data_ext(0, 0),
    "state_seq_set_data_ext": lambda ctx: ctx.state_seq_set_data_ext(b"", 0, 0),
    "memory.kind": lambda ctx: ctx.memory.kind,
    "memory.seq_rm": lambda ctx: ctx.memory.seq_rm(0),
    "memory.seq_pos_max": lambda ctx: ctx.memory.seq_pos_max(0),
    "memory.clear": lambda ctx: ctx.memory.clear(),
    "memory.provenance": lambda ctx: ctx.memory.provenance(0),
    "sample": lambda ctx: lloyal.Sampler.greedy().sample(ctx),
}


@pytest.mark.parametrize("call", CONTEXT_CALLS)
def test_a_closed_context_says_so(call: str, model: lloyal.Model) -> None:
    ctx = small(model)
    ctx.close()
    with pytest.raises(Closed, match="closed"):
        CONTEXT_CALLS[call](ctx)


@pytest.mark.parametrize(
    "attribute", ["desc", "size", "metadata", "n_embd", "arch", "vocab", "classifier_labels", "rope_type"]
)
def test_a_closed_model_says_so(attribute: str, model: lloyal.Model) -> None:
    model.close()
    with pytest.raises(Closed, match=r"llama-0\.gguf"):
        getattr(model, attribute)


def test_a_closed_sampler_says_so(model: lloyal.Model) -> None:
    sampler = lloyal.Sampler.greedy()
    sampler.close()
    with small(model) as ctx:
        ctx.decode(batch_of([1]))
        for call in (
            lambda: sampler.sample(ctx),
            lambda: sampler.accept(1),
            sampler.reset,
            sampler.clone,
            lambda: sampler.name,
        ):
            with pytest.raises(Closed, match="closed"):
                call()


@pytest.mark.usefixtures("no_gc")
def test_dropping_the_last_reference_frees_at_once(model: lloyal.Model) -> None:
    n = live("contexts")
    ctx = small(model)
    ctx.decode(batch_of(tokens(5)))
    # Everything that hangs on a context, or that it hands out, must not hold it in a cycle.
    uses = [ctx.memory.kind, repr(ctx), ctx.logits().argmax(), ctx.state_seq_get_data_ext(0, 0), ctx.model.vocab]
    assert live("contexts") == n + 1
    del uses, ctx
    assert live("contexts") == n


@pytest.mark.usefixtures("no_gc")
def test_failed_creation_leaves_nothing(model: lloyal.Model) -> None:
    before = lloyal.live_handles()
    for params in ({"type": "mtp"}, {"n_outputs_max": 1}, {"n_cxt": 1}, {"n_ctx": 2**31 - 256}):
        with pytest.raises((ValueError, OSError, TypeError)):
            small(model, **params)
    assert lloyal.live_handles() == before


@pytest.mark.usefixtures("no_gc")
def test_an_error_does_not_keep_the_context(model: lloyal.Model) -> None:
    n = live("contexts")
    ctx = small(model)
    with pytest.raises(lloyal.errors.InvalidBatch) as caught:
        ctx.decode(batch_of([99999]))
    error = caught.value.with_traceback(None)
    del caught, ctx
    assert live("contexts") == n
    assert "99999" in str(error)


def test_cycles_are_collected(model: lloyal.Model) -> None:
    n = live("contexts")

    class Holder:
        def __init__(self) -> None:
            self.ctx = small(model)
            self.memory = self.ctx.memory
            self.me = self

    holder = Holder()
    gone = weakref.ref(holder)
    del holder
    gc.collect()
    assert gone() is None
    assert live("contexts") == n


def test_a_cycle_through_a_subclass_is_collected(model: lloyal.Model) -> None:
    n = live("contexts")

    class Mine(lloyal.Context):
        pass

    ctx = Mine(model, n_ctx=256, n_threads=1)
    ctx.me = ctx
    ctx.view = None
    ctx.decode(batch_of([1]))
    ctx.view = ctx.logits()
    del ctx
    gc.collect()
    assert live("contexts") == n


def test_a_view_keeps_its_context(model: lloyal.Model) -> None:
    n = live("contexts")
    ctx = small(model)
    ctx.decode(batch_of(tokens(5)))
    view = ctx.logits()
    array = np.asarray(view)
    want = array.copy()
    ctx.close()
    del ctx, view
    gc.collect()
    assert live("contexts") == n + 1
    assert np.array_equal(array, want)
    del array
    assert live("contexts") == n


def test_a_child_context_keeps_its_parent() -> None:
    with lloyal.Model(tiny("qwen35-mtp")) as model:
        parent = lloyal.Context(model, n_ctx=256, n_threads=1)
        n = live("contexts")
        child = lloyal.Context(model, n_ctx=256, n_threads=1, type="mtp", parent=parent)
        parent.close()
        assert live("contexts") == n + 1
        del parent
        gc.collect()
        assert live("contexts") == n + 1
        child.close()
        assert live("contexts") == n - 1


@pytest.mark.parametrize("what", ["model", "context", "vocab", "view", "memory", "batch", "sampler"])
def test_no_second_owner_by_copying(what: str, model: lloyal.Model) -> None:
    ctx = small(model)
    ctx.decode(batch_of([1]))
    part = {
        "model": model,
        "context": ctx,
        "vocab": model.vocab,
        "view": ctx.logits(),
        "memory": ctx.memory,
        "batch": lloyal.Batch(),
        "sampler": lloyal.Sampler.greedy(),
    }[what]
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            duplicate(part)
    ctx.close()


@pytest.mark.parametrize("kind", [lloyal.Vocab, lloyal.Memory, lloyal.Logits, lloyal.Sampler, lloyal.Device])
def test_parts_are_not_made_directly(kind: type) -> None:
    with pytest.raises(TypeError, match="cannot be made directly"):
        kind()


def test_making_a_context_again_replaces_it(model: lloyal.Model) -> None:
    n = live("contexts")
    ctx = small(model)
    ctx.decode(batch_of(tokens(5)))
    ctx.__init__(model, n_ctx=512, n_threads=1)  # type: ignore[misc]
    assert ctx.n_ctx == 512
    assert ctx.memory.seq_pos_max(0) == -1
    assert live("contexts") == n + 1
    ctx.close()
