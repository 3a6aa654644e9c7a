"""Samplers saved, restored, cloned and copied go on exactly as the original."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import lloyal
from lloyal.errors import InvalidArgument, StateMismatch
from lloyal.llama import Sampler

T = TypeVar("T")
Make = Callable[[int], Sampler]

# Made from a seed, which is no part of a configuration. Wide parameters, so that what follows has something to do.
FILTERS: dict[str, Callable[[lloyal.Vocab, int], Sampler]] = {
    "top_k": lambda v, _: Sampler.top_k(200),
    "top_p": lambda v, _: Sampler.top_p(0.95),
    "min_p": lambda v, _: Sampler.min_p(0.001),
    "typical": lambda v, _: Sampler.typical(0.98),
    "temp": lambda v, _: Sampler.temp(1.7),
    "temp_ext": lambda v, _: Sampler.temp_ext(1.2, 0.5, 1.1),
    "xtc": lambda v, seed: Sampler.xtc(0.5, 0.05, 1, seed),
    "top_n_sigma": lambda v, _: Sampler.top_n_sigma(2.5),
    "grammar": lambda v, _: Sampler.grammar(v, 'root ::= item*\nitem ::= [a-z]+ ("(" item* ")")? | [0-9]{1,5} ","'),
    "lazy grammar": lambda v, _: Sampler.grammar_lazy_patterns(
        v, "root ::= [ab]+ [a-z0-9() ]*", trigger_patterns=["([ab])"]
    ),
    "penalties": lambda v, _: Sampler.penalties(len(v), 5, 1.5, 0.3, 0.2),
    "dry": lambda v, _: Sampler.dry(v, 0.8, 1.75, 1, 64),
    "logit_bias": lambda v, _: Sampler.logit_bias(len(v), {5: 3.0, 6: -2.0}),
    "infill": lambda v, _: Sampler.infill(v),
    "off": lambda v, _: Sampler.top_k(0),
}
PICKERS: dict[str, Callable[[lloyal.Vocab, int], Sampler]] = {
    "greedy": lambda v, _: Sampler.greedy(),
    "dist": lambda v, seed: Sampler.dist(seed),
    "keyed": lambda v, seed: Sampler.keyed(seed, 7),
    "llama_dist": lambda v, seed: Sampler.llama_dist(seed),
    "mirostat": lambda v, seed: Sampler.mirostat(len(v), seed, 4.0, 0.3, 50),
    "mirostat_v2": lambda v, seed: Sampler.mirostat_v2(seed, 4.0, 0.3),
    "adaptive_p": lambda v, seed: Sampler.adaptive_p(0.3, 0.8, seed),
}
DRAW = ["dist", "keyed", "llama_dist", "mirostat", "mirostat_v2", "adaptive_p", "xtc"]
# A text, and what nobody would pick after it, or nobody before it.
ACCEPT = {"penalties": ("aaa", "a"), "dry": ("xyx", "y"), "grammar": ("ab(c", ")"), "lazy grammar": ("a", ":")}


@pytest.fixture(scope="module")
def vocab(nano: lloyal.Model) -> lloyal.Vocab:
    return nano.vocab


@pytest.fixture(scope="module")
def build(vocab: lloyal.Vocab) -> Callable[[Sequence[str], int], Sampler]:
    def make(names: Sequence[str], seed: int) -> Sampler:
        return Sampler.chain(*((FILTERS | PICKERS)[name](vocab, seed + i) for i, name in enumerate(names)))

    return make


def rows(vocab: lloyal.Vocab, n: int, seed: int) -> NDArray[np.float32]:
    """Logits that prefer a few characters, so that repetitions and grammars matter."""
    out = np.random.default_rng(seed).normal(0.0, 2.0, (n, len(vocab))).astype(np.float32)
    out[:, [vocab.tokenize(letter, False)[0] for letter in "abcxyz(1,"]] += 5.0
    return out


def go_on(sampler: Sampler, logits: NDArray[np.float32]) -> list[int | str]:
    """Tokens picked row by row; where a grammar leaves nothing, the end of the story."""
    story: list[int | str] = []
    for row in logits:
        result = sampler.apply(row)
        token = result.token
        if token is None or result.logits[result.selected] == -np.inf:
            return [*story, "nothing left"]
        try:
            sampler.accept(token)
        except InvalidArgument as error:
            return [*story, str(error)]
        story.append(token)
    return story


def check_goes_on(
    build: Callable[[Sequence[str], int], Sampler], vocab: lloyal.Vocab, names: Sequence[str], n_before: int, seed: int
) -> None:
    original = build(names, seed)
    go_on(original, rows(vocab, n_before, seed))
    saved = original.state()
    restored = build(names, seed + 1000)
    restored.set_state(saved)
    assert restored.state() == saved
    copied = build(names, seed + 2000)
    original.copy(copied)
    others = [restored, copied, original.clone()]
    later = rows(vocab, 8, seed + 1)
    expected = go_on(original, later)
    for other in others:
        assert go_on(other, later) == expected
        assert other.state() == original.state()


@settings(max_examples=80)
@given(
    filters=st.lists(st.sampled_from(sorted(FILTERS)), max_size=5, unique=True),
    picker=st.sampled_from(sorted(PICKERS)),
    n_before=st.integers(0, 12),
    seed=st.integers(0, 2**20),
)
def test_any_chain_goes_on(
    build: Callable[[Sequence[str], int], Sampler],
    vocab: lloyal.Vocab,
    filters: list[str],
    picker: str,
    n_before: int,
    seed: int,
) -> None:
    check_goes_on(build, vocab, [*filters, picker], n_before, seed)


@pytest.mark.parametrize("name", sorted(FILTERS))
def test_each_filter_goes_on(build: Callable[[Sequence[str], int], Sampler], vocab: lloyal.Vocab, name: str) -> None:
    check_goes_on(build, vocab, [name, "dist"], 9, 3)


@pytest.mark.parametrize("name", sorted(PICKERS))
def test_each_picker_goes_on(build: Callable[[Sequence[str], int], Sampler], vocab: lloyal.Vocab, name: str) -> None:
    check_goes_on(build, vocab, [name], 9, 3)


@pytest.mark.parametrize("name", DRAW)
def test_generators_matter(build: Callable[[Sequence[str], int], Sampler], vocab: lloyal.Vocab, name: str) -> None:
    """What the tests above restore decides what comes: without it the story goes another way."""
    names = [name] if name in PICKERS else [name, "greedy"]
    later = rows(vocab, 30, 5)
    used, fresh = build(names, 1), build(names, 1)
    go_on(used, rows(vocab, 6, 4))
    assert fresh.state() != used.state()
    assert go_on(fresh, later) != go_on(used, later)


@pytest.mark.parametrize("name", sorted(ACCEPT))
def test_accepted_tokens_matter(build: Callable[[Sequence[str], int], Sampler], vocab: lloyal.Vocab, name: str) -> None:
    text, favourite = ACCEPT[name]
    logits = np.zeros((1, len(vocab)), np.float32)
    logits[0, vocab.tokenize(favourite, False)[0]] = 0.3
    used, fresh = build([name, "greedy"], 1), build([name, "greedy"], 1)
    for token in vocab.tokenize(text, False):
        used.accept(token)
    assert fresh.state() != used.state()
    assert go_on(fresh, logits) != go_on(used, logits)


def test_adaptive_p_cloned_between_pick_and_accept(vocab: lloyal.Vocab) -> None:
    logits = rows(vocab, 20, 1)
    original = Sampler.adaptive_p(0.3, 0.8, 7)
    for row in logits:
        token = original.apply(row).token
        assert token is not None
        clone = original.clone()
        original.accept(token)
        clone.accept(token)
        assert clone.state() == original.state()


def test_state_of_a_new_sampler_and_of_one_sampler_alone(vocab: lloyal.Vocab) -> None:
    alone = Sampler.dist(3)
    chained = Sampler.chain(Sampler.dist(9))
    logits = rows(vocab, 5, 1)
    chained.set_state(alone.state())
    assert go_on(alone, logits) == go_on(chained, logits)
    assert Sampler.chain().state() == Sampler.chain().state()


def test_state_restores_the_seed_in_use_and_reset_does_not(vocab: lloyal.Vocab) -> None:
    for make in (
        Sampler.dist,
        Sampler.llama_dist,
        lambda seed: Sampler.xtc(0.5, 0.1, 1, seed),
        lambda seed: Sampler.mirostat_v2(seed, 5.0, 0.1),
        lambda seed: Sampler.adaptive_p(0.5, 0.5, seed),
    ):
        sampler = make(2)
        sampler.set_state(make(1).state())
        assert sampler.seed == 1
        sampler.reset()
        assert sampler.seed == 2
        drawn = make(None)
        assert drawn.clone().seed == drawn.seed


def test_size_does_not_grow_with_the_text(vocab: lloyal.Vocab) -> None:
    chain = Sampler.chain(
        Sampler.penalties(len(vocab), 4, 1.1), Sampler.grammar(vocab, "root ::= [a-z]*"), Sampler.dist(1)
    )
    letter = vocab.tokenize("a", False)[0]
    sizes = []
    for _ in range(50):
        chain.accept(letter)
        sizes.append(len(chain.state()))
    assert len(set(sizes[4:])) == 1
    assert sizes[-1] < 400


def test_another_process_goes_on(vocab: lloyal.Vocab) -> None:
    sampler = Sampler.chain(Sampler.penalties(8, 3, 2.0), Sampler.dist(5))
    logits = np.random.default_rng(2).normal(size=(20, 8)).astype(np.float32)
    go_on(sampler, logits[:10])
    program = (
        "import sys, numpy as np\n"
        "from lloyal.llama import Sampler\n"
        "sampler = Sampler.chain(Sampler.penalties(8, 3, 2.0), Sampler.dist())\n"
        "sampler.set_state(bytes.fromhex(sys.argv[1]))\n"
        "for row in np.random.default_rng(2).normal(size=(20, 8)).astype(np.float32)[10:]:\n"
        "    token = sampler.apply(row).token\n"
        "    sampler.accept(token)\n"
        "    print(token)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, sampler.state().hex()], capture_output=True, text=True, check=True
    )
    assert [int(line) for line in done.stdout.split()] == go_on(sampler, logits[10:])


DIFFERENT: list[tuple[str, str]] = [
    ("Sampler.top_k(5)", "Sampler.top_k(6)"),
    ("Sampler.top_k(5)", "Sampler.top_p(0.5)"),
    ("Sampler.top_k(5)", "Sampler.top_k(0)"),
    ("Sampler.top_k(0)", "Sampler.top_p(1)"),
    ("Sampler.top_p(0.5)", "Sampler.top_p(0.5, 2)"),
    ("Sampler.min_p(0.5)", "Sampler.min_p(0.25)"),
    ("Sampler.typical(0.5)", "Sampler.typical(0.25)"),
    ("Sampler.temp(2)", "Sampler.temp(3)"),
    ("Sampler.temp_ext(2, 1, 1)", "Sampler.temp_ext(2, 1, 2)"),
    ("Sampler.xtc(0.5, 0.1)", "Sampler.xtc(0.5, 0.2)"),
    ("Sampler.top_n_sigma(1)", "Sampler.top_n_sigma(2)"),
    ("Sampler.mirostat(9, 1, 5, 0.1)", "Sampler.mirostat(9, 1, 5, 0.1, 50)"),
    ("Sampler.mirostat_v2(1, 5, 0.1)", "Sampler.mirostat_v2(1, 4, 0.1)"),
    ("Sampler.grammar(v, 'root ::= [a-z]')", "Sampler.grammar(v, 'root ::= [a-y]')"),
    (
        "Sampler.grammar_lazy_patterns(v, 'root ::= [a]', trigger_tokens=[1])",
        "Sampler.grammar_lazy_patterns(v, 'root ::= [a]', trigger_tokens=[2])",
    ),
    ("Sampler.penalties(9, 5, 2)", "Sampler.penalties(9, 6, 2)"),
    ("Sampler.dry(v, 0.8)", "Sampler.dry(v, 0.8, seq_breakers=[])"),
    ("Sampler.adaptive_p(0.5, 0.5)", "Sampler.adaptive_p(0.5, 0.6)"),
    ("Sampler.logit_bias(9, {1: 1})", "Sampler.logit_bias(9, {1: 2})"),
    ("Sampler.dist(1)", "Sampler.llama_dist(1)"),
    ("Sampler.chain()", "Sampler.chain(Sampler.greedy())"),
    ("Sampler.chain(Sampler.top_k(5), Sampler.dist(1))", "Sampler.chain(Sampler.dist(1), Sampler.top_k(5))"),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_state_of_another_configuration(vocab: lloyal.Vocab, one: str, other: str) -> None:
    a, b = (eval(text, {"Sampler": Sampler, "v": vocab}) for text in (one, other))
    for source, target in ((a, b), (b, a)):
        before = target.state()
        with pytest.raises(StateMismatch):
            target.set_state(source.state())
        with pytest.raises(InvalidArgument, match="same samplers and parameters"):
            source.copy(target)
        assert target.state() == before


def test_copy_of_a_chain_with_another_structure() -> None:
    flat = Sampler.chain(Sampler.top_k(5), Sampler.temp(2), Sampler.dist(1))
    nested = Sampler.chain(Sampler.chain(Sampler.top_k(5), Sampler.temp(2)), Sampler.dist(1))
    with pytest.raises(InvalidArgument, match="same samplers and parameters"):
        flat.copy(nested)
    nested.set_state(flat.state())
    flat.copy(flat)


def test_damaged_states() -> None:
    """Whatever the bytes, in a process of its own: refused with nothing changed, or a state to go on from."""
    program = """
