"""What the samplers do, against plain NumPy; chains, sampling from a context, lifetimes and threads."""

from __future__ import annotations

import contextlib
import gc
import math
import threading

import numpy as np
import pytest
from numpy.typing import NDArray

import lloyal
from lloyal.errors import Busy, Closed, InvalidArgument, NoLogits
from lloyal.llama import Candidates, Sampler
from tests.decode import feed

Row = NDArray[np.float32]

N = 50  # candidates in most tests


@pytest.fixture
def row() -> Row:
    """Logits with no ties."""
    return np.random.default_rng(1).normal(0.0, 3.0, N).astype(np.float32)


@pytest.fixture(scope="module")
def vocab(nano: lloyal.Model) -> lloyal.Vocab:
    return nano.vocab


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def descending(logits: Row) -> NDArray[np.intp]:
    return np.argsort(-logits, kind="stable")


def by_token(result: Candidates, n: int = N) -> Row:
    """Logits by token, -inf for those that are gone."""
    out = np.full(n, -np.inf, np.float32)
    out[result.ids] = result.logits
    return out


def kept(result: Candidates) -> set[int]:
    return {int(token) for token, logit in zip(result.ids, result.logits, strict=True) if logit > -math.inf}


# Samplers that drop or change candidates.


def test_greedy_takes_the_first_of_the_largest(row: Row) -> None:
    row[[7, 30]] = row.max() + 1
    assert Sampler.greedy().apply(row).token == 7


@pytest.mark.parametrize("k", [1, 5, N, 3 * N])
def test_top_k(row: Row, k: int) -> None:
    result = Sampler.top_k(k).apply(row)
    assert list(result.ids) == list(descending(row)[:k])
    assert result.sorted


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler.top_k(0),
        Sampler.top_p(1),
        Sampler.min_p(0),
        Sampler.typical(1),
        Sampler.temp(1),
        Sampler.temp_ext(1, 0, 1),
        Sampler.xtc(0, 0.1),
        Sampler.top_n_sigma(0),
        Sampler.penalties(N, 0, 2.0),
        Sampler.logit_bias(N, {}),
    ],
    ids=lambda sampler: sampler.name,
)
def test_switched_off(row: Row, sampler: Sampler) -> None:
    assert sampler.name.startswith("?")
    assert np.array_equal(by_token(sampler.apply(row)), row)


@pytest.mark.parametrize(("p", "min_keep"), [(0.1, 1), (0.5, 1), (0.9, 1), (0.0, 1), (0.1, 7), (0.99, 20)])
def test_top_p(row: Row, p: float, min_keep: int) -> None:
    order = descending(row)
    reached = np.cumsum(softmax(row)[order]) >= p
    n = max(int(np.argmax(reached)) + 1, min_keep)
    assert kept(Sampler.top_p(p, min_keep).apply(row)) == set(order[:n])


@pytest.mark.parametrize(("p", "min_keep"), [(0.05, 1), (0.3, 1), (1.0, 1), (0.9, 6)])
def test_min_p(row: Row, p: float, min_keep: int) -> None:
    probs = softmax(row)
    wanted = set(np.flatnonzero(probs >= p * probs.max()))
    if len(wanted) < min_keep:
        wanted = set(descending(row)[:min_keep])
    assert kept(Sampler.min_p(p, min_keep).apply(row)) == wanted


@pytest.mark.parametrize("p", [0.2, 0.6, 0.95])
def test_typical(row: Row, p: float) -> None:
    probs = softmax(row)
    surprise = -np.log(probs)
    order = np.argsort(np.abs(surprise - (probs * surprise).sum()))
    n = int(np.argmax(np.cumsum(probs[order]) > p)) + 1
    assert kept(Sampler.typical(p).apply(row)) == set(order[:n])


@pytest.mark.parametrize("t", [0.25, 2.0])
def test_temp(row: Row, t: float) -> None:
    assert by_token(Sampler.temp(t).apply(row)) == pytest.approx(row / t, rel=1e-6)


