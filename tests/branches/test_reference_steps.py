"""Steps of many branches, the cells they take, and what is done with their logits: docs/liblloyal.md."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

import lloyal
from lloyal import BranchStore, Sampling, errors
from tests.branches.reference import DRAW, GREEDY, PROMPT, behaviours, pos_max, tokens

NewContext = Callable[..., lloyal.Context]


def _used(store: BranchStore) -> int:
    pressure = store.kv_pressure
    assert pressure.cells_used + pressure.remaining == pressure.n_ctx
    return pressure.cells_used


# Cells


@behaviours("119", "120")
def test_cells_are_those_of_the_cache(store):
    assert store.kv_pressure == (512, 0, 512)
    assert store.ctx.n_ctx == 512
    root = store.create(range(20, 57))
    assert root.position == 37
    assert store.kv_pressure == (512, 37, 475)
    batch = lloyal.Batch()
    batch.extend([1, 2, 3], 0, 0, "last")
    store.ctx.decode(batch)
    assert _used(store) == 40, "cells that raw calls take count too"


@behaviours("121", "122", "125", "I14")
def test_forks_take_cells_for_what_is_their_own(store):
    root = store.create(range(20, 50))
    forks = root.fork(3)
    assert _used(store) == 30
    for i in range(10):
        store.decode_each([(fork, 100 + i + k) for k, fork in enumerate(forks)])
        assert _used(store) == 30 + 3 * (i + 1)
        assert _used(store) == sum(branch.position - branch.fork_head for branch in store.branches)
    for left, fork in zip((20, 10, 0), forks, strict=True):
        fork.prune()
        assert _used(store) == 30 + left
    root.prune()
    assert _used(store) == 0


@behaviours("123", "129", "I14")
def test_the_retained_branch_keeps_its_cells_only(store):
    root = store.create(range(20, 50))
    forks = root.fork(3)
    for i in range(4):
        store.decode_each([(fork, 100 + i + k) for k, fork in enumerate(forks)])
    winner = forks[1]
    assert winner.fork_head == 30
    store.retain_only(winner)
    assert winner.fork_head == 0
    assert _used(store) == winner.position == 34
    for i in range(3):
        winner.commit(60 + i)
    assert _used(store) == winner.position == 37
    winner.prune()
    assert _used(store) == 0


@behaviours("124", "126")
def test_closing_frees_the_cells_for_the_next_store(nano, new_context):
    ctx = new_context(nano, n_seq_max=4)
    for _ in range(2):
        with BranchStore(ctx) as store:
            root = store.create(range(20, 50))
            store.decode_each([(root, 7)])
            assert _used(store) == 31
            root.prune()
            assert _used(store) == 0
            store.create(range(20, 30))
            assert _used(store) == 10
    assert _used(BranchStore(ctx)) == 0


@behaviours("127", "128", "I14")
def test_a_chain_of_forks_counts_each_part_once(store):
    root = store.create(range(20, 50))
    a = root.fork()
    store.decode_scatter([(a, [1] * 5)])
    b = a.fork()
    store.decode_scatter([(b, [2] * 3)])
    assert (root.fork_head, a.fork_head, b.fork_head) == (0, 30, 35)
    assert _used(store) == 38
    root.prune_subtree()
    assert _used(store) == 0


# Logits of several


@behaviours("130", "I5", "I6", "N13")
def test_logits_can_be_replaced(store):
    branch = store.create(PROMPT, sampling=GREEDY)
    own = branch.logits
    n = len(store.ctx.vocab)
    other = (np.arange(n) / n - 0.5).astype(np.float32)
    branch.set_logits(other)
    assert branch.logits.tobytes() == other.tobytes()
    assert branch.sample() == n - 1
    assert own.tobytes() != other.tobytes(), "what was read before is not changed by it"
    with pytest.raises(errors.InvalidArgument, match=f"10 logits.*{n} tokens"):
        branch.set_logits(np.zeros(10))
    with pytest.raises(ValueError, match="read-only"):
        branch.logits[0] = 1
    assert branch.logits.tobytes() == other.tobytes()
    store.create().set_logits(other)


@behaviours("131", "I6")
def test_logits_of_experts_are_added(store):
    n = len(store.ctx.vocab)
    main, two, three = (store.create(PROMPT) for _ in range(3))
    for value, branch in enumerate((main, two, three), 1):
        branch.set_logits(np.full(n, float(value)))
    store.merge_logits(main, [], 0.5)
    assert set(main.logits.tolist()) == {1.0}
    store.merge_logits(main, [two, three], 0.5)
    assert np.abs(main.logits - 3.5).max() <= 1e-6
    assert set(two.logits.tolist()) == {2.0}
    assert set(three.logits.tolist()) == {3.0}
    silent, gone = store.create(), store.create(PROMPT)
    gone.prune()
    with pytest.raises(errors.NoLogits, match="expert at index 1"):
        store.merge_logits(main, [two, silent], 0.5)
    with pytest.raises(errors.NoLogits):
        store.merge_logits(silent, [two], 0.5)
    with pytest.raises(errors.Closed):
        store.merge_logits(main, [two, gone], 0.5)
    with pytest.raises(errors.Closed):
        store.merge_logits(gone, [two], 0.5)
    assert np.abs(main.logits - 3.5).max() <= 1e-6, "a bad second expert leaves nothing of the first behind"


@behaviours("132")
def test_one_token_behind_different_texts(store):
    branches = [store.create(text) for text in ("A list of", "The server is", "Once upon a")]
    before = [branch.position for branch in branches]
    store.decode_each([(branch, 300) for branch in branches])
    assert [branch.position for branch in branches] == [position + 1 for position in before]
    for a, b in itertools.combinations(branches, 2):
        assert np.abs(a.logits - b.logits).max() > 1e-4


@behaviours("133")
def test_contrastive_decoding_in_step(store):
    trunk = store.create("The list of methods is", sampling=GREEDY)
    expert = store.create("A function returns", sampling=GREEDY)
    plain = trunk.fork()
    for _ in range(8):
        store.merge_logits(trunk, [expert], 4.0)
        token = trunk.sample()
        assert 0 <= token < len(store.ctx.vocab)
        trunk.accept(token)
        store.decode_each([(trunk, token), (expert, token)])
        plain.step()
    assert len(trunk.generated) == len(trunk.log_probs) == 8
    assert trunk.generated != plain.generated, "the expert had a say"


# Generations side by side


@behaviours("N16", "N17", "I10", "I12")
def test_best_of_three(store):
    root = store.create(PROMPT, sampling=DRAW)
    position = root.position
    same = root.fork(2)
    assert same[0].step() == same[1].step(), "forks draw alike until they are told otherwise"
    for fork in same:
        fork.prune()
    forks = root.fork(3, seed=1000)
    for i in range(10):
        before = [(fork.position, fork.logits.tobytes()) for fork in forks]
        picked = [fork.sample() for fork in forks]
        assert [(fork.position, fork.logits.tobytes()) for fork in forks] == before, "picking moves nothing"
        if i % 2:
            store.commit(list(zip(forks, picked, strict=True)))
        else:
            for fork, token in zip(forks, picked, strict=True):
                fork.commit(token)
    assert {fork.position for fork in forks} == {position + 10}
    assert all(1 <= fork.perplexity < 1000 and 1 <= fork.sampling_perplexity < 1000 for fork in forks)
    assert all(len(fork.log_probs) == 10 for fork in forks)
    assert len({tuple(fork.generated) for fork in forks}) > 1
    winner = min(forks, key=lambda fork: fork.perplexity)
    store.retain_only(winner)
    assert store.available == 7


@behaviours("N16")
def test_branches_with_histories_of_their_own(store):
    a, b = store.create(sampling=GREEDY), store.create(sampling=GREEDY)
    store.decode_scatter([(a, tokens(store.ctx, "The list of")), (b, tokens(store.ctx, "A server is a thing"))])
    assert a.logits.tobytes() != b.logits.tobytes()
    store.commit([(a, a.sample()), (b, b.sample())])
    assert len(a.log_probs) == len(b.log_probs) == 1


@behaviours("N16", "N23")
def test_one_text_ends_and_the_other_goes_on(store):
    eos = store.ctx.vocab.eos
    ends, goes = (store.create(PROMPT, sampling=GREEDY) for _ in range(2))
    goes.set_bias({eos: -math.inf, store.ctx.vocab.eot: -math.inf})
    prompt = ends.position
    for i in range(6):
        if i == 3:
            ends.set_bias({eos: 1e4})
        live = store.live
        picked = store.step()
        assert len(picked) == len(live) == (2 if i <= 3 else 1)
    assert ends.ended
    assert not goes.ended
    assert store.live == [goes]
    assert len(ends.generated) == 3
    assert ends.position == prompt + 3
    assert goes.position == prompt + len(goes.generated) == prompt + 6


@behaviours("N18", "85", "I7")
def test_a_full_cache_changes_nothing(model, new_context):
    with BranchStore(new_context(model, n_ctx=256, n_seq_max=9)) as store:
        root = store.create(PROMPT, sampling=DRAW, grammar="root ::= [a-z ]+")
        root.set_bias({store.ctx.vocab.eos: -math.inf, store.ctx.vocab.eot: -math.inf})
        branches = root.fork(8, seed=7)

        def seen() -> list[object]:
            return [
                (branch.position, branch.perplexity, branch.sampling_perplexity, branch.tokens, branch.logits.tobytes())
                for branch in branches
            ]

        for _ in range(256):
            before, states = seen(), [branch._sampler_state_native() for branch in branches]
            try:
                store.step(branches)
            except errors.CacheFull:
                break
        else:
            pytest.fail("the cache never filled up")
        assert seen() == before
        assert [branch._sampler_state_native() for branch in branches] == states
        with pytest.raises(errors.CacheFull):
            store.commit([(branch, branch.sample()) for branch in branches])
        assert [entry[:4] for entry in seen()] == [entry[:4] for entry in before]
        branches[7].prune()
        branches[0].step()
        assert branches[0].position == before[0][0] + 1


@behaviours("N18")
def test_a_token_that_a_grammar_forbids_stops_all(store):
    vocab = store.ctx.vocab
    free, held = (store.create(PROMPT, sampling=DRAW, grammar=rules) for rules in (None, "root ::= [a-z ]+"))
    seen = [(branch.tokens, branch._sampler_state_native(), branch.logits.tobytes()) for branch in (free, held)]
    with pytest.raises(errors.InvalidArgument, match=r"index 1.*grammar"):
        store.commit([(free, 7), (held, vocab.tokenize("7", add_special=False)[-1])])
    assert seen == [(branch.tokens, branch._sampler_state_native(), branch.logits.tobytes()) for branch in (free, held)]


@behaviours("N11", "N10", "146")
def test_the_same_tokens_whatever_the_batches(model, new_context):
    texts = []
    for n_batch in (32, 64, 128, 512, 512):
        with BranchStore(new_context(model, n_batch=n_batch, n_seq_max=1)) as store:
            branch = store.create(PROMPT * 4, sampling=GREEDY)
            texts.append(list(branch.generate(20)))
    assert len({tuple(text[:5]) for text in texts}) == 1
    assert texts[-1] == texts[-2]


@behaviours("146", "I7")
def test_more_branches_than_a_batch_holds(model, new_context):
    with BranchStore(new_context(model, n_ctx=1024, n_seq_max=33, n_batch=16)) as store:
        root = store.create(PROMPT, sampling=DRAW)
        forks = root.fork(32, seed=0)
        for _ in range(10):
            store.step(forks)
        assert {pos_max(fork) for fork in forks if not fork.ended} == {root.position + 9}
        assert pos_max(root) == root.position - 1


@behaviours("N23")
def test_iterating_is_stepping(model, new_context):
    with BranchStore(new_context(model, n_seq_max=2)) as store:
        branch = store.create(PROMPT, sampling=DRAW)
        by_hand = branch.fork()
        prompt, given = branch.position, []
        for token in branch.generate(12):
            given.append(token)
            assert branch.position == prompt + len(given), "a token is read before it is given out"
        manual = []
        while len(manual) < 12:
            token = by_hand.sample()
            if store.ctx.vocab.is_eog(token):
                break
            by_hand.commit(token)
            manual.append(token)
        assert given == manual == branch.generated


@behaviours("N6", "N12")
def test_a_branch_goes_on_where_it_stands(store):
    branch = store.create(PROMPT, sampling=Sampling(temperature=0))
    list(branch.generate(3))
    position = branch.position
    more = tokens(store.ctx, "<|im_end|>") + tokens(store.ctx, " And then")
    branch.prefill(more)
    assert branch.position == position + len(more)
    assert len(tokens(store.ctx, "abc")) <= len(store.ctx.vocab.tokenize("abc", add_special=True))
    twin = store.create(branch.tokens, sampling=GREEDY)
    assert twin.sample() == branch.sample()