import numpy as np, lloyal
from lloyal.errors import LloyalError, StateMismatch
from lloyal.llama import Sampler
vocab = lloyal.Model(lloyal.models.path("nano"), vocab_only=True).vocab
n = len(vocab)
zeros = np.zeros(n, np.float32)
chain = Sampler.chain(
    Sampler.grammar(vocab, 'root ::= item*\\nitem ::= [a-z]+ ("(" item ")")? | [0-9]{1,5}'),
    Sampler.grammar_lazy_patterns(vocab, 'root ::= "ab" [a-z]*', trigger_patterns=["zz"]),
    Sampler.penalties(n, 8, 1.5), Sampler.dry(vocab, 0.8, seq_breakers=[]), Sampler.xtc(0.5, 0.1, 1, 1),
    Sampler.dist(1), Sampler.llama_dist(1), Sampler.mirostat(n, 1, 5.0, 0.1), Sampler.mirostat_v2(1, 5.0, 0.1),
    Sampler.adaptive_p(0.5, 0.5, 1), Sampler.keyed(1))
for token in vocab.tokenize("abc(x", False):
    chain.accept(token)
chain.apply(zeros)
saved = chain.state()
refused = taken = 0
rng = np.random.default_rng(0)
def attempt(data):
    global refused, taken
    trial = chain.clone()
    try:
        trial.set_state(data)
    except StateMismatch:
        refused += 1
        assert trial.state() == saved
        return
    taken += 1
    try:
        for _ in range(3):
            token = trial.apply(zeros).token
            if token is not None:
                trial.accept(token)
        trial.reset()
    except LloyalError:
        pass
attempt(saved)
# the generators are long and all alike: most of the damage goes to the rest
small = [i for i in range(len(saved)) if i < 600] + list(rng.choice(len(saved), 100, replace=False))
for at in small:
    for value in (0, 0xff, saved[at] ^ 1):
        attempt(saved[:at] + bytes([value]) + saved[at + 1:])
for at in list(range(0, 700, 9)) + [len(saved) - 1]:
    attempt(saved[:at])
    attempt(saved[:at] + saved[at + 1:])
for size in (0, 1, 8, 100):
    attempt(rng.bytes(size))
attempt(saved + b"x")
print(refused, taken)
"""
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    refused, taken = map(int, done.stdout.split())
    assert refused > 500
    assert taken > 100