@pytest.mark.parametrize("t", [0.0, -1.0])
def test_temp_of_zero_keeps_the_best(row: Row, t: float) -> None:
    assert kept(Sampler.temp(t).apply(row)) == {int(row.argmax())}


def test_temp_ext(row: Row) -> None:
    t, delta, exponent = 1.2, 0.7, 1.5
    probs = softmax(row)
    entropy = -(probs * np.log(probs)).sum() / math.log(N)
    dynamic = (t - delta) + 2 * delta * entropy**exponent
    assert by_token(Sampler.temp_ext(t, delta, exponent).apply(row)) == pytest.approx(row / dynamic, rel=1e-4)


def test_xtc_drops_all_top_choices_but_the_last(row: Row) -> None:
    probs = softmax(row)
    order = descending(row)
    n_top = int((probs >= 0.1).sum())
    assert n_top > 1
    assert kept(Sampler.xtc(1.0, 0.1, 1, seed=1).apply(row)) == set(order[n_top - 1 :])
    assert kept(Sampler.xtc(1.0, 0.1, N, seed=1).apply(row)) == set(range(N))


def test_xtc_acts_as_often_as_asked(row: Row) -> None:
    sampler = Sampler.xtc(0.3, 0.1, 1, seed=1)
    acted = sum(len(sampler.apply(row).ids) < N for _ in range(1000))
    assert 240 < acted < 360  # 4 standard deviations


@pytest.mark.parametrize("n", [0.5, 1.0, 2.0])
def test_top_n_sigma(row: Row, n: float) -> None:
    row[3] = -np.inf
    finite = row[np.isfinite(row)]
    assert kept(Sampler.top_n_sigma(n).apply(row)) == set(np.flatnonzero(row >= finite.max() - n * finite.std()))


def test_penalties(row: Row) -> None:
    sampler = Sampler.penalties(N, 6, 1.3, 0.4, 0.2)
    history = [1, 2, 2, 3, 2, 9, 9, 4]
    expected = row.astype(np.float64)
    for token in set(history[-6:]):
        count = history[-6:].count(token)
        expected[token] = expected[token] * 1.3 if expected[token] <= 0 else expected[token] / 1.3
        expected[token] -= count * 0.4 + 0.2
    for token in history:
        sampler.accept(token)
    assert by_token(sampler.apply(row)) == pytest.approx(expected, rel=1e-5)
    sampler.reset()
    assert np.array_equal(by_token(sampler.apply(row)), row)


def repetition(history: list[int], token: int, breakers: set[int], allowed: int) -> int:
    """How long a repetition `token` would go on with: the longest end of `history` that stood before a `token`."""
    reach = next((i for i, t in enumerate(reversed(history)) if t in breakers), len(history))
    best = 0
    for at in range(1, len(history)):
        if history[at] == token and reach >= allowed:
            n = 0
            while n < min(at, reach) and history[at - 1 - n] == history[-1 - n]:
                n += 1
            best = max(best, n)
    return best


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("breaker", ["", "\n"])
def test_dry(vocab: lloyal.Vocab, seed: int, breaker: str) -> None:
    rng = np.random.default_rng(seed)
    newline = [t for t in range(len(vocab)) if "\n" in vocab.detokenize([t])]
    alphabet = [*rng.choice(len(vocab), 3), newline[0]]
    history = [int(t) for t in rng.choice(alphabet, 60, p=[0.32, 0.32, 0.32, 0.04])]
    logits = rng.normal(size=len(vocab)).astype(np.float32)
    breakers = set(newline) if breaker else set()
    sampler = Sampler.dry(vocab, 0.8, 1.5, 2, 4096, [breaker] if breaker else [])
    for token in history:
        sampler.accept(token)
    expected = logits.astype(np.float64)
    for token in range(len(vocab)):
        n = repetition(history, token, breakers, allowed=2)
        if n >= 2 and token not in breakers:
            expected[token] -= 0.8 * 1.5 ** (n - 2)
    result = by_token(sampler.apply(logits), len(vocab))
    assert result == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert not np.array_equal(result, logits)


