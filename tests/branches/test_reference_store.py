"""Stores and the lives of branches: the numbered behaviours of docs/liblloyal.md."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable

import numpy as np
import pytest

import lloyal
from lloyal import Branch, BranchStore, errors
from lloyal.kv import Tenancy
from tests.branches.reference import DRAW, GREEDY, PROMPT, behaviours, pos_max, tokens
from tests.decode import same

NewContext = Callable[..., lloyal.Context]


def _leased(store: BranchStore) -> int:
    return store.ctx.n_seq_max - store.available


@behaviours("1", "7", "82", "I1", "I2", "I3")
def test_two_branches_are_two(store):
    assert store.available == 8
    a, b = store.create(PROMPT, sampling=DRAW), store.create(PROMPT, sampling=GREEDY)
    assert a is not b
    assert not a.pruned
    assert not b.pruned
    assert {a.seq_id, b.seq_id} <= set(range(8))
    assert a.seq_id != b.seq_id
    assert a.store is store
    assert a.store.ctx.model.n_ctx_train > 0
    assert (a.sampling, b.sampling) == (DRAW, GREEDY)
    assert store.available == 8 - len(store) == 6
    empty = store.create()
    assert (empty.position, empty.seq_id, empty.state) == (0, None, "empty")
    assert store.available == 6, "a branch takes a sequence once it reads something"
    for branch in (a, b, empty):
        branch.prune()
        assert branch.pruned
    assert store.available == 8
    assert all(store.ctx.memory.seq_pos_max(seq) == -1 for seq in range(8))


@behaviours("7")
def test_a_store_of_a_closed_context_makes_nothing(nano, new_context):
    ctx = new_context(nano)
    store = BranchStore(ctx)
    ctx.close()
    with pytest.raises(errors.Closed):
        store.create(PROMPT)
    assert len(store) == 0


@behaviours("2", "18")
def test_nothing_but_a_branch_names_one(store):
    branch = store.create(PROMPT)
    for made_up in (0, 1, 0xFFFF0000, None, object()):
        with pytest.raises((TypeError, AttributeError)):
            store.step([made_up])
        with pytest.raises((TypeError, AttributeError)):
            store.decode_each([(made_up, 1)])
    with pytest.raises(TypeError, match=r"BranchStore\.create or Branch\.fork"):
        Branch()
    hollow = Branch.__new__(Branch)
    assert hollow.pruned
    with pytest.raises(errors.Closed):
        store.decode_each([(hollow, 1)])
    assert branch.position == len(branch.tokens) > 0


@behaviours("3", "13", "110", "I3", "I5")
def test_a_pruned_branch_stays_pruned_when_another_takes_its_sequence(store):
    old = store.create(PROMPT, sampling=DRAW)
    seq_id = old.seq_id
    assert old.logits.shape == (len(store.ctx.vocab),)
    old.prune()
    new = store.create(sampling=DRAW)
    with pytest.raises(errors.NoLogits):
        _ = new.logits
    new.prefill("A story.")
    assert new.seq_id == seq_id
    assert old.pruned
    assert not new.pruned
    with pytest.raises(errors.Closed):
        _ = old.logits
    with pytest.raises(errors.Closed):
        old.sample()
    with pytest.raises(errors.Closed):
        old.accept(7)
    assert new.position == len(new.tokens)


@behaviours("4", "15")
def test_branches_are_not_counted_in_advance(nano, new_context):
    with BranchStore(new_context(nano, n_seq_max=1)) as store:
        root = store.create(PROMPT)
        branches = [store.create() for _ in range(100)] + root.fork(200)
        assert len(store) == 301
        assert store.available == 0
        assert {branch.position for branch in branches[100:]} == {root.position}
        assert all(not branch.pruned for branch in branches)


@behaviours("5", "N22")
def test_pruning_twice_is_pruning_once(store):
    branch = store.create(PROMPT)
    branch.prune()
    assert branch.pruned
    available = store.available
    branch.prune()
    branch.prune_subtree()
    assert store.available == available == 8


@behaviours("8", "27", "I4")
def test_kin_is_known_both_ways(store):
    root = store.create(PROMPT)
    assert root.parent is None
    assert root.is_leaf
    assert root.children == []
    a, b = root.fork(2)
    assert a is not b
    assert a.position == b.position == root.position
    assert a.parent is b.parent is root
    assert root.children == [a, b]
    assert not root.is_leaf
    assert a.is_leaf
    a.prune()
    assert root.children == [b]
    assert not root.pruned
    c = root.fork()
    assert root.children == [b, c]
    b.prune()
    c.prune()
    assert root.is_leaf
    assert root.children == []
    gone = root.fork()
    gone.prune()
    with pytest.raises(errors.Closed):
        gone.fork()
    assert root.is_leaf, "a fork that failed left nothing behind"


@behaviours("27", "I4")
def test_a_parent_goes_after_its_forks_or_with_them(store):
    root = store.create(PROMPT)
    child = root.fork()
    with pytest.raises(errors.BranchHasChildren, match="prune_subtree"):
        root.prune()
    assert not root.pruned
    assert root.position == child.position
    child.prune()
    root.prune()
    assert store.available == 8
    chain = [store.create(PROMPT, sampling=GREEDY)]
    for _ in range(3):
        chain.append(chain[-1].fork())
        chain[-1].step()
    assert _leased(store) == 4
    chain[0].prune_subtree()
    assert all(branch.pruned for branch in chain)
    assert store.available == 8


@behaviours("9", "20")
def test_what_an_untouched_branch_says_of_itself(store):
    branch = store.create()
    assert (branch.position, branch.perplexity, branch.sampling_perplexity) == (0, math.inf, math.inf)
    branch.prefill(PROMPT)
    assert branch.position == len(branch.tokens)
    assert branch.perplexity == math.inf
    branch.prune()
    for name in ("position", "perplexity", "logits", "tokens"):
        with pytest.raises(errors.Closed):
            getattr(branch, name)


@behaviours("10", "87")
def test_a_with_block_prunes_a_family(store):
    with store.create(PROMPT, sampling=DRAW) as root:
        child = root.fork()
        child.step()
        grandchild = child.fork()
        assert child.parent is root
        assert grandchild.parent is child
        assert not root.is_leaf
        assert not child.is_leaf
        assert grandchild.is_leaf
        same = root
        assert same.fork().position == root.position
    assert root.pruned
    assert child.pruned
    assert grandchild.pruned
    assert store.available == 8
    assert len(store) == 0


@behaviours("11", "I5")
def test_before_anything_is_read_there_is_nothing_to_pick_from(store):
    branch = store.create(sampling=DRAW, grammar='root ::= "a"')
    for ask in (
        lambda: branch.logits,
        branch.sample,
        branch.priors,
        branch.legal_logits,
        branch.top,
        branch.entropy,
        branch.step,
    ):
        with pytest.raises(errors.NoLogits):
            ask()
    assert branch.position == 0


@behaviours("14", "16", "110", "I3")
def test_reuse_never_brings_a_branch_back(store):
    old = [store.create() for _ in range(7)]
    for branch in old:
        branch.prune()
    for _ in range(100):
        made = [store.create() for _ in range(7)]
        for branch in made:
            branch.prune()
        old += made
    assert all(branch.pruned for branch in old)
    root = store.create(PROMPT)
    first = root.fork()
    first.prune()
    for _ in range(2**16 + 2):
        root.fork().prune()
    assert first.pruned, "no counter of 16 bits comes round again"
    with pytest.raises(errors.Closed):
        _ = first.position


@behaviours("21", "N19")
def test_a_pruned_branch_does_nothing(store):
    branch, other = store.create(PROMPT, sampling=GREEDY), store.create(PROMPT, sampling=GREEDY)
    kept = branch.checkpoint("host")
    branch.prune()
    position, logits = other.position, other.logits.tobytes()
    calls = [
        branch.fork,
        branch.sample,
        branch.step,
        branch.checkpoint,
        branch.park,
        branch.resume,
        branch.detach,
        branch.priors,
        branch.entropy,
        lambda: branch.prefill([7]),
        lambda: branch.accept(7),
        lambda: branch.commit(7),
        lambda: branch.rewind(1),
        lambda: branch.restore(kept),
        lambda: branch.set_bias({1: 1.0}),
        lambda: branch.set_sampling(DRAW),
        lambda: branch.set_grammar(None),
        lambda: branch.set_logits(np.zeros(len(store.ctx.vocab))),
        lambda: branch.surprisal(1),
        lambda: next(branch.generate(1)),
        lambda: next(branch.stream(1)),
        lambda: store.step([other, branch]),
        lambda: store.commit([(other, 7), (branch, 7)]),
        lambda: store.decode_each([(other, 7), (branch, 7)]),
        lambda: store.merge_logits(other, [branch], 0.5),
        lambda: store.merge_logits(branch, [other], 0.5),
        lambda: store.retain_only(branch),
    ]
    for call in calls:
        with pytest.raises(errors.Closed, match="pruned"):
            call()
    assert (other.position, other.logits.tobytes()) == (position, logits)
    kept.release()


@behaviours("22", "24", "N20")
def test_reading_nothing_changes_nothing(store):
    empty, a, b = store.create(), store.create(range(20, 30)), store.create(range(20, 40))
    empty.prefill([])
    assert empty.position == 0
    assert empty.seq_id is None
    logits = a.logits.tobytes()
    store.decode_each([])
    store.decode_scatter([])
    store.commit([])
    assert store.step([]) == []
    store.decode_scatter([(a, []), (b, [])])
    assert (a.position, b.position, a.logits.tobytes()) == (10, 20, logits)
    store.decode_scatter([(a, []), (b, [5, 6])])
    assert (a.position, b.position, a.logits.tobytes()) == (10, 22, logits)


@behaviours("23", "104")
def test_ends_of_texts_are_the_vocabularys(store):
    vocab = store.ctx.vocab
    assert vocab.is_eog(vocab.eos)
    assert vocab.is_eog(vocab.eot)
    assert not vocab.is_eog(tokens(store.ctx, "hello")[0])
    assert not vocab.is_eog(42)
    branch = store.create(PROMPT, sampling=GREEDY)
    assert not branch.ended
    branch.set_bias({vocab.eos: 1e4})
    position = branch.position
    assert branch.step() == vocab.eos
    assert branch.ended
    assert branch.position == position, "the token that ends a text is picked and not read"


@behaviours("25")
def test_leases_are_counted_and_come_back_empty(nano, new_context):
    ctx = new_context(nano, n_seq_max=4)
    tenancy = Tenancy(ctx)
    four = [tenancy.acquire() for _ in range(4)]
    assert sorted(four) == [0, 1, 2, 3]
    assert tenancy.available == 0
    with pytest.raises(errors.NoLease):
        tenancy.acquire()
    batch = lloyal.Batch()
    batch.extend([5, 6, 7], 0, four[0], "last")
    tenancy.decode(batch)
    tenancy.release(four[0])
    assert tenancy.available == 1
    assert ctx.memory.seq_pos_max(four[0]) == -1
    with pytest.raises(errors.NoLease):
        tenancy.release(four[0])
    tenancy.retain(four[1])
    assert tenancy.available == 3
    assert tenancy.leased == {four[1]}
    assert four[1] not in {tenancy.acquire() for _ in range(3)}
    tenancy.evict_all()
    assert tenancy.available == 4


@behaviours("26", "101", "I1")
def test_sequences_run_out_and_come_back(nano, new_context):
    with BranchStore(new_context(nano, n_seq_max=4)) as store:
        branches = [store.create(PROMPT) for _ in range(4)]
        assert store.available == 0
        with pytest.raises(errors.NoLease):
            store.create(PROMPT)
        assert len(store) == 4
        branches[0].prune()
        branches[2].prune()
        assert store.available == 2
        again = store.create(PROMPT, sampling=DRAW)
        assert 0 <= again.sample() < len(store.ctx.vocab)
        assert store.available == 1


@behaviours("26", "101")
def test_parked_branches_make_room_for_more_than_there_are_sequences(model, new_context):
    with BranchStore(new_context(model, n_seq_max=2), auto_park=True) as store:
        branches = [store.create(f"{i}: {PROMPT}", sampling=GREEDY) for i in range(5)]
        store.step(branches)
        with BranchStore(new_context(model, n_seq_max=8)) as wide:
            twins = [wide.create(f"{i}: {PROMPT}", sampling=GREEDY) for i in range(5)]
            wide.step(twins)
            assert [branch.tokens for branch in branches] == [twin.tokens for twin in twins]


@behaviours("28", "102", "112", "I4")
def test_retain_only_leaves_a_root_that_goes_on(store):
    root = store.create(PROMPT, sampling=DRAW, grammar="root ::= [a-z ]+")
    winner, *losers = root.fork(3, seed=1)
    store.step([winner, *losers])
    logits, perplexity, tokens_then = winner.logits.tobytes(), winner.perplexity, winner.tokens
    store.retain_only(winner)
    assert root.pruned
    assert all(loser.pruned for loser in losers)
    assert (winner.parent, winner.children, winner.fork_head) == (None, [], 0)
    assert store.roots == [winner]
    assert len(store) == 1
    assert store.available == 7
    assert (winner.logits.tobytes(), winner.perplexity, winner.tokens) == (logits, perplexity, tokens_then)
    assert winner.is_legal(tokens(store.ctx, "a")[-1])
    assert not winner.is_legal(tokens(store.ctx, "7")[-1])
    token = winner.sample()
    winner.commit(token)
    assert winner.tokens == [*tokens_then, token]
    store.retain_only(winner)
    assert not winner.pruned
    assert store.available == 7


@behaviours("28", "112")
def test_retain_only_refuses_who_is_not_there(store, nano, new_context):
    a, b = store.create(PROMPT), store.create(PROMPT)
    b.prune()
    with pytest.raises(errors.Closed, match="winner was pruned"):
        store.retain_only(b)
    with BranchStore(new_context(nano)) as other:
        with pytest.raises(errors.Closed, match="another store"):
            store.retain_only(other.create(PROMPT))
    assert not a.pruned
    assert store.roots == [a]


@behaviours("29", "105", "I15")
def test_closing_gives_everything_back_and_is_for_good(nano, new_context):
    ctx = new_context(nano, n_seq_max=4)
    store = BranchStore(ctx)
    a = store.create(PROMPT)
    b = a.fork()
    b.prefill([7])
    assert Tenancy(ctx).available == 2
    store.close()
    store.close()
    assert a.pruned
    assert b.pruned
    assert Tenancy(ctx).available == 4
    with pytest.raises(errors.Closed):
        store.create(PROMPT)
    with BranchStore(ctx) as another:
        assert another.create(PROMPT).position > 0
    ctx.close()


@behaviours("105", "I15")
def test_a_context_may_be_closed_first(nano, new_context):
    ctx = new_context(nano, n_seq_max=4)
    store = BranchStore(ctx)
    branch = store.create(PROMPT)
    ctx.close()
    with pytest.raises(errors.Closed):
        branch.prefill([7])
    store.close()
    assert branch.pruned
    del store, branch
    gc.collect()


@behaviours("24", "111")
def test_a_bad_branch_in_a_batch_is_named_and_stops_all_of_it(store, nano, new_context):
    a, b = store.create(PROMPT), store.create(PROMPT)
    with BranchStore(new_context(nano)) as other:
        foreign = other.create(PROMPT)
        position, logits = a.position, a.logits.tobytes()
        with pytest.raises(errors.InvalidArgument, match=r"index 1.*another context"):
            store.decode_each([(a, 7), (foreign, 7)])
        with pytest.raises(errors.InvalidArgument, match=r"index 1.*another context"):
            store.decode_scatter([(a, [7]), (foreign, [7, 8])])
    with pytest.raises(errors.InvalidArgument, match="named twice"):
        store.decode_each([(a, 7), (b, 7), (a, 8)])
    with pytest.raises(errors.InvalidArgument, match=r"index 1.*outside the vocabulary"):
        store.decode_each([(a, 7), (b, len(store.ctx.vocab))])
    stale = store.create()
    stale.prune()
    for read in (store.decode_each, store.commit):
        with pytest.raises(errors.Closed):
            read([(a, 7), (stale, 7)])
    with pytest.raises(errors.Closed):
        store.decode_scatter([(a, [7]), (stale, [7])])
    assert (a.position, a.logits.tobytes()) == (position, logits)
    store.decode_each([(a, 7), (b, 8)])
    store.decode_scatter([(a, [7, 8]), (b, [])])
    assert (a.position, b.position) == (position + 3, position + 1)


@behaviours("99", "117", "146", "I6", "I7")
def test_forks_step_together_and_the_root_stays(store, model, new_context):
    root = store.create(PROMPT)
    position, logits = root.position, root.logits.tobytes()
    forks = root.fork(4)
    for i in range(3):
        store.decode_each([(fork, 100 + 7 * i + k) for k, fork in enumerate(forks)])
        assert {fork.position for fork in forks} == {position + i + 1}
    for fork in forks:
        assert pos_max(fork) == fork.position - 1
        assert same(fork.logits, _alone(model, new_context, fork.tokens))
    rows = {fork.logits.tobytes() for fork in forks}
    assert len(rows) == 4, "each has a row of its own"
    assert (root.position, root.logits.tobytes()) == (position, logits)
    assert pos_max(root) == position - 1


@behaviours("100", "147", "150", "152", "I7")
@pytest.mark.parametrize("n_batch", [16, 512])
def test_runs_of_any_lengths_are_read_together(model, new_context, n_batch):
    with BranchStore(new_context(model, n_seq_max=8, n_batch=n_batch)) as store:
        lengths = (3, 7, 15, 42, 2, 28, 1, 5)
        texts = [[(31 * i + k) % 700 + 20 for k in range(n)] for i, n in enumerate(lengths)]
        branches = [store.create() for _ in lengths]
        store.decode_scatter(list(zip(branches, texts, strict=True)))
        assert [branch.position for branch in branches] == [pos_max(branch) + 1 for branch in branches]
        assert tuple(branch.position for branch in branches) == lengths
        for branch, text in zip(branches, texts, strict=True):
            assert same(branch.logits, _alone(model, new_context, text))


@behaviours("100")
def test_forks_take_prompts_of_their_own_behind_a_common_one(model, new_context):
    with BranchStore(new_context(model, n_seq_max=4, n_batch=16)) as store:
        root = store.create(range(20, 25))
        forks = root.fork(3)
        tails = [list(range(100 + 30 * i, 100 + 30 * i + n)) for i, n in enumerate((5, 20, 8))]
        store.decode_scatter(list(zip(forks, tails, strict=True)))
        for fork, tail in zip(forks, tails, strict=True):
            assert fork.position == 5 + len(tail)
            assert same(fork.logits, _alone(model, new_context, [*range(20, 25), *tail]))


def _alone(model: lloyal.Model, new_context: NewContext, text: list[int]) -> np.ndarray:
    """The logits behind a text that a context has read by itself."""
    ctx = new_context(model)
    lloyal.prefill(ctx, text, pos0=0)
    row = ctx.logits(-1, copy=True)
    ctx.close()
    return row


@behaviours("86", "103")
def test_rows_stay_while_anybody_needs_them(store):
    parent = store.create(PROMPT, sampling=DRAW)
    position = parent.position
    child, other = parent.fork(2)
    child.step()
    used = child.seq_id
    child.prune()
    assert store.ctx.memory.seq_pos_max(used) == -1
    other.detach()
    parent.prune()
    assert other.position == position
    assert pos_max(other) == position - 1
    other.step()
    assert pos_max(other) == position
    other.prune_subtree()
    assert all(store.ctx.memory.seq_pos_max(seq) == -1 for seq in range(8))
    assert store.available == 8


@behaviours("98")
def test_nothing_of_a_pruned_branch_reaches_the_next_one(model, new_context):
    with BranchStore(new_context(model, n_seq_max=1)) as store:
        first = store.create(PROMPT, sampling=GREEDY)
        best = first.sample()
        first.set_bias({best: -math.inf})
        assert first.sample() != best
        first.steer({best: -math.inf})
        first.prune()
        second = store.create(PROMPT, sampling=GREEDY)
        assert second.sample() == best
        second.set_sampling(DRAW)
        second.prune()
        third = store.create(PROMPT, sampling=GREEDY)
        assert third.sample() == third.sample() == best


@behaviours("145", "N3")
def test_a_trunk_and_two_answers(store):
    trunk = store.create(PROMPT)
    length = trunk.position
    yes, no = trunk.fork(2)
    store.decode_each([(yes, tokens(store.ctx, " yes")[-1]), (no, tokens(store.ctx, " no")[-1])])
    assert pos_max(trunk) == length - 1
    assert pos_max(yes) == pos_max(no) == length
    assert len({trunk.seq_id, yes.seq_id, no.seq_id}) == 3
    free = ({*range(8)} - {trunk.seq_id, yes.seq_id, no.seq_id}).pop()
    assert store.ctx.memory.seq_pos_max(free) == -1
    loser = no.seq_id
    no.prune()
    assert store.ctx.memory.seq_pos_max(loser) == -1
    assert pos_max(yes) == length


@behaviours("118")
def test_a_wide_context_reads_a_prompt(nano, new_context):
    ctx = new_context(
        nano, n_ctx=4096, n_batch=512, n_ubatch=512, n_threads=2, n_seq_max=8, type_k="f16", kv_unified=True
    )
    with BranchStore(ctx) as store:
        assert store.create(PROMPT).logits.shape == (len(ctx.vocab),)
