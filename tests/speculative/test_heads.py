"""Drafters that start from hidden rows: the tokens of plain steps, and the guesses that the text would give anew."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lloyal
import lloyal.llama as ll
from lloyal import BranchStore, Context, Sampling
from lloyal.errors import Aborted, InvalidArgument, InvalidBatch, LoadFailed, NoLogits, Unsupported
from lloyal.native import step as steps
from lloyal.native.checkpoint import abort_arm
from lloyal.native.hidden import hidden_rows, keep_hidden
from lloyal.speculative import MTP, DFlash, Eagle3, Speculator
from lloyal.speculative.heads import Head, Text
from tests.heads import BLOCK, LAYERS, MASK, RECIPES, path
from tests.models import N_EMBD, N_VOCAB, tiny
from tests.speculative.reference import context

KINDS: dict[str, tuple[type[Head], str, str]] = {
    "mtp": (MTP, "mtp", "mtp"),
    "eagle3": (Eagle3, "llama", "eagle3"),
    "dflash": (DFlash, "llama", "dflash"),
    "easy mtp": (MTP, "easy-mtp", "easy-mtp"),
    "easy eagle3": (Eagle3, "easy-llama", "easy-eagle3"),
}
SAMPLINGS = {
    "greedy": Sampling(temperature=0),
    "warm": Sampling(temperature=0.7, seed=5),
    "penalties": Sampling(temperature=0.5, repeat_penalty=1.2, presence_penalty=0.3, seed=7),
}
PROMPTS = [list(range(8 + 5 * i, 30 + 9 * i)) for i in range(4)]
N = 30


class Pair:
    """A target and a draft, and what the draft was asked."""

    def __init__(self, kind: str, **more: Any) -> None:
        self.kind = kind.split()[-1]
        self.made, target, draft = KINDS[kind]
        self.more = more
        self.model = lloyal.Model(path(target))
        self.draft = self.model if draft == target else lloyal.Model(path(draft))
        self.ctx = context(self.model, **more)
        self.head_ctx = self.on(self.ctx)
        self.asked: list[tuple[list[int], int, list[int]]] = []

    def on(self, parent: Context, **more: Any) -> Context:
        more = {"type": "mtp"} | more if self.draft is self.model else more
        return context(self.draft, parent=parent, **more)

    def head(self, ctx: Context | None = None) -> Head:
        """A head that notes what it is asked and says."""
        head: Any = self.made(ctx or self.head_ctx)
        propose = head.propose

        def note(texts: Sequence[Text], n: int) -> list[list[int]]:
            guesses: list[list[int]] = propose(texts, n)
            for text, guess in zip(texts, guesses, strict=True):
                self.asked.append((list(text.tokens), text.slot.first if text.slot else -1, guess))
            return guesses

        head.propose = note
        return head  # type: ignore[no-any-return]

    def close(self) -> None:
        self.asked.clear()
        for ctx in (self.head_ctx, self.ctx):
            ctx.close()
        for model in {self.draft, self.model}:
            model.close()

    # The same from the beginning, by raw calls

    def anew(self, tokens: list[int], first: int, guess: list[int]) -> Iterator[np.ndarray]:
        """The logits of each guess, given those before it, by a head that knows the rows from token `first` on."""
        with context(self.model, **self.more) as target, self.on(target) as head:
            yield from getattr(self, "_" + self.kind)(target, head, tokens, first, guess)

    @staticmethod
    def _hidden(target: Context, tokens: list[int], layers: list[int]) -> np.ndarray:
        if layers:
            for layer in layers:
                target.set_embeddings_layer_inp(layer, True)
        else:
            target.set_embeddings_nextn(True, masked=False)
        batch = ll.Batch()
        batch.extend(tokens, 0, 0)
        target.decode(batch)
        if not layers:
            return np.stack([target.embeddings_nextn(i, copy=True) for i in range(len(tokens))])
        parts = [[target.embeddings_layer_inp(layer, i, copy=True) for layer in layers] for i in range(len(tokens))]
        return np.stack([np.concatenate(part) for part in parts])

    @staticmethod
    def _decode(head: Context, entries: list[tuple[int | None, Any, int]], outputs: Sequence[int]) -> None:
        batch = ll.BatchExt(head)
        for token, row, position in entries:
            at = batch.add(0) if token is None else batch.add_token(0, token)
            if row is not None:
                batch.set_embd_token(at, row)
            batch.set_pos(at, position)
        for at in outputs:
            batch.set_output_logits(at, True)
        head.process("decode", batch)

    def _chain(self, head: Context, pairs: list[tuple[int, Any, int]], guess: list[int]) -> Iterator[np.ndarray]:
        head.set_embeddings_nextn(True, masked=True)
        for token in guess:
            last = len(pairs) - 1
            self._decode(head, pairs, range(len(pairs)))  # type: ignore[arg-type]
            yield head.logits(last, copy=True)
            pairs = [(token, head.embeddings_nextn(last, copy=True), pairs[-1][2] + 1)]

    def _mtp(
        self, target: Context, head: Context, tokens: list[int], first: int, guess: list[int]
    ) -> Iterator[np.ndarray]:
        rows = self._hidden(target, tokens[:-1], [])
        pairs = [(tokens[p], rows[p - 1], p) for p in range(first + 1, len(tokens))]
        if first == 0:
            pairs.insert(0, (tokens[0], np.zeros_like(rows[0]), 0))
        yield from self._chain(head, pairs, guess)

    def _eagle3(
        self, target: Context, head: Context, tokens: list[int], first: int, guess: list[int]
    ) -> Iterator[np.ndarray]:
        rows = self._hidden(target, tokens[:-1], LAYERS)
        head.set_embeddings_nextn(True, masked=True)
        batch = ll.BatchExt(head)
        for i, row in enumerate(rows):
            batch.set_pos(batch.add_embd(0, row), i)
        head.process("encode", batch)
        made = [head.embeddings_nextn(i, copy=True) for i in range(len(rows))]
        yield from self._chain(head, [(tokens[p + 1], made[p], p) for p in range(first, len(rows))], guess)

    def _dflash(
        self, target: Context, head: Context, tokens: list[int], first: int, guess: list[int]
    ) -> Iterator[np.ndarray]:
        rows = self._hidden(target, tokens[:-1], LAYERS)
        head.set_causal_attn(False)
        self._decode(head, [(None, rows[p], p) for p in range(first, len(rows))], [])
        block = [tokens[-1]] + [MASK] * len(guess)
        self._decode(head, [(t, None, len(rows) + k) for k, t in enumerate(block)], range(len(block)))
        for k in range(len(guess)):
            yield head.logits(1 + k, copy=True)

    def check(self, n: int, some: int = 6, seed: int = 0, first: bool = True) -> None:
        """Some of what it has guessed are the most probable tokens, up to noise, of a head that reads all anew."""
        assert len(self.asked) >= some
        for tokens, begin, guess in random.Random(seed).sample(self.asked, some):
            assert not first or begin == 0
            assert len(guess) == n
            for token, logits in zip(guess, self.anew(tokens, begin, guess), strict=True):
                assert logits[token] >= logits.max() - 1e-3 * np.ptp(logits)


@pytest.fixture
def pair() -> Iterator[Callable[..., Pair]]:
    opened: list[Pair] = []

    def make(kind: str, **more: Any) -> Pair:
        opened.append(Pair(kind, **more))
        return opened[-1]

    yield make
    for one in opened:
        one.close()
    gc.collect()


def plain(ctx: Context, prompt: list[int], sampling: Sampling) -> list[int]:
    with BranchStore(ctx) as store:
        return list(store.create(prompt, sampling=sampling).generate(N))


def run(ctx: Context, speculator: Speculator, prompts: list[list[int]], sampling: Sampling) -> list[list[int]]:
    with BranchStore(ctx) as store:
        branches = [store.create(prompt, sampling=sampling) for prompt in prompts]
        got: list[list[int]] = [[] for _ in prompts]
        while going := [i for i, branch in enumerate(branches) if not branch.ended and len(got[i]) < N]:
            for i, tokens in zip(going, speculator.step([branches[i] for i in going]), strict=True):
                got[i] += [token for token in tokens if not ctx.vocab.is_eog(token)]
        return [tokens[:N] for tokens in got]


def near_ties(ctx: Context, prompt: list[int], sampling: Sampling, got: list[int], want: list[int]) -> int:
    """0 if they are equal; 1 if the noise of another batch decides where they part; more is an error."""
    at = next((i for i, (a, b) in enumerate(itertools.zip_longest(got, want)) if a != b), None)
    if at is None:
        return 0
    with BranchStore(ctx) as store:
        logits = np.array(store.create(prompt + want[:at], sampling=sampling).logits)
    assert sampling.temperature == 0
    assert abs(logits[got[at]] - logits[want[at]]) < 1e-3 * np.ptp(logits), at
    return 1


@pytest.mark.parametrize("n_seqs", [1, 4])
@pytest.mark.parametrize("sampling", ["greedy", "warm", pytest.param("penalties", marks=pytest.mark.full)])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_and_guesses(pair: Callable[..., Pair], kind: str, sampling: str, n_seqs: int) -> None:
    """The tokens of plain steps; and guesses that a head gives which reads the whole text at once."""
    rng = random.Random(f"{kind} {sampling} {n_seqs}")
    both = pair(kind, **({"n_rs_seq": rng.choice([0, 3])} if "mtp" in kind else {}))
    n = rng.choice([1, 3, 5])
    how, prompts = SAMPLINGS[sampling], PROMPTS[:n_seqs]
    want = [plain(both.ctx, prompt, how) for prompt in prompts]
    speculator = Speculator(both.ctx, both.head(), n=n)
    got = run(both.ctx, speculator, prompts, how)
    assert sum(near_ties(both.ctx, p, how, a, b) for p, a, b in zip(prompts, got, want, strict=True)) <= 1
    both.check(n)
    if "easy" in kind:
        assert speculator.stats.kept > 0.1 * speculator.stats.tokens


@pytest.mark.parametrize("kind", ["easy mtp", "easy eagle3", "dflash"])
def test_forks_rewinds_and_parks(pair: Callable[..., Pair], kind: str) -> None:
    """More texts than sequences, forked, taken back, parked, read on by plain steps, stopped: never rows of others."""
    both = pair(kind)
    rng = random.Random(kind)
    speculator = Speculator(both.ctx, both.head(both.on(both.ctx, n_seq_max=8)), n=3)
    with BranchStore(both.ctx, auto_park=True) as store:
        branches = [
            store.create(prompt, sampling=Sampling(temperature=0.9, seed=i)) for i, prompt in enumerate(PROMPTS)
        ]
        for _ in range(60):
            branch = rng.choice(branches)
            what = rng.random()
            if branch.ended or (what < 0.15 and len(branches) > 3):
                branches.remove(branch)
                if branch.is_leaf:
                    branch.prune()
            elif what < 0.3:
                branches.append(branch.fork(seed=rng.randrange(1000)))
            elif what < 0.45:
                branch.rewind(rng.randrange(1, 6))
            elif what < 0.55:
                branch.park()
            elif what < 0.65:
                branch.step()
            elif what < 0.75:
                branch.commit(rng.randrange(8, N_VOCAB))
            some = [branch for branch in branches if rng.random() < 0.7 and not branch.ended]
            if rng.random() < 0.1:
                abort_arm(rng.randrange(100))
            with suppress(Aborted):
                speculator.step(some)
            abort_arm(-1)
            if not branches:
                branches.append(store.create(PROMPTS[0], sampling=Sampling(temperature=0.9)))
    both.asked = [asked for asked in both.asked if asked[2]]
    both.check(3, some=40)  # all of them by the whole text


@pytest.mark.parametrize("kind", ["mtp", "eagle3", "dflash"])
def test_rows_that_are_missing(pair: Callable[..., Pair], kind: str) -> None:
    """Nothing is guessed without rows; then from those there are; and none of another time are taken for them."""
    both = pair(kind)
    with BranchStore(both.ctx) as store:
        branch = store.create(PROMPTS[1], sampling=SAMPLINGS["warm"])
        speculator = Speculator(both.ctx, both.head(), n=2)
        speculator.step([branch])  # its rows were not kept
        assert both.asked[-1][2] == []
        for _ in range(20):
            speculator.step([branch])
        both.asked = both.asked[1:]
        assert {begin for _, begin, _ in both.asked} == {len(PROMPTS[1])}
        both.check(2, some=8, first=False)
        # Somebody turns them off for a time.
        both.asked.clear()
        for value in (False, True):
            if kind == "mtp":
                both.ctx.set_embeddings_nextn(value, masked=False)
            else:
                both.ctx.set_embeddings_layer_inp(LAYERS[0], value)
            at = branch.position
            speculator.step([branch])
        for _ in range(12):
            speculator.step([branch])
        both.asked = [asked for asked in both.asked if asked[2] and len(asked[0]) > at + 3]
        assert {begin for _, begin, _ in both.asked} == {at}
        both.check(2, some=6, first=False)
        # Somebody empties the head's memory.
        both.head_ctx.memory.clear()
        both.asked.clear()
        for _ in range(12):
            speculator.step([branch])
        both.asked = [asked for asked in both.asked if asked[2]]
        both.check(2, some=6, first=False)


@pytest.mark.parametrize("kind", ["easy mtp", "easy eagle3", "dflash"])
def test_a_text_outgrows_the_head(pair: Callable[..., Pair], kind: str) -> None:
    both = pair(kind)
    want = plain(both.ctx, PROMPTS[3] * 4, SAMPLINGS["greedy"])
    with both.on(both.ctx, n_ctx=256, n_seq_max=2) as small:
        speculator = Speculator(both.ctx, both.head(small), n=2)
        prompts = [PROMPTS[3] * 4, PROMPTS[2] * 3, PROMPTS[1] * 3]
        got = run(both.ctx, speculator, prompts, SAMPLINGS["greedy"])
        assert near_ties(both.ctx, prompts[0], SAMPLINGS["greedy"], got[0], want) <= 1
        both.asked = [asked for asked in both.asked if len(asked[2]) == 2]  # fewer where there was no room
        both.check(2, some=8, first=False)
        del speculator


@pytest.mark.parametrize("kind", ["easy mtp", "easy eagle3", "dflash"])
def test_a_step_that_fails(pair: Callable[..., Pair], kind: str) -> None:
    """Stopped anywhere, in the target or in the head: no branch has changed, and guesses go on from the right rows."""
    both = pair(kind)
    how = Sampling(temperature=0.9, seed=3)
    want = plain(both.ctx, PROMPTS[1], how)
    with BranchStore(both.ctx) as store:
        speculator = Speculator(both.ctx, both.head(), n=2)
        branch = store.create(PROMPTS[1], sampling=how)
        got: list[int] = []
        stopped = 0
        for i in range(60):
            if i % 2:
                abort_arm(i * 3)
            try:
                got += speculator.step([branch])[0]
            except Aborted:
                stopped += 1
            finally:
                abort_arm(-1)
            assert branch.tokens[len(PROMPTS[1]) :] == got
        assert stopped > 3
    n = min(len(got), len(want))
    assert got[:n] == want[:n]
    both.asked = [asked for asked in both.asked if asked[2]]
    both.check(2, some=20, first=False)


def test_what_it_is_given_is_checked(pair: Callable[..., Pair]) -> None:
    mtp, eagle, dflash = pair("mtp"), pair("eagle3"), pair("dflash")
    with pytest.raises(TypeError, match="no Context"):
        MTP(None)  # type: ignore[arg-type]
    for made, ctx, message in [
        (MTP, eagle.head_ctx, "no prediction head"),
        (Eagle3, dflash.head_ctx, "no eagle3 draft: it is dflash"),
        (DFlash, eagle.ctx, "no dflash draft: it is llama"),
    ]:
        with pytest.raises((InvalidArgument, Unsupported), match=message):
            made(ctx)
    with pytest.raises(InvalidArgument, match="another context"):
        Speculator(eagle.ctx, DFlash(dflash.head_ctx), n=2)
    with lloyal.Model(tiny("mamba2")) as model, context(model) as ctx, eagle.on(ctx) as on_another:
        with pytest.raises(Unsupported, match="does not give the input of layer 1"):
            Speculator(ctx, Eagle3(on_another), n=2)
    with context(mtp.model) as ctx, pytest.raises(InvalidArgument, match="another context"):
        Speculator(ctx, MTP(mtp.head_ctx), n=2)


def test_an_empty_branch(pair: Callable[..., Pair]) -> None:
    both = pair("dflash")
    speculator = Speculator(both.ctx, both.head(), n=BLOCK + 4)
    with BranchStore(both.ctx) as store:
        branch = store.create([9], sampling=SAMPLINGS["warm"])
        for _ in range(5):
            speculator.step([branch])
    assert all(len(guess) == BLOCK - 1 for _, _, guess in both.asked)


@pytest.mark.parametrize("target", ["llama", "lfm2-swa", "lfm2", "qwen35-mtp"])
def test_hidden_rows_are_those_of_the_text(target: str) -> None:
    """After any history of forks, rewinds, parks, guesses and failures; also where a batch is computed in slices."""
    layers = () if target == "qwen35-mtp" else (1, 3)
    with lloyal.Model(tiny(target)) as model:
        for seed in [35, 1]:
            rng = random.Random(seed)
            with context(model, n_ctx=512, n_seq_max=4, n_ubatch=16, n_rs_seq=rng.choice([0, 3])) as ctx:
                keep_hidden(ctx, layers or (model.n_layer,), 1000)
                with BranchStore(ctx, auto_park=True) as store:
                    check_history(model, ctx, store, layers, rng)


def check_history(
    model: lloyal.Model, ctx: Context, store: BranchStore, layers: tuple[int, ...], rng: random.Random
) -> None:
    how = Sampling(temperature=0.9, seed=3)
    branches = [store.create(PROMPTS[rng.randrange(4)], sampling=how)]
    for _ in range(25):
        branch = rng.choice(branches)
        what = rng.randrange(6)
        if rng.random() < 0.2:
            abort_arm(rng.randrange(60))
        with suppress(Aborted):
            if what == 0 and len(branches) < 6:
                branches.append(branch.fork(seed=rng.randrange(100)))
            elif what == 1:
                branch.rewind(rng.randrange(1, 4))
            elif what == 2:
                branch.park()
            elif what == 3:
                store.decode_scatter([(branch, [rng.randrange(8, 60) for _ in range(rng.randrange(1, 40))])])
            elif what == 4:
                store.step([branch for branch in branches if not branch.ended and rng.random() < 0.5])
            elif not branch.ended:
                # The first guess is right, with luck the second.
                twin = branch.fork()
                twin.step()
                guesses = [] if twin.ended else [int(np.argmax(twin.logits)), rng.randrange(8, 60), 9, 10]
                twin.prune()
                steps.draw(ctx, [branch]).verify([[token for token in guesses if not ctx.vocab.is_eog(token)]])
        abort_arm(-1)
        if branch.position > 300:
            branches = [store.create(PROMPTS[0], sampling=how)]
            continue
        first, rows = hidden_rows(branch, layers or (model.n_layer,), 0)
        with context(model) as other:
            want = Pair._hidden(other, branch.tokens, list(layers))
        assert first == 0
        np.testing.assert_allclose(rows, want, atol=1e-4 * np.ptp(want))


def test_texts_side_by_side(pair: Callable[..., Pair]) -> None:
    both = pair("easy mtp")
    how = SAMPLINGS["warm"]
    want = [plain(both.ctx, prompt, dataclasses.replace(how, seed=5 + i)) for i, prompt in enumerate(PROMPTS)]
    speculator = Speculator(both.ctx, both.head())  # as many guesses as pay, sometimes none
    got: list[list[int]] = [[] for _ in PROMPTS]
    for i, token in lloyal.generate_many(both.ctx, PROMPTS, max_tokens=N, sampling=how, draft=speculator):
        got[i].append(token)
    assert got == want
    assert all(begin == 0 for _, begin, guess in both.asked if guess)
    assert speculator.stats.kept > 0


BAD = {
    "layer 9": (Eagle3, {"target_layers": [1, 2, 9]}),
    "layer -1": (Eagle3, {"target_layers": [-1, 1, 2]}),
    "the head's input": (Eagle3, {"target_layers": [1, 2, 4]}),
    "two layers": (Eagle3, {"target_layers": [1, 2]}),
    "no layers": (Eagle3, {"target_layers": None}),
    "a narrow target": (Eagle3, {"target_hidden_size": 32, "fc.weight": (N_EMBD, 96)}),
    "few embeddings": (Eagle3, {"token_embd.weight": (64, N_EMBD)}),
    "other tokens": (Eagle3, {"output.weight": (32, N_EMBD), "d2t": list(range(100, 132))}),
    "negative tokens": (Eagle3, {"output.weight": (32, N_EMBD), "d2t": list(range(-1, 31))}),
    "no block": (DFlash, {"block_size": 0}),
    "block of one": (DFlash, {"block_size": 1}),
    "huge block": (DFlash, {"block_size": 2**32 - 1}),
    "no mask": (DFlash, {"tokenizer.ggml.mask_token_id": None}),
    "mask 500": (DFlash, {"tokenizer.ggml.mask_token_id": 500}),
    "a chain": (DFlash, {"markov_w1.weight": (N_VOCAB, 16), "markov_w2.weight": (N_VOCAB, 16)}),
    "dflash layer -3": (DFlash, {"target_layers": [1, 2, -3]}),
    "dflash other tokens": (DFlash, {"output.weight": (32, N_EMBD), "d2t": list(range(100, 132))}),
    "no eh_proj": (MTP, {"blk.4.nextn.eh_proj.weight": None}),
    "no hnorm": (MTP, {"blk.4.nextn.hnorm.weight": None}),
    "two heads": (MTP, {"nextn_predict_layers": 2}),
}


def refuse_all(folder: str) -> None:
    """In a process of its own: what is not refused may end it."""
    for number, (name, (made, changes)) in enumerate(BAD.items()):
        print(name, flush=True)
        recipe = RECIPES[made.__name__.lower()](0)
        for key, value in changes.items():
            if value is None:
                recipe.keys.pop(key, None)
                recipe.tensors.pop(key, None)
            elif isinstance(value, tuple):
                recipe.random(key, value, 0.1)
            elif key == "d2t":
                recipe.tensors[key] = np.array(value, np.int64)
            else:
                recipe.keys[key] = value
        file = Path(folder) / f"{number}.gguf"
        recipe.write(file)
        with pytest.raises((LoadFailed, InvalidArgument, Unsupported)):
            guess_with(made, file)
    print("all")


def guess_with(made: type[Head], file: Path) -> None:
    with lloyal.Model(file) as draft, lloyal.Model(path("llama")) as other:
        more = {"type": "mtp"} if made is MTP else {}
        with context(draft if made is MTP else other) as ctx, context(draft, parent=ctx, **more) as head:
            speculator = Speculator(ctx, made(head), n=3)
            list(speculator.generate(PROMPTS[0], 10, sampling=SAMPLINGS["greedy"]))


def test_files_that_are_wrong(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])  # behind everything else: lloyal/ there is not compiled
    code = f"import sys; sys.path.append({root!r})\n"
    code += f"from tests.speculative.test_heads import refuse_all; refuse_all({str(tmp_path)!r})"
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stdout[-200:] + run.stderr[-2000:]
    assert run.stdout.endswith("all\n")


def test_outputs_for_all_or_none(pair: Callable[..., Pair]) -> None:
    """llama.cpp would give the first rows of these batches for those that were asked for."""
    for kind in ("eagle3", "dflash", "mtp"):
        both = pair(kind)
        row = np.ones(N_EMBD, np.float32)
        batch = ll.BatchExt(both.head_ctx)
        for i in range(3):
            at = batch.add_token(0, i)
            if kind != "dflash":
                batch.set_embd_token(at, row)
            batch.set_pos(at, i)
        batch.set_output_logits(2, True)
        if kind == "mtp":
            both.head_ctx.set_embeddings_nextn(True, masked=True)
            both.head_ctx.process("decode", batch)
            with pytest.raises(NoLogits, match="all have outputs"):
                both.head_ctx.embeddings_nextn(2)
        else:
            with pytest.raises(InvalidBatch, match="for all or none"):
                both.head_ctx.process("decode", batch)


SOURCE = Path(__file__).parents[2] / "vendor" / "llama.cpp"


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[tuple[int, ...], list[int]]]:
    """What llama.cpp's own speculation guesses, by the text so far."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    libraries = Path(ll.backend.__file__).parents[1] / "lib"
    if compiler is None or not (SOURCE / "common").is_dir() or not list(libraries.glob("libllama-common*")):
        pytest.skip("no compiler, or no source of llama.cpp")
    program = tmp_path_factory.mktemp("upstream") / "upstream"
    headers = [f"-I{SOURCE / folder}" for folder in ("common", "include", "src", "ggml/include", "vendor")]
    subprocess.run(
        [compiler, "-std=c++20", *headers, Path(__file__).with_name("upstream.cpp"), "-o", program, f"-L{libraries}",
         f"-Wl,-rpath,{libraries}", "-lllama-common", "-lllama", "-lggml", "-lggml-base"],
        check=True,
    )  # fmt: skip

    def run(kind: str, n: int, prompts: list[list[int]]) -> dict[tuple[int, ...], list[int]]:
        made, target, draft = KINDS[kind]
        said = subprocess.run(
            [program, f"draft-{made.__name__.lower()}", path(target), "-" if draft == target else path(draft), str(n),
             str(N), *(",".join(map(str, prompt)) for prompt in prompts)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        lines = [line.split("|") for line in said.stdout.splitlines()]
        return {tuple(map(int, text.split())): list(map(int, guess.split())) for text, guess in lines}

    return run


@pytest.mark.full
@pytest.mark.parametrize("n_seqs", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_it_guesses_what_llama_cpp_guesses(
    upstream: Callable[..., dict[tuple[int, ...], list[int]]], pair: Callable[..., Pair], kind: str, n_seqs: int
) -> None:
    n = 4
    theirs = upstream(kind, n, PROMPTS[:n_seqs])
    both = pair(kind, **({"n_rs_seq": n} if "mtp" in kind else {}))
    run(both.ctx, Speculator(both.ctx, both.head(), n=n), PROMPTS[:n_seqs], SAMPLINGS["greedy"])
    mine = {tuple(tokens): guess for tokens, _, guess in both.asked}
    shared = mine.keys() & theirs.keys()
    assert len(shared) > 0.9 * len(mine)
    others = [tokens for tokens in shared if mine[tokens] != theirs[tokens]]
    assert len(others) <= 0.02 * len(shared)  # near ties
    for tokens in others:
        for a, b, logits in zip(mine[tokens], theirs[tokens], both.anew(list(tokens), 0, mine[tokens]), strict=True):
            if a != b:
                assert abs(logits[a] - logits[b]) < 1e-3 * np.ptp(logits)
                break