def test_logit_bias(row: Row) -> None:
    result = by_token(Sampler.logit_bias(N, {4: 2.5, 7: -math.inf, 9: 0.0}).apply(row))
    expected = row.copy()
    expected[4] += np.float32(2.5)
    expected[7] = -np.inf
    assert np.array_equal(result, expected)


def test_logit_bias_finds_tokens_that_are_not_in_place(row: Row) -> None:
    chain = Sampler.chain(Sampler.top_k(10), Sampler.logit_bias(N, {int(descending(row)[4]): 100.0}), Sampler.greedy())
    assert chain.apply(row).token == descending(row)[4]


def test_infill_ends_the_text_when_that_is_likely(vocab: lloyal.Vocab) -> None:
    ends = [t for t in range(len(vocab)) if vocab.is_eog(t)]
    logits = np.full(len(vocab), -5.0, np.float32)
    logits[ends] = 5.0
    assert kept(Sampler.infill(vocab).apply(logits)) == set(ends)


def test_infill_merges_a_token_into_one_that_begins_with_it(vocab: lloyal.Vocab) -> None:
    pieces = {t: vocab.token_to_piece(t) for t in range(len(vocab)) if not vocab.is_eog(t)}
    short, long = next(
        (a, b)
        for a in pieces
        for b in pieces
        if 0 < len(pieces[a]) < len(pieces[b]) and pieces[b].startswith(pieces[a])
    )
    result = Sampler.infill(vocab).apply([1.0, 0.5], [short, long])
    assert list(result.ids) == [short]
    assert result.probs[0] == pytest.approx(1.0)


# Samplers that pick.


def reference_generator(seed: int) -> np.random.Generator:
    """NumPy's PCG64, seeded as ours: SplitMix64 gives the start and the stream."""
    mask = 2**64 - 1
    words = []
    for _ in range(4):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        words.append(z ^ (z >> 31))
    increment = ((words[2] << 64 | words[3]) << 1 | 1) % 2**128
    bits = np.random.PCG64()
    bits.state = {"bit_generator": "PCG64", "has_uint32": 0, "uinteger": 0, "state": {"state": 0, "inc": increment}}
    bits.random_raw()
    state = (bits.state["state"]["state"] + (words[0] << 64 | words[1])) % 2**128
    bits.state = bits.state | {"state": {"state": state, "inc": increment}}
    bits.random_raw()
    return np.random.Generator(bits)


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**32 - 2])
def test_dist_draws_as_numpy(row: Row, seed: int) -> None:
    generator = reference_generator(seed)
    sampler = Sampler.dist(seed)
    reached = np.cumsum(softmax(row))
    for _ in range(500):
        assert sampler.apply(row).token == np.searchsorted(reached, generator.random(), side="right")


def test_dist_state_is_numpys_state() -> None:
    generator = reference_generator(7)
    sampler = Sampler.dist(7)
    for _ in range(3):
        sampler.apply([0.0, 1.0])
        generator.random()
    state = generator.bit_generator.state["state"]
    assert state["state"].to_bytes(16, "little") + state["inc"].to_bytes(16, "little") in sampler.state()


@pytest.mark.parametrize(
    "make",
    [
        Sampler.dist,
        Sampler.llama_dist,
        lambda seed: Sampler.adaptive_p(-1.0, 0.9, seed),
        lambda seed: Sampler.mirostat_v2(seed, 100.0, 0.0),
    ],
    ids=["dist", "llama_dist", "adaptive_p-off", "mirostat_v2-wide"],
)
def test_draws_follow_the_distribution(make: object) -> None:
    logits = np.log([0.4, 0.3, 0.2, 0.06, 0.04]).astype(np.float32)
    sampler = make(3)  # type: ignore[operator]
    n = 4000
    counts = np.bincount([sampler.apply(logits).token for _ in range(n)], minlength=5)
    expected = n * softmax(logits)
    assert ((counts - expected) ** 2 / expected).sum() < 23.5  # chi squared, 4 degrees of freedom: one seed in 10 000


