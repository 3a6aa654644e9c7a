"""What llama.cpp's samplers and grammars abort, hang or go wrong on: an error of ours instead, and life goes on."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest

import lloyal
from lloyal.errors import InvalidArgument, Unsupported
from lloyal.llama import Sampler
from tests.models import tiny

NAN, INF = math.nan, math.inf


@pytest.fixture(scope="module")
def vocab(nano: lloyal.Model) -> lloyal.Vocab:
    return nano.vocab


BAD_VALUES: list[tuple[str, Callable[[lloyal.Vocab], Sampler]]] = [
    ("seed=-1", lambda v: Sampler.dist(-1)),
    ("seed=4294967295", lambda v: Sampler.dist(2**32 - 1)),
    ("seed=4294967295", lambda v: Sampler.llama_dist(2**32 - 1)),
    ("seed=-1", lambda v: Sampler.keyed(-1)),
    ("position=-1", lambda v: Sampler.keyed(1, -1)),
    ("k=9999999999", lambda v: Sampler.top_k(9999999999)),
    ("p=1.5", lambda v: Sampler.top_p(1.5)),
    ("p=nan", lambda v: Sampler.top_p(NAN)),
    ("p=-0.1", lambda v: Sampler.min_p(-0.1)),
    ("min_keep=-1", lambda v: Sampler.min_p(0.5, -1)),
    ("p=nan", lambda v: Sampler.typical(NAN)),
    ("t=nan", lambda v: Sampler.temp(NAN)),
    ("t=inf", lambda v: Sampler.temp(INF)),
    ("t=1e+39", lambda v: Sampler.temp(1e39)),
    ("delta=nan", lambda v: Sampler.temp_ext(1, NAN, 1)),
    ("exponent=-1", lambda v: Sampler.temp_ext(1, 0.5, -1)),
    ("t=2", lambda v: Sampler.xtc(0.5, 2)),
    ("n=nan", lambda v: Sampler.top_n_sigma(NAN)),
    ("n_vocab=0", lambda v: Sampler.mirostat(0, 1, 5, 0.1)),
    ("m=1", lambda v: Sampler.mirostat(10, 1, 5, 0.1, 1)),
    ("tau=inf", lambda v: Sampler.mirostat_v2(1, INF, 0.1)),
    ("eta=nan", lambda v: Sampler.mirostat_v2(1, 5, NAN)),
    ("penalty_last_n=-1", lambda v: Sampler.penalties(10, -1, 1.5)),
    ("penalty_last_n=2147483647", lambda v: Sampler.penalties(10, 2**31 - 1, 1.5)),
    ("penalty_repeat=0", lambda v: Sampler.penalties(10, 5, 0)),
    ("penalty_repeat=-1", lambda v: Sampler.penalties(10, 5, -1)),
    ("penalty_freq=nan", lambda v: Sampler.penalties(10, 5, 1.5, NAN)),
    ("penalty_present=inf", lambda v: Sampler.penalties(10, 5, 1.5, 0, INF)),
    ("dry_multiplier=nan", lambda v: Sampler.dry(v, NAN)),
    ("dry_base=0.5", lambda v: Sampler.dry(v, 1, 0.5)),
    ("dry_allowed_length=-1", lambda v: Sampler.dry(v, 1, 1.5, -1)),
    ("dry_penalty_last_n=-1", lambda v: Sampler.dry(v, 1, 1.5, 2, -1)),
    ("''", lambda v: Sampler.dry(v, 1, seq_breakers=[""])),
    ("40 bytes", lambda v: Sampler.dry(v, 1, seq_breakers=["x" * 41])),
    ("target=1.5", lambda v: Sampler.adaptive_p(1.5)),
    ("decay=1", lambda v: Sampler.adaptive_p(0.5, 1)),
    ("token=10", lambda v: Sampler.logit_bias(10, {10: 1})),
    ("token=-1", lambda v: Sampler.logit_bias(10, {-1: 1})),
    ("token 3=nan", lambda v: Sampler.logit_bias(10, {3: NAN})),
    ("token 3=inf", lambda v: Sampler.logit_bias(10, {3: INF})),
    ("never start", lambda v: Sampler.grammar_lazy_patterns(v, "root ::= [a]")),
    ("'('", lambda v: Sampler.grammar_lazy_patterns(v, "root ::= [a]", trigger_patterns=["("])),
    ("token 768", lambda v: Sampler.grammar_lazy_patterns(v, "root ::= [a]", trigger_tokens=[len(v)])),
]


@pytest.mark.parametrize(("named", "make"), BAD_VALUES, ids=[f"{i}-{named}" for i, (named, _) in enumerate(BAD_VALUES)])
def test_bad_value(vocab: lloyal.Vocab, named: str, make: Callable[[lloyal.Vocab], Sampler]) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(named)):
        make(vocab)


def test_no_numbers(vocab: lloyal.Vocab) -> None:
    for make in (
        lambda: Sampler.top_k(1.5),
        lambda: Sampler.top_p("0.5"),
        lambda: Sampler.dist("1"),
        lambda: Sampler.temp(None),
        lambda: Sampler.chain(Sampler.greedy(), None),
        lambda: Sampler.grammar(None, "root ::= [a]"),
    ):
        with pytest.raises(TypeError):
            make()


def test_without_a_tokenizer() -> None:
    model = lloyal.Model(tiny("llama"))
    if model.vocab.type.name != "NONE":
        assert Sampler.grammar(model.vocab, "root ::= [0-9a-f]+")
        with pytest.raises(Unsupported, match="neither"):
            Sampler.infill(model.vocab)


CHAIN_ONLY: list[Callable[[Sampler], object]] = [
    lambda s: s.chain_add(Sampler.greedy()),
    lambda s: s.chain_n(),
    lambda s: s.chain_get(0),
    lambda s: s.chain_remove(0),
    lambda s: s.perf(),
    lambda s: s.perf_reset(),
]


@pytest.mark.parametrize("call", CHAIN_ONLY)
def test_chain_functions_on_a_sampler_that_is_none(call: Callable[[Sampler], object]) -> None:
    for sampler in (Sampler.greedy(), Sampler.dist(1), Sampler.top_k(0)):
        with pytest.raises(InvalidArgument, match="not a chain"):
            call(sampler)


@pytest.mark.parametrize("i", [-1, 1, 2**31 - 1])
def test_chain_index(i: int) -> None:
    chain = Sampler.chain(Sampler.greedy())
    for call in (chain.chain_get, chain.chain_remove):
        with pytest.raises(InvalidArgument, match=f"index {i}"):
            call(i)
    assert chain.chain_n() == 1


def test_chains_nested_without_end() -> None:
    chain = Sampler.chain(Sampler.greedy())
    for _ in range(15):
        chain = Sampler.chain(chain)
    with pytest.raises(InvalidArgument, match="16 deep"):
        Sampler.chain(chain)
    assert chain.apply([0.0, 1.0]).token == 1


def every_sampler(v: lloyal.Vocab) -> list[Sampler]:
    n = len(v)
    return [
        Sampler.greedy(),
        Sampler.dist(1),
        Sampler.keyed(1),
        Sampler.llama_dist(1),
        Sampler.top_k(5),
        Sampler.top_p(0.5),
        Sampler.min_p(0.5),
        Sampler.typical(0.5),
        Sampler.temp(0.5),
        Sampler.temp_ext(1, 0.5, 1),
        Sampler.xtc(1, 0.1, 1, 1),
        Sampler.top_n_sigma(1),
        Sampler.mirostat(n, 1, 5, 0.1),
        Sampler.mirostat_v2(1, 5, 0.1),
        Sampler.grammar(v, "root ::= [a-z]+"),
        Sampler.grammar_lazy_patterns(v, "root ::= [a-z]+", trigger_patterns=["x"]),
        Sampler.penalties(n, 5, 1.5),
        Sampler.dry(v, 1.0),
        Sampler.adaptive_p(0.5, 0.5, 1),
        Sampler.logit_bias(n, {3: 1}),
        Sampler.infill(v),
        Sampler.chain(),
    ]


def test_candidates_that_no_sampler_can_take(vocab: lloyal.Vocab) -> None:
    for sampler in every_sampler(vocab):
        for logits in ([], [0.0, NAN], [INF, 0.0]):
            with pytest.raises(InvalidArgument, match=r"no candidates|candidate [01] is"):
                sampler.apply(logits)
        with pytest.raises(InvalidArgument, match="token -1"):
            sampler.apply([0.0, 1.0], [3, -1])
        with pytest.raises(InvalidArgument, match="1 ids for 2 logits"):
            sampler.apply([0.0, 1.0], [3])
        with pytest.raises(ValueError):
            sampler.apply([[0.0, 1.0]])
        with pytest.raises(InvalidArgument, match="token -1"):
            sampler.accept(-1)
        sampler.apply([-INF, -INF])  # nothing is possible: no sampler dies of it
        sampler.apply([1.0], [7])


def test_tokens_outside_the_vocabulary(vocab: lloyal.Vocab) -> None:
    n = len(vocab)
    for sampler in (
        Sampler.grammar(vocab, "root ::= [a-z]+"),
        Sampler.infill(vocab),
        Sampler.chain(Sampler.infill(vocab)),
    ):
        with pytest.raises(InvalidArgument, match=f"token {n} is outside the sampler's vocabulary of {n}"):
            sampler.apply([0.0, 1.0], [1, n])
        with pytest.raises(InvalidArgument, match=f"token {n}"):
            sampler.accept(n)


def test_sample_from_a_larger_vocabulary(nano: lloyal.Model, new_context: Callable[..., lloyal.Context]) -> None:
    with lloyal.Model(tiny("llama"), vocab_only=True) as small:
        sampler = Sampler.chain(Sampler.grammar(small.vocab, "root ::= [a-f]+"), Sampler.greedy())
    ctx = new_context(nano)
    batch = lloyal.Batch()
    batch.add(1, 0, 0, True)
    ctx.decode(batch)
    with pytest.raises(InvalidArgument, match="vocabulary of 128, these logits are of 768"):
        sampler.sample(ctx)


@pytest.mark.parametrize("arguments", [([0.5, 1.0], [1, 10**30]), ([10**400, 1.0], None)], ids=["ids", "logits"])
def test_numbers_that_no_array_holds_are_invalid_arguments(arguments) -> None:
    with pytest.raises(InvalidArgument, match=r"^(ids|logits): "):
        Sampler.greedy().apply(*arguments)
