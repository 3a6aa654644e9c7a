"""One branch, how it picks and what its numbers say: the numbered behaviours of docs/liblloyal.md."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable

import numpy as np
import pytest

import lloyal
from lloyal import Branch, Sampler, Sampling, errors
from tests.branches.reference import DRAW, GREEDY, PROMPT, TOOL_TEMPLATE, TOOLS, behaviours, pos_max, tokens

NewContext = Callable[..., lloyal.Context]
WIDE = Sampling(temperature=1.5, top_k=0, top_p=1, min_p=0, seed=1)
JSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}},
    "required": ["name"],
    "additionalProperties": False,
}


def _remembers(branch: Branch) -> bytes:
    """What its samplers remember: recent tokens, where the grammar stands, the random generator."""
    return branch._sampler_state_native()


def _log_softmax(row: np.ndarray) -> np.ndarray:
    wide = row.astype(np.float64)
    return wide - np.logaddexp.reduce(wide)


# Reading and logits


@behaviours("12", "83", "84", "N1", "N13", "I7")
def test_reading_moves_the_position_and_gives_logits(store):
    text = tokens(store.ctx)
    branch = store.create(sampling=DRAW)
    branch.prefill(text)
    assert branch.position == len(text) == pos_max(branch) + 1
    row = branch.logits
    assert row.shape == (len(store.ctx.vocab),)
    assert row.dtype == np.float32
    assert np.abs(row[:100]).sum() > 0
    assert np.isfinite(row).all()
    assert branch.fork().logits.shape == row.shape
    kept = row.copy()
    branch.commit(branch.sample())
    assert branch.logits.tobytes() != kept.tobytes()
    assert row.tobytes() == kept.tobytes(), "a row once read stays what it is"


@behaviours("85", "90", "I6")
def test_forks_begin_alike_and_part(store):
    parent = store.create(PROMPT, sampling=DRAW)
    forks = parent.fork(4)
    assert all(fork.position == parent.position for fork in forks)
    assert all(fork.logits.tobytes() == parent.logits.tobytes() for fork in forks)
    kept = parent.logits
    before, where = kept.tobytes(), kept.ctypes.data
    for i, fork in enumerate(forks):
        fork.prefill([100 + i])
        assert fork.position == parent.position + 1
    assert parent.logits.tobytes() == before
    assert parent.logits.ctypes.data == where
    assert len({fork.logits.ctypes.data for fork in forks} | {where}) == 5
    assert len({fork.logits.tobytes() for fork in forks}) == 4


@behaviours("115")
def test_logits_of_a_fork_cost_nothing_until_it_goes_on(store):
    """So there is no fork without them."""
    root = store.create(PROMPT)
    fork = root.fork()
    assert fork.logits.ctypes.data == root.logits.ctypes.data
    assert fork.state == "pending"
    yes, no = tokens(store.ctx, "yes")[-1], tokens(store.ctx, "no")[-1]
    fork.prefill(" Is that so?")
    assert fork.logits[[yes, no]].tolist() == [float(fork.logits[yes]), float(fork.logits[no])]
    fork.prune()
    assert root.logits.shape == (len(store.ctx.vocab),)


@behaviours("116", "19")
def test_single_logits_and_their_probabilities(store, model, new_context):
    branch = store.create(PROMPT)
    n = len(store.ctx.vocab)
    plain = new_context(model)
    lloyal.prefill(plain, PROMPT)
    assert branch.logits[[0, 1, n // 2, n - 1]] == pytest.approx(
        plain.logits(-1, copy=True)[[0, 1, n // 2, n - 1]], abs=1e-3
    )
    log_probs = _log_softmax(branch.logits)
    for token in (0, 1, n // 2, n - 1):
        assert branch.surprisal(token) == pytest.approx(-log_probs[token], abs=1e-9)
    with pytest.raises(IndexError):
        _ = branch.logits[[0, n]]
    for outside in (-1, n, 1_000_000):
        assert not branch.is_legal(outside)
        with pytest.raises(errors.InvalidArgument, match="outside the vocabulary"):
            branch.surprisal(outside)
    with pytest.raises(errors.NoLogits):
        _ = store.create().logits


@behaviours("88", "I8")
def test_picking_moves_nothing_but_the_generator(store):
    branch = store.create(PROMPT, sampling=Sampling(repeat_penalty=1.3, seed=5), grammar="root ::= [a-z ]+")
    twin = branch.fork()
    before = branch.position, branch.tokens, branch.perplexity, branch.logits.tobytes(), pos_max(branch)
    legal = branch.legal_logits().tobytes()
    picked = [branch.sample() for _ in range(10)]
    assert all(0 <= token < len(store.ctx.vocab) for token in picked)
    assert len(set(picked)) > 1
    assert (branch.position, branch.tokens, branch.perplexity, branch.logits.tobytes(), pos_max(branch)) == before
    assert branch.legal_logits().tobytes() == legal
    assert [twin.sample() for _ in range(10)] == picked


@behaviours("I9")
def test_accepting_and_reading_are_two_things(store):
    branch = store.create(PROMPT, sampling=Sampling(repeat_penalty=1.3, seed=5), grammar="root ::= [a-z ]+")
    other = branch.fork()
    token = branch.sample()
    position, row, remembered = branch.position, branch.logits.tobytes(), _remembers(branch)
    branch.accept(token)
    assert (branch.position, branch.logits.tobytes(), pos_max(branch)) == (position, row, position - 1)
    assert _remembers(branch) != remembered
    remembered = _remembers(other)
    store.decode_each([(other, 7)])
    other.prefill([8, 9])
    assert _remembers(other) == remembered
    assert other.perplexity == math.inf
    assert other.log_probs == []


# Biases and steering


@behaviours("91", "N26", "I11")
def test_biases_ban_tokens_and_are_inherited(store):
    branch = store.create(PROMPT, sampling=DRAW)
    banned, _ = _most_probable(branch, 2)
    branch.set_bias({banned: -math.inf})
    assert banned not in {branch.sample() for _ in range(10)}
    fork = branch.fork(seed=3)
    assert banned not in {fork.sample() for _ in range(10)}
    assert not fork.is_legal(banned)
    fork.set_bias(None)
    assert fork.is_legal(banned)
    assert not branch.is_legal(banned)
    branch.set_bias({42: 100.0})
    assert branch.sample() == 42
    assert branch.is_legal(banned), "biases replace those before"
    with pytest.raises(errors.InvalidArgument, match="outside the vocabulary"):
        branch.set_bias({len(store.ctx.vocab): 1.0})
    assert branch.sample() == 42


@behaviours("92", "97", "N9")
def test_steering_changes_what_is_picked_until_it_is_taken_away(store):
    branch = store.create(PROMPT, sampling=GREEDY)
    first, second, third = _most_probable(branch, 3)
    assert branch.sample() == first
    branch.steer({first: -math.inf})
    assert [branch.sample() for _ in range(10)] == [second] * 10
    branch.steer({second: -math.inf})
    assert branch.sample() == first, "it takes the place of the one before"
    branch.steer({first: -math.inf, second: -math.inf})
    assert branch.sample() == third

    def only_42(logits: np.ndarray) -> None:
        logits[42] += 100

    branch.steer(only_42)
    assert branch.sample() == 42
    branch.steer(None)
    assert branch.sample() == first


@behaviours("92", "130")
def test_logits_that_are_set_later_are_not_hidden_by_steering_that_is_gone(store):
    branch = store.create(PROMPT, sampling=GREEDY)
    branch.steer({branch.sample(): -math.inf})
    branch.sample()
    branch.steer(None)
    row = np.zeros(len(store.ctx.vocab), dtype=np.float32)
    row[99] = 9
    branch.set_logits(row)
    assert branch.sample() == 99


@behaviours("93", "N9")
def test_forks_do_not_inherit_steering(store):
    branch = store.create(PROMPT, sampling=GREEDY)
    first, second, third = _most_probable(branch, 3)
    branch.steer({first: -math.inf})
    assert branch.sample() == second
    fork = branch.fork()
    assert fork.sample() == first
    assert branch.sample() == second
    fork.steer({first: -math.inf, second: -math.inf})
    assert (fork.sample(), branch.sample()) == (third, second)


@behaviours("94", "95")
def test_grammar_biases_and_steering_work_together(store):
    branch = store.create(PROMPT, sampling=GREEDY, grammar="root ::= [a-z]+")
    letters = [token for token, _ in sorted(branch.priors(), key=lambda found: -found[1])]
    assert branch.sample() == letters[0]
    branch.set_bias({letters[0]: -math.inf})
    assert branch.sample() == letters[1]
    branch.steer({letters[1]: -math.inf})
    assert branch.sample() == letters[2]
    branch.set_bias(None)
    assert branch.sample() == letters[0], "steering stays when biases go"
    branch.set_bias({letters[0]: -math.inf})
    assert branch.sample() == letters[2]
    branch.steer(None)
    assert branch.sample() == letters[1], "biases stay when steering goes"


@behaviours("96")
def test_steering_explores(store):
    branch = store.create(PROMPT, sampling=GREEDY)
    seen: list[int] = []

    def others(logits: np.ndarray) -> np.ndarray:
        return np.where(np.isin(np.arange(len(logits)), seen), -np.inf, logits)

    branch.steer(others)
    for _ in range(3):
        seen.append(branch.sample())
    assert seen == _most_probable(branch, 3)


@behaviours("92")
def test_what_steering_raises_comes_out_and_changes_nothing(store):
    branch, other = store.create(PROMPT, sampling=DRAW), store.create(PROMPT, sampling=DRAW)

    def fail(logits: np.ndarray) -> None:
        raise ZeroDivisionError

    branch.steer(fail)
    position, remembered = other.position, _remembers(other)
    with pytest.raises(ZeroDivisionError):
        store.step([other, branch])
    assert (other.position, _remembers(other)) == (position, remembered)
    with pytest.raises(errors.InvalidArgument, match="outside the vocabulary"):
        branch.steer({10**6: 1.0})


def _most_probable(branch: Branch, n: int) -> list[int]:
    return np.argsort(-branch.logits, kind="stable")[:n].tolist()


# Samplers that change


@behaviours("106", "N24", "I13")
def test_sampling_changes_in_the_middle_of_a_text(store):
    branch = store.create(PROMPT, sampling=GREEDY)
    (best,) = _most_probable(branch, 1)
    assert branch.sample() == branch.sample() == best
    hot = Sampling(temperature=1.5, top_k=0, top_p=1, min_p=0, seed=3)
    branch.set_sampling(hot)
    assert branch.sampling == hot
    assert {branch.sample() for _ in range(20)} - {best}
    remembered = _remembers(branch)
    branch.set_sampling(Sampling(temperature=1.5, top_k=0, top_p=1, min_p=0, seed=3))
    assert _remembers(branch) == remembered, "an equal one changes nothing"
    branch.set_sampling(GREEDY)
    assert branch.sample() == best
    assert branch.sampling.temperature == 0


@behaviours("106", "N24")
def test_what_the_samplers_remember_outlives_a_change_of_temperature(store):
    branch, twin = (store.create(PROMPT, sampling=Sampling(repeat_penalty=1.5, seed=9)) for _ in range(2))
    for each in (branch, twin):
        for _ in range(4):
            each.step()
    branch.set_sampling(Sampling(repeat_penalty=1.5, seed=9, temperature=1.4))
    branch.set_sampling(Sampling(repeat_penalty=1.5, seed=9))
    assert [branch.step() for _ in range(6)] == [twin.step() for _ in range(6)]


@behaviours("I12", "N16")
def test_a_new_seed_draws_otherwise_and_is_seen(store):
    root = store.create(PROMPT, sampling=WIDE)
    a, b, c = root.fork(3)
    b.reseed(77)
    drawn = [[branch.sample() for _ in range(12)] for branch in (a, b, c)]
    assert drawn[0] == drawn[2] != drawn[1]
    assert b.sampling.seed == 77
    again = store.create(PROMPT, sampling=b.sampling)
    assert [again.sample() for _ in range(12)] == drawn[1]


@behaviours("N16")
def test_a_seed_begins_anew_whichever_it_was(store):
    root = store.create(PROMPT, sampling=WIDE)
    first = root.fork()
    drawn = [first.sample() for _ in range(12)]
    first.reseed(WIDE.seed)
    assert [first.sample() for _ in range(12)] == drawn
    other = root.fork(seed=77)
    assert other.sampling.seed == 77
    assert [other.sample() for _ in range(12)] != drawn
    other.reseed(WIDE.seed)
    assert [other.sample() for _ in range(12)] == drawn


@behaviours("107", "N25", "N21")
def test_grammars_come_and_go(store):
    vocab = store.ctx.vocab
    branch = store.create(PROMPT, sampling=GREEDY)
    free = branch.sample()
    branch.set_grammar('root ::= "7" [0-9]+')
    assert vocab.token_to_piece(branch.sample()).startswith(b"7")
    fork = branch.fork()
    fork.step()
    assert vocab.token_to_piece(fork.sample()).isdigit()
    assert vocab.token_to_piece(branch.sample()).startswith(b"7"), "each goes through the rules by itself"
    fork.set_grammar(None)
    fork.commit(tokens(store.ctx, "x")[-1])
    branch.set_grammar("root ::= [a-c]")
    assert vocab.token_to_piece(branch.sample()) in (b"a", b"b", b"c")
    branch.set_grammar(None)
    assert branch.sample() == free
    with pytest.raises(errors.InvalidGrammar):
        branch.set_grammar("root ::= [a-")
    assert branch.sample() == free


@behaviours("107", "N25")
def test_the_same_rules_again_begin_anew(store):
    """As they must behind the answer of a tool."""
    vocab, rules = store.ctx.vocab, 'root ::= "x" [0-9]+'
    branch = store.create(PROMPT, sampling=GREEDY, grammar=rules)
    assert vocab.token_to_piece(branch.step()) == b"x"
    branch.set_sampling(DRAW)
    assert vocab.token_to_piece(branch.sample()).isdigit(), "another sampling goes on with them"
    branch.set_grammar(rules)
    assert vocab.token_to_piece(branch.sample()) == b"x"


@behaviours("107")
def test_what_was_written_under_new_rules_can_be_taken_back(store):
    vocab = store.ctx.vocab
    branch = store.create(PROMPT, sampling=GREEDY, grammar='root ::= "x" [0-9]+')
    branch.step()
    branch.set_grammar('root ::= "y" [0-9]+')
    written = [branch.step() for _ in range(3)]
    branch.rewind(3)
    assert vocab.token_to_piece(branch.sample()) == b"y"
    assert [branch.step() for _ in range(3)] == written


@behaviours("107")
def test_rules_that_cannot_be_parsed_are_never_left_out(store):
    for wrong in ("root ::= [a-", 'other ::= "x"', "root ::= root", ""):
        with pytest.raises(errors.InvalidGrammar):
            store.create(PROMPT, grammar=wrong)
    assert len(store) == 0
    assert store.available == 8


@behaviours("108", "I13")
def test_samplers_and_branches_are_freed(store):
    gc.collect()
    before = lloyal.live_handles()
    branch = store.create(PROMPT, sampling=DRAW, grammar="root ::= [a-z ]+")
    forks = branch.fork(3, seed=1)
    store.step(forks)
    assert lloyal.live_handles() != before
    branch.prune_subtree()
    gc.collect()
    assert lloyal.live_handles() == before


@behaviours("113", "I11")
def test_a_lazy_grammar_waits_for_its_trigger(store):
    vocab = store.ctx.vocab
    word = vocab.tokenize("GO", add_special=False)
    lazy = Sampler.grammar_lazy_patterns(vocab, 'root ::= "GO" [0-9]+', trigger_patterns=["(GO)"])
    branch = store.create(PROMPT, sampling=GREEDY, grammar=lazy)
    free = store.create(PROMPT, sampling=GREEDY)
    assert branch.step() == free.step(), "anything goes before the trigger"
    fork = branch.fork()
    for token in word:
        branch.commit(token)
    assert vocab.token_to_piece(branch.sample()).isdigit()
    assert fork.step() == free.step(), "the fork has not seen the trigger"
    branch.set_grammar(None)
    branch.commit(tokens(store.ctx, "x")[-1])
    with pytest.raises(errors.InvalidArgument):
        Sampler.grammar_lazy_patterns(vocab, 'root ::= "GO"', trigger_patterns=["(GO"])


@behaviours("114", "166")
def test_the_grammar_of_tools_waits_for_a_call(store):
    vocab = store.ctx.vocab
    prompt = lloyal.chat.apply_template(
        store.ctx.model, [{"role": "user", "content": "Rome?"}], template=TOOL_TEMPLATE, tools=TOOLS
    )
    assert prompt.grammar_lazy
    assert prompt.grammar
    assert any("tool_call" in text for _, text in prompt.grammar_triggers)
    with store.create(prompt, sampling=GREEDY) as branch:
        branch.set_bias({vocab.eos: -math.inf, vocab.eot: -math.inf})
        assert any(branch.stream(40)), "text is free before a call"
        for token in vocab.tokenize('<tool_call>\n{"name": "', add_special=False):
            branch.commit(token)
        allowed = {vocab.token_to_piece(token) for token, _ in branch.priors()}
        assert allowed
        assert all(b"weather".startswith(piece) or piece.startswith(b"weather") for piece in allowed)


# Legal tokens and numbers


@behaviours("11", "19")
def test_priors_are_a_softmax_of_what_is_allowed(store):
    branch = store.create(PROMPT, grammar="root ::= [a-c]")
    priors = branch.priors()
    row = branch.logits.astype(np.float64)
    legal = [token for token, _ in priors]
    expected = np.exp(row[legal] - np.logaddexp.reduce(row[legal]))
    assert [probability for _, probability in priors] == pytest.approx(expected.tolist(), abs=1e-9)
    assert sum(probability for _, probability in priors) == pytest.approx(1)
    pieces = {store.ctx.vocab.token_to_piece(token) for token in legal}
    assert {b"a", b"b", b"c"} == pieces
    finite = np.flatnonzero(branch.legal_logits() > -np.inf).tolist()
    assert finite == legal == [token for token in range(len(row)) if branch.is_legal(token)]
    free = store.create(PROMPT)
    assert len(free.priors()) == len(row)
    assert free.is_legal(0)


@behaviours("47", "48", "49", "50", "51", "52")
def test_entropy_and_surprisal_are_those_of_the_row(store):
    branch = store.create(PROMPT)
    n = len(store.ctx.vocab)

    def of(row: np.ndarray) -> Branch:
        branch.set_logits(row)
        return branch

    def some(values: dict[int, float]) -> np.ndarray:
        row = np.full(n, -np.inf, dtype=np.float32)
        row[list(values)] = list(values.values())
        return row

    hundred = of(some(dict.fromkeys(range(100), 3.0)))
    assert hundred.entropy() == pytest.approx(math.log(100), abs=1e-6)
    assert hundred.surprisal(7) == pytest.approx(math.log(100), abs=1e-6)
    assert hundred.surprisal(100) == math.inf
    eight = of(some(dict.fromkeys(range(8), 0.0)))
    assert (eight.entropy(), eight.entropy(bits=True)) == (pytest.approx(math.log(8)), pytest.approx(3))
    assert eight.surprisal(3, bits=True) == pytest.approx(3)
    peaked = of(some({0: 10.0} | dict.fromkeys(range(1, 9), -10.0)))
    assert peaked.surprisal(0) < 0.1
    assert peaked.surprisal(1) > 15
    assert of(some({0: 100.0} | dict.fromkeys(range(1, 9), -100.0))).entropy() < 0.01
    for low, high in ((500.0, 510.0), (-500.0, -490.0)):
        two = of(some({4: low, 5: high}))
        assert 0 <= two.surprisal(5) < two.surprisal(4) < math.inf
        assert two.surprisal(4) == pytest.approx(10 + math.log1p(math.exp(-10)), abs=1e-6)
    single = of(some({9: 2.0}))
    assert single.entropy() == 0
    assert single.surprisal(9) == 0


@behaviours("50", "52")
def test_numbers_of_logits_that_are_no_distribution(store):
    branch = store.create(PROMPT)
    branch.set_logits(np.full(len(store.ctx.vocab), -np.inf, dtype=np.float32))
    assert branch.priors() == []
    assert not branch.is_legal(5)
    assert branch.surprisal(5) == math.inf
    assert branch.entropy() == math.inf
    for outside in (-1, len(store.ctx.vocab)):
        with pytest.raises(errors.InvalidArgument):
            branch.surprisal(outside)


@behaviours("N1", "N5", "53", "I10")
def test_perplexities_are_those_of_the_accepted_tokens(store):
    branch = store.create(PROMPT, sampling=Sampling(temperature=0.9, top_k=3, top_p=1, min_p=0, seed=4))
    model, sampling = [], []
    for i in range(6):
        token = branch.sample()
        log_probs = _log_softmax(branch.logits)
        best = np.argsort(-branch.logits, kind="stable")[:3]
        if i == 3:
            token = int(np.argsort(-branch.logits, kind="stable")[10])  # somebody else's choice
        else:
            kept = _log_softmax(branch.logits[best] / np.float32(0.9))
            sampling.append(-kept[best.tolist().index(token)])
        model.append(-log_probs[token])
        assert branch.surprisal(token, bits=True) == pytest.approx(branch.surprisal(token) / math.log(2))
        assert 0 <= branch.entropy() <= math.log(len(log_probs))
        branch.commit(token)
    assert branch.log_probs == pytest.approx([-nats for nats in model], abs=1e-6)
    assert branch.perplexity == pytest.approx(math.exp(np.mean(model)), rel=1e-6)
    assert branch.sampling_perplexity == pytest.approx(math.exp(np.mean(sampling)), rel=1e-4)
    only = store.create(PROMPT, sampling=Sampling(top_k=1, seed=1))
    row = np.full(len(store.ctx.vocab), -1000, dtype=np.float32)
    row[7] = 1000
    surprised = store.create(PROMPT)
    surprised.set_logits(row)
    surprised.commit(8)
    assert surprised.log_probs == [-2000.0]
    assert surprised.perplexity == math.inf, "too large for a float"
    only.step()
    assert only.sampling_perplexity == pytest.approx(1), "with one candidate there is no surprise"


@behaviours("89", "I11")
def test_numbers_part_with_the_branches(store):
    parent = store.create(PROMPT, sampling=DRAW)
    for _ in range(3):
        parent.step()
    child = parent.fork()
    assert child.perplexity == parent.perplexity
    assert child.sampling_perplexity == parent.sampling_perplexity
    before = parent.perplexity, parent.sampling_perplexity, parent.log_probs
    child.commit(_most_probable(child, 50)[-1])
    assert child.perplexity > before[0]
    assert len(child.log_probs) == 4
    assert (parent.perplexity, parent.sampling_perplexity, parent.log_probs) == before


@behaviours("109", "N4")
def test_a_greedy_text_that_must_be_json(store):
    root = store.create(PROMPT, sampling=GREEDY, json_schema=JSON)
    a, b = root.fork(2)
    start = root.position
    for i in range(15):
        if a.ended:
            break
        a.step()
        assert a.position == start + len(a.generated) <= start + i + 1
    assert a.generated
    assert a.text.lstrip()[0] == "{"
    for _ in b.generate(30):
        pass
    assert b.text.startswith(a.text), "the fork follows the same rules by itself"
    assert 1 <= a.perplexity < math.inf
    assert 1 <= a.sampling_perplexity < math.inf
    empty = store.create(PROMPT, sampling=GREEDY, grammar='root ::= "{" ws "}" ws\nws ::= [ \\t\\n]?')
    for each in (empty, *empty.fork(2)):
        assert "".join(each.stream(20)).split() in (["{}"], ["{", "}"])