def test_dist_gives_probabilities_and_never_draws_impossible_tokens() -> None:
    logits = np.array([-np.inf, 0.0, -np.inf, 1.0, -np.inf], np.float32)
    sampler = Sampler.dist(1)
    results = [sampler.apply(logits) for _ in range(200)]
    assert {result.token for result in results} == {1, 3}
    assert results[0].probs == pytest.approx(softmax(logits), rel=1e-6)


def test_dist_draws_once_whatever_the_candidates(row: Row) -> None:
    narrow, wide = Sampler.dist(5), Sampler.dist(5)
    narrow.apply(row[:1])
    wide.apply(row)
    assert narrow.state() == wide.state()


def test_seeds(row: Row) -> None:
    assert Sampler.dist(1).apply(row).token == Sampler.dist(1).apply(row).token
    assert Sampler.dist(4).seed == 4
    assert Sampler.greedy().seed is None
    for make in (Sampler.dist, Sampler.llama_dist):
        assert make().seed != make().seed
    chain = Sampler.chain(Sampler.xtc(0.5, 0.1, 1, 6), Sampler.top_k(3))
    assert chain.seed == 6
    chain.chain_add(Sampler.dist(9))
    assert chain.seed == 9


def test_reset_starts_over(row: Row) -> None:
    sampler = Sampler.dist(8)
    first = [sampler.apply(row).token for _ in range(10)]
    sampler.reset()
    assert [sampler.apply(row).token for _ in range(10)] == first
    unseeded = Sampler.dist()
    seed = unseeded.seed
    unseeded.reset()
    assert unseeded.seed != seed


def test_mirostat_v2_follows_its_bound(row: Row) -> None:
    tau, eta = 1.5, 0.4
    sampler = Sampler.mirostat_v2(1, tau, eta)
    surprise = -np.log2(softmax(row))
    mu = 2 * tau
    for _ in range(10):
        result = sampler.apply(row)
        wanted = set(np.flatnonzero(surprise <= mu)) or {int(row.argmax())}
        assert set(result.ids) == wanted
        assert result.selected is not None
        mu -= eta * (-math.log2(result.probs[result.selected]) - tau)


def test_mirostat_estimates_the_exponent(row: Row) -> None:
    tau, m = 2.0, 20
    probs = softmax(row)[descending(row)]
    t = np.log((np.arange(m - 1) + 2) / (np.arange(m - 1) + 1))
    b = np.log(probs[: m - 1] / probs[1:m])
    s_hat = (t * b).sum() / (t * t).sum()
    epsilon = s_hat - 1
    k = (epsilon * 2 ** (2 * tau) / (1 - N**-epsilon)) ** (1 / s_hat)
    result = Sampler.mirostat(N, 1, tau, 0.1, m).apply(row)
    assert list(result.ids) == list(descending(row)[: max(int(k), 1)])


def test_adaptive_p_prefers_what_is_near_its_target(row: Row) -> None:
    target, decay = 0.2, 0.8
    sampler = Sampler.adaptive_p(target, decay, 1)
    probs = softmax(row)
    total, weighted = 1 / (1 - decay), target / (1 - decay)
    for _ in range(5):
        result = sampler.apply(row)
        adapted = np.clip(2 * target - weighted / total, 0, 1)
        distance = np.abs(probs - adapted) / 0.3
        assert by_token(result) == pytest.approx(5 - 10 * distance**2 / (1 + distance), rel=1e-3, abs=1e-4)
        assert result.token is not None
        sampler.accept(result.token)
        weighted, total = probs[result.token] + decay * weighted, 1 + decay * total


# Chains.


def test_chain_applies_in_order(row: Row) -> None:
    chain = Sampler.chain(Sampler.temp(0.5), Sampler.top_k(4), Sampler.dist(3))
    single = Sampler.dist(3)
    for _ in range(20):
        result = chain.apply(row)
        assert list(result.ids) == list(descending(row)[:4])
        assert result.token == single.apply(row[descending(row)[:4]] / 0.5, descending(row)[:4]).token


