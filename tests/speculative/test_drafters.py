"""Drafters of tokens alone: what they guess, and that nothing they guess changes a text."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import lloyal
from lloyal import BranchStore, Context, Sampling
from lloyal.errors import InvalidArgument, InvalidGrammar
from lloyal.llama import Sampler
from lloyal.native import step as native
from lloyal.speculative import Chain, Drafter, DraftModel, Forced, NGram, Speculator, Suffix, Synthetic
from tests.models import tiny
from tests.speculative.reference import GRAMMAR, PROMPT, SAMPLINGS, check_same, context, plain
from tests.speculative.trace import session, simulate

KINDS = ("llama", "gemma3", "mamba2", "lfm2", "lfm2-swa", "falcon-h1", "qwen35")
DRAFTERS: dict[str, Callable[[list[int]], Drafter]] = {
    "suffix": lambda text: Suffix(),
    "suffix of few": lambda text: Suffix(least=0.1, tokens=60),
    "chain": lambda text: Chain(NGram(), Suffix(), Synthetic(text, 0.5, seed=1), Forced()),
    "synthetic": lambda text: Synthetic(text, [0.9, 0.8, 0.6]),
}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 9},
        "is_ready": {"type": "boolean"},
        "kind": {"enum": ["a"]},
    },
    "required": ["name", "is_ready", "kind"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("name", KINDS)
def test_the_tokens_are_those_of_plain_steps(name: str, drafter: str) -> None:
    """Twice with the same drafter: the second time it may know the text."""
    rng = random.Random(f"{name} {drafter}")
    prompt: Any = [rng.randrange(8, 100) for _ in range(rng.choice([3, 20]))]
    how = SAMPLINGS[rng.choice(list(SAMPLINGS))]
    with lloyal.Model(tiny(name)) as model, context(model, n_rs_seq=rng.choice([0, 3]), n_ubatch=32) as ctx:
        want = plain(ctx, prompt, how, n=60)
        speculator = Speculator(ctx, DRAFTERS[drafter]([*prompt, *want]), n=rng.choice([None, 2, 4, 9]))
        for _ in range(2):
            got = list(speculator.generate(prompt, 60, sampling=how))
            check_same(ctx, prompt, how, None, got, want)


@pytest.mark.parametrize("sampling", ["greedy", "greedy, penalties"])
@pytest.mark.parametrize("name", ["gemma3", "lfm2", "qwen35"])
def test_forks_rewinds_and_parks_in_between(name: str, sampling: str) -> None:
    """All of them write the one greedy text."""
    rng, how, prompt = random.Random(name + sampling), SAMPLINGS[sampling], [9, 8, 20, 30]
    with lloyal.Model(tiny(name)) as model, context(model, n_rs_seq=rng.choice([0, 3])) as ctx:
        want = plain(ctx, prompt, how, n=150)  # type: ignore[arg-type]
        drafters = (Suffix(tokens=300), Chain(Suffix(), NGram(2, 1)), Synthetic([*prompt, *want], 0.7))
        speculators = [Speculator(ctx, drafter, n=4) for drafter in drafters]
        with BranchStore(ctx, auto_park=True) as store:
            branches = [store.create(prompt, sampling=how)]
            for _ in range(60):
                branch = rng.choice(branches)
                what = rng.random()
                if what < 0.1 and len(branches) < 9:
                    branches.append(branch.fork())
                elif what < 0.25:
                    branch.rewind(rng.randint(0, min(9, branch.position - len(prompt))))
                elif what < 0.35:
                    branch.park()
                else:
                    able = [b for b in branches if not b.ended and b.position < 150]
                    if able:
                        rng.choice(speculators).step(rng.sample(able, rng.randint(1, len(able))))
                for branch in branches:
                    got = branch.tokens[len(prompt) :]
                    check_same(ctx, prompt, how, None, got, want[: len(got)])  # type: ignore[arg-type]
        assert speculators[2].stats.kept > 0


def test_a_chain_with_a_model_in_it(nano: lloyal.Model) -> None:
    """Asked where nothing repeats; its texts go on whoever guesses."""
    how = SAMPLINGS["penalties"]
    with lloyal.Model(lloyal.models.path("nano-draft")) as small, context(nano) as ctx, context(small) as draft:
        want = plain(ctx, PROMPT, how)
        chain = Chain(NGram(), DraftModel(draft))
        speculator = Speculator(ctx, chain, n=4)
        for _ in range(2):
            check_same(ctx, PROMPT, how, None, list(speculator.generate(PROMPT, len(want), sampling=how)), want)
        only = Speculator(ctx, NGram(), n=4)
        list(only.generate(PROMPT, len(want), sampling=how))
        assert speculator.stats.tokens_per_step > only.stats.tokens_per_step


def tokens_of(vocab: lloyal.Vocab, seeds: list[int]) -> list[list[tuple[bool, list[int]]]]:
    return [[(mine, vocab.tokenize(text, add_special=False)) for mine, text in session(seed)] for seed in seeds]


def test_a_suffix_drafter_knows_an_agent_by_its_earlier_sessions(nano: lloyal.Model) -> None:
    with context(nano) as ctx:
        one, many = tokens_of(ctx.vocab, [3]), tokens_of(ctx.vocab, [0, 1, 2, 3])
    assert simulate(Suffix(), one)[0] > 1.05 * simulate(NGram(), one)[0]
    assert simulate(Suffix(), many)[0] > 1.5 * simulate(NGram(), many)[0]


def test_a_chain_is_as_good_as_the_best_of_it(nano: lloyal.Model) -> None:
    """Tool calls, and code that repeats little; in either order, with one that is always wrong."""
    code = Path(json.__file__).with_name("decoder.py").read_text()[:8000]
    with context(nano) as ctx:
        vocab = ctx.vocab
        texts = [*tokens_of(vocab, [0, 1]), [(True, vocab.tokenize(code))], *tokens_of(vocab, [2])]
    for n in (4, 8):
        best = max(simulate(NGram(), texts, n)[0], simulate(Suffix(), texts, n)[0])
        wrong = Synthetic(lambda text: [1] * 8, 0.0)
        wrong.check(vocab)
        for drafters in itertools.permutations((NGram(), Suffix(), wrong)):
            chain = Chain(*(type(one)() if one is not wrong else one for one in drafters))
            assert simulate(chain, texts, n)[0] >= 0.98 * best, [type(one).__name__ for one in drafters]
            assert chain.order[-1] is wrong


def test_a_chain_asks_the_next_for_texts_without_an_idea() -> None:
    chain = Chain(NGram(2, 2), Suffix(1, least=0.0))
    texts = [chain.start(), chain.start(), chain.start()]
    for text, tokens in zip(texts, ([1, 2, 3, 1, 2], [7, 8, 3, 7], [50]), strict=True):
        chain.feed(text, tokens)
    assert chain.propose(texts, 2) == [[3, 1], [8, 3], []]
    assert chain.propose([], 2) == []


def test_a_synthetic_drafter_is_right_as_often_as_told(nano: lloyal.Model) -> None:
    rng = random.Random(0)
    tokens = [rng.randrange(700) for _ in range(4000)]
    for known in (tokens, lambda heard: iter(tokens[len(heard) :])):
        drafter = Synthetic(known, [0.9, 0.5], seed=3)
        with context(nano) as ctx:
            drafter.check(ctx.vocab)
            ends = [token for token in range(ctx.vocab.n_tokens) if ctx.vocab.is_eog(token)]
        text = drafter.start()
        right = [0, 0, 0]
        for at in range(3000):
            drafter.feed(text, tokens[at : at + 1])
            (guess,) = drafter.propose([text], 3)
            assert len(guess) == 3
            assert not set(guess) & set(ends) - set(tokens)
            for i in range(3):
                right[i] += guess[i] == tokens[at + 1 + i]
        assert [round(count / 3000, 1) for count in right] == [0.9, 0.5, 0.5]
    assert Synthetic([1, 2, 3]).propose([drafter.start()], 8) == [[1, 2, 3]]


# Grammars


RULES = {
    "names": 'root ::= "alpha" ("beta" | "bets") [0-9] "omega"',
    "choice": 'root ::= ("abc" | "abd" | "abcd") "x"?',
    "classes": 'root ::= [ab] "c" [d] [e-e] "f" [^g] "h"',
    "loops": 'root ::= ("ab" ("," "ab")*)+ ";"',
    "spaces": 'root ::= "{" ws "\\"name\\"" ws ":" ws [0-9]\nws ::= | " " | "\\n"',
}


def legal(vocab: lloyal.Vocab, rules: str, text: str) -> set[str] | None:
    """The characters that may follow, as a sampler sees it; None if the text may end, or is not allowed."""
    sampler = Sampler.grammar(vocab, rules)
    singles = {chr(code): vocab.tokenize(chr(code), add_special=False) for code in (10, *range(32, 127))}
    tokens = {tokens[0]: char for char, tokens in singles.items() if len(tokens) == 1}
    end = next(token for token in range(vocab.n_tokens) if vocab.is_eog(token))
    try:
        for char in text:
            sampler.accept(singles[char][0])
    except InvalidArgument:
        return None
    row = sampler.apply([0.0] * vocab.n_tokens)
    allowed = {token for token, logit in zip(row.ids, row.logits, strict=True) if logit == 0}
    return None if end in allowed else {tokens[token] for token in allowed & tokens.keys()}


@pytest.mark.parametrize("rules", RULES)
def test_what_a_grammar_forces_is_what_it_leaves_alone(rules: str, nano: lloyal.Model) -> None:
    rng = random.Random(rules)
    with context(nano) as ctx, BranchStore(ctx, auto_park=True) as store:
        for _ in range(12):
            how = Sampling(temperature=1.5, seed=rng.randrange(99))
            branch = store.create("x", sampling=how, grammar=RULES[rules])
            begin = branch.position
            for _ in range(rng.randrange(4)):
                if not branch.ended:
                    branch.step()
            if branch.ended:
                continue
            state = branch._sampler_state_native()
            draws = native.draw(ctx, [branch])
            after = ctx.vocab.detokenize([*branch.tokens[begin:], draws.tokens[0]]) if not draws.ends[0] else ""
            got, choices = draws.forced(0)
            if draws.ends[0]:
                assert (got, choices) == ("", [])
                continue
            want = ""
            while len(options := legal(ctx.vocab, RULES[rules], after + want) or set()) == 1 and len(want) < 256:
                want += options.pop()
            assert got == want
            if choices:
                assert set(choices) == legal(ctx.vocab, RULES[rules], after + want)
            half = len(got) // 2
            assert draws.forced(0, got[:half]) == (got[half:], choices)
            assert draws.forced(0, got, 2)[0] == ""
            assert not got or draws.forced(0, "\x01") == ("", [])
            assert branch._sampler_state_native() == state
            draws.verify([[]])


def test_what_is_forced_has_bounds(nano: lloyal.Model) -> None:
    with context(nano) as ctx, BranchStore(ctx) as store:
        for rules in ('root ::= "a" root', 'root ::= "a"+ "b"', 'root ::= "aé" "\\U0001F600" [0-9]', None):
            branch = store.create("x", sampling=Sampling(temperature=0), grammar=rules)
            draws = native.draw(ctx, [branch])
            got, _ = draws.forced(0, "", 10)
            assert len(got) <= 10
            if rules is None:
                assert draws.forced(0) == ("", [])
            with pytest.raises(IndexError):
                draws.forced(1)
            with pytest.raises(InvalidArgument, match="most"):
                draws.forced(0, "", -1)
            with pytest.raises(TypeError):
                draws.forced(0, b"a")  # type: ignore[arg-type]


@pytest.mark.parametrize("sampling", ["greedy", "warm", "greedy, penalties"])
@pytest.mark.parametrize("name", ["nano", "nano-hybrid"])
def test_forced_guesses_change_nothing(name: str, sampling: str) -> None:
    how = SAMPLINGS[sampling]
    with lloyal.Model(lloyal.models.path(name)) as model, context(model) as ctx:
        rules = lloyal.grammar.from_json_schema({"type": "array", "items": SCHEMA, "minItems": 4})
        want = plain(ctx, PROMPT, how, rules)
        for drafter in (Forced(), Chain(Forced(), Suffix())):
            for n in (None, 6):
                speculator = Speculator(ctx, drafter, n=n)
                got = list(speculator.generate(PROMPT, len(want), sampling=how, grammar=rules))
                check_same(ctx, PROMPT, how, rules, got, want)
        assert speculator.stats.kept > 0
        free = list(Speculator(ctx, Forced(), n=4).generate(PROMPT, 20, sampling=how, grammar=GRAMMAR))
        check_same(ctx, PROMPT, how, GRAMMAR, free, plain(ctx, PROMPT, how, GRAMMAR, 20))


def test_forced_guesses_are_spelled_as_the_vocabulary_does(nano: lloyal.Model) -> None:
    """All of the literal text behind the first token, and white space as it was before."""
    with context(nano) as ctx, BranchStore(ctx) as store:
        literal = "def area(self):\n    return self.width"
        branch = store.create(
            "class A:\n    ", sampling=Sampling(temperature=0), grammar=f"root ::= {json.dumps(literal)}"
        )
        drafter = Forced()
        guesses = []

        class Seen(Forced):
            def guess(self, *arguments: Any) -> Any:
                guesses.append(super().guess(*arguments)[0])
                return guesses[-1:]

        drafter = Seen()
        tokens = Speculator(ctx, drafter, n=32).step([branch])[0]
        assert ctx.vocab.detokenize([tokens[0], *guesses[0]]) == literal
        drafter = Forced()
        drafter.check(ctx.vocab)
        for space in ("", " ", "\n  "):
            text = drafter.start()
            drafter.feed(text, ctx.vocab.tokenize(f'{{{space}"a":{space}1}}, {{'))
            known = {"{": ("", [" ", "\n", '"']), "{" + space + '"': ('a":', [" ", "\n", "x"])}
            asked: Any = SimpleNamespace(forced=lambda after, most, known=known: known.get("{" + after, ("", [])))
            (guess,) = drafter.guess([text], 8, [asked])
            assert ctx.vocab.detokenize(guess) == f'{space}"a":'
        assert drafter.propose([text], 4) == [[]]

        def too_much(after: str, most: int) -> Any:
            raise InvalidGrammar("the grammar takes too many steps")

        asked = SimpleNamespace(forced=too_much)
        assert drafter.guess([text], 4, [asked]) == [[]]


def test_what_they_are_given_is_checked(nano: lloyal.Model) -> None:
    with pytest.raises(InvalidArgument, match="at least"):
        Chain()
    with pytest.raises(TypeError, match="no Drafter"):
        Chain(NGram(), 7)  # type: ignore[arg-type]
    for wrong in (1.2, [0.5, -1], [], "a", [None]):
        with pytest.raises((InvalidArgument, TypeError), match="acceptance"):
            Synthetic([1], wrong)  # type: ignore[arg-type]
    with lloyal.Model(tiny("llama")) as model, Context(model, n_ctx=64) as ctx, context(nano) as other:
        drafter = Forced()
        Speculator(other, drafter)
        with pytest.raises(InvalidArgument, match="another vocabulary"):
            Speculator(ctx, Chain(drafter))