def test_chain_add_get_remove(row: Row) -> None:
    last = Sampler.greedy()
    chain = Sampler.chain(Sampler.top_k(4))
    chain.chain_add(last)
    assert chain.chain_n() == 2
    assert [chain.chain_get(i).name for i in range(2)] == ["top-k", "greedy"]
    assert chain.apply(row).token == row.argmax()
    removed = chain.chain_remove(0)
    assert (removed.name, chain.chain_n()) == ("top-k", 1)
    assert len(removed.apply(row).ids) == 4
    assert last.apply(row).token == row.argmax()
    assert repr(chain) == "<Sampler greedy>"


def test_chain_in_a_chain(row: Row) -> None:
    inner = Sampler.chain(Sampler.top_k(6), Sampler.temp(0.7))
    outer = Sampler.chain(inner, Sampler.dist(2))
    flat = Sampler.chain(Sampler.top_k(6), Sampler.temp(0.7), Sampler.dist(2))
    assert [outer.apply(row).token for _ in range(20)] == [flat.apply(row).token for _ in range(20)]
    outer.chain_add(outer)
    assert outer.chain_n() == 3


def test_chain_works_on_clones(row: Row) -> None:
    own = Sampler.dist(1)
    chain = Sampler.chain(own)
    expected = [chain.apply(row).token for _ in range(5)]
    assert [own.apply(row).token for _ in range(5)] == expected


def test_perf_counts(row: Row) -> None:
    chain = Sampler.chain(Sampler.typical(0.5), Sampler.greedy(), no_perf=False)
    for _ in range(3):
        chain.apply(np.tile(row, 100), np.arange(100 * N) % N)
        chain.accept(1)
    assert chain.perf()["n_sample"] == 3
    assert chain.perf()["t_sample_ms"] > 0
    chain.perf_reset()
    assert chain.perf() == {"n_sample": 0, "t_sample_ms": 0}


# Sampling from a context.


@pytest.fixture
def ctx(nano: lloyal.Model, new_context: object) -> lloyal.Context:
    context = new_context(nano)  # type: ignore[operator]
    feed(context, (0, 0, nano.vocab.tokenize("def read(self")))
    return context


@pytest.mark.parametrize("seed", range(3))
def test_sample_is_apply_and_accept(ctx: lloyal.Context, vocab: lloyal.Vocab, seed: int) -> None:
    chain = Sampler.chain(Sampler.penalties(len(vocab), 16, 1.4), Sampler.top_k(20), Sampler.dist(seed))
    twin = chain.clone()
    for _ in range(10):
        result = twin.apply(ctx.logits())
        assert result.token is not None
        twin.accept(result.token)
        assert chain.sample(ctx) == result.token
    assert chain.state() == twin.state()


def test_greedy_is_the_largest_logit(ctx: lloyal.Context) -> None:
    expected = int(np.argmax(ctx.logits(copy=True)))
    for sampler in (
        Sampler.greedy(),
        Sampler.chain(Sampler.greedy()),
        Sampler.chain(Sampler.top_k(1), Sampler.greedy()),
    ):
        assert sampler.sample(ctx) == expected
    assert ctx.logits().argmax() == expected


def test_sample_by_index(ctx: lloyal.Context, vocab: lloyal.Vocab) -> None:
    tokens = vocab.tokenize("(self):", False)
    batch = lloyal.Batch()
    batch.extend(tokens, 100, 1, True)
    ctx.decode(batch)
    rows = [ctx.logits(i, copy=True) for i in range(len(tokens))]
    greedy = Sampler.greedy()
    assert [greedy.sample(ctx, i) for i in range(len(tokens))] == [int(r.argmax()) for r in rows]
    assert [greedy.sample(ctx, -i - 1) for i in range(len(tokens))] == [int(r.argmax()) for r in reversed(rows)]


def test_sample_without_logits(nano: lloyal.Model, ctx: lloyal.Context) -> None:
    greedy = Sampler.greedy()
    for index in (0, 99, -2, -(2**31)):
        with pytest.raises(NoLogits):
            greedy.sample(ctx, index)
    with lloyal.Context(nano, n_ctx=256, n_threads=1) as fresh, pytest.raises(NoLogits):
        greedy.sample(fresh)
    assert greedy.sample(ctx) == ctx.logits().argmax()


def test_sample_that_ends_in_nothing(ctx: lloyal.Context, vocab: lloyal.Vocab) -> None:
    with pytest.raises(InvalidArgument, match="picks no token"):
        Sampler.chain(Sampler.top_k(5)).sample(ctx)
    with pytest.raises(InvalidArgument, match="picks no token"):
        Sampler.chain().sample(ctx)
    forbidden = Sampler.logit_bias(len(vocab), dict.fromkeys(range(len(vocab)), -math.inf))
    for picker in (Sampler.greedy(), Sampler.dist(1), Sampler.llama_dist(1), Sampler.mirostat_v2(1, 5.0, 0.1)):
        with pytest.raises(InvalidArgument, match=r"no token is left|picks no token"):
            Sampler.chain(forbidden, picker).sample(ctx)
    with pytest.raises(InvalidArgument, match="no token is left"):
        Sampler.chain(Sampler.top_k(1), Sampler.grammar(vocab, 'root ::= "\\U0001F600"'), Sampler.greedy()).sample(ctx)


def test_generation_under_a_grammar(ctx: lloyal.Context, vocab: lloyal.Vocab) -> None:
    chain = Sampler.chain(Sampler.grammar(vocab, 'root ::= "(" [a-z]+ ", " [0-9] [0-9] ")"'), Sampler.dist(1))
    text = b""
    pos = ctx.memory.seq_pos_max(0) + 1
    for _ in range(200):
        token = chain.sample(ctx)
        if vocab.is_eog(token):
            break
        text += vocab.token_to_piece(token)
        feed(ctx, (0, pos, [token]))
        pos += 1
    assert text.startswith(b"(")
    assert text.endswith(b")")
    assert text[-4:-1].strip().isdigit()


# Lifetimes and threads.


def test_a_sampler_that_reads_a_vocabulary_keeps_the_model() -> None:
    model = lloyal.Model(lloyal.models.path("nano"), vocab_only=True)
    before = lloyal.live_handles()["models"]
    sampler = Sampler.chain(Sampler.grammar(model.vocab, "root ::= [a-z]+"), Sampler.greedy())
    clone = sampler.clone()
    inner = sampler.chain_remove(0)
    n = len(model.vocab)
    model.close()
    del model
    gc.collect()
    sampler.close()
    assert lloyal.live_handles()["models"] == before
    for still in (clone, inner):
        assert len(kept(still.apply(np.zeros(n, np.float32)))) < n
        still.close()
    gc.collect()
    assert lloyal.live_handles()["models"] == before - 1


def test_closed(ctx: lloyal.Context, row: Row) -> None:
    with Sampler.greedy() as sampler:
        pass
    sampler.close()
    assert sampler.closed
    assert repr(sampler) == "<Sampler, closed>"
    for use in (
        lambda: sampler.sample(ctx),
        lambda: sampler.apply(row),
        lambda: sampler.accept(1),
        sampler.reset,
        sampler.clone,
        sampler.state,
        lambda: sampler.set_state(b""),
        lambda: sampler.name,
        lambda: sampler.seed,
        lambda: Sampler.chain(sampler),
        sampler.chain_n,
    ):
        with pytest.raises(Closed):
            use()
    with pytest.raises(TypeError, match="class methods"):
        Sampler()


def test_one_caller_at_a_time() -> None:
    sampler = Sampler.typical(0.9)
    logits = np.random.default_rng(0).normal(size=400_000).astype(np.float32)
    done = threading.Event()

    def work() -> None:
        with contextlib.suppress(Busy):  # it may be the one that is refused
            sampler.apply(logits)
        done.set()

    refused = False
    while not refused:
        done.clear()
        thread = threading.Thread(target=work)
        thread.start()
        while not (refused or done.is_set()):
            try:
                sampler.accept(1)
            except Busy:
                refused = True
        thread.join()
    sampler.accept(1)
