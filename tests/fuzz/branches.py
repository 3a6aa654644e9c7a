"""Branches at random: forks, steps, failures, prunes, parks, restores, rewinds, on every kind of memory.

    python -P tests/fuzz/branches.py --seconds 600 --seed 7
    python -P tests/fuzz/branches.py --config gemma3        only this model
    python -P tests/fuzz/branches.py --history 12 --seed 7  that one again

The oracle of a branch is a list of tokens, and a chain of samplers that is handed the branch's logits. After every
operation all branches must have the tokens, sampler states and numbers of their oracles; logits are held against the
tokens read again alone. After an exception nothing may have changed. The exit code is 1 if something is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import faulthandler
import itertools
import math
import random
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[2]))

import numpy as np

import lloyal
from lloyal import BranchStore, Sampling
from lloyal.branch import Branch, BranchCheckpoint
from lloyal.errors import Aborted, CacheFull, DecodeFailed, InvalidBatch, LloyalError, NoLease, OutOfDeviceMemory
from lloyal.native import step as native_step
from lloyal.native.checkpoint import abort_arm, fault_arm
from lloyal.speculative import Chain, Forced, NGram, Speculator, Suffix
from tests.fuzz.branches_twin import Twin, with_draws
from tests.fuzz.state_config import MODELS, Config, loaded
from tests.fuzz.state_oracle import Oracle
from tests.models import N_VOCAB

MOST = 14  # branches of a history


class Wrong(Exception):
    """Something is not what it must be."""


class History:
    """One context, its store, and the twins of its branches."""

    def __init__(self, seed: str, number: int, model: str | None) -> None:
        self.rng = rng = random.Random(f"{seed} {number}")
        self.config = dataclasses.replace(Config.random(rng, model), adapters=False, second=None)
        self.model = loaded(self.config.model)
        self.ctx = self.config.context(self.model)
        self.auto_park = rng.random() < 0.6
        self.store = BranchStore(
            self.ctx, auto_park=self.auto_park, park_where=rng.choice(("device", "device", "host"))
        )
        self.twins: dict[Branch, Twin] = {}
        self.kept: list[tuple[BranchCheckpoint, Twin, np.ndarray | None]] = []
        self.oracle = Oracle(self.config, self.model, [])
        self.oracle.calibrate()
        self.draft_rng = random.Random(f"{seed} {number} drafts")
        few = Suffix(least=0.1, tokens=self.draft_rng.choice((60, 5000)))
        self.speculator = Speculator(self.ctx, self.draft_rng.choice((few, Chain(few, NGram(2, 1), Forced()))))
        self.raw = 0  # sequences that raw calls hold
        self.log: list[str] = []
        self.counts: Counter[str] = Counter()

    def close(self) -> None:
        for kept, _, _ in self.kept:
            kept.release()
        self.store.close()
        self.oracle.close()
        self.ctx.close()

    # Looking

    def row(self, branch: Branch) -> np.ndarray | None:
        try:
            return branch.logits
        except lloyal.errors.NoLogits:
            return None

    def look(self, branch: Branch) -> tuple[Any, ...]:
        info = branch._info_native()
        row = self.row(branch)
        return (
            repr(branch._tokens_native()), info["ended"], info["nll"], info["n"], info["sampling_nll"],
            info["sampling_n"], branch._sampler_state_native(), None if row is None else row.tobytes(),
        )  # fmt: skip

    def check(self, some: int = 2) -> None:
        if len(self.store) != len(self.twins):
            raise Wrong(f"the store has {len(self.store)} branches, there must be {len(self.twins)}")
        for branch, twin in self.twins.items():
            if branch.tokens != twin.tokens:
                raise Wrong(f"{branch}: tokens {branch.tokens}, not {twin.tokens}")
            if branch.ended != twin.ended:
                raise Wrong(f"{branch}: ended is {branch.ended}")
            if branch._sampler_state_native() != twin.sampler.state():
                raise Wrong(f"{branch}: its sampler is not where it must be")
            got = branch.log_probs
            want = [value for value, accepted in zip(twin.log_probs, twin.accepted, strict=True) if accepted]
            if len(got) != len(want) or not np.allclose(got, want, atol=1e-6, equal_nan=True):
                raise Wrong(f"{branch}: log-probabilities {got}, not {want}")
            counted = [value for value in want if not math.isnan(value)]
            perplexity = math.exp(-sum(counted) / len(counted)) if counted else math.inf
            if not math.isclose(branch.perplexity, perplexity, rel_tol=1e-6):
                raise Wrong(f"{branch}: perplexity {branch.perplexity}, not {perplexity}")
        chosen = list(self.twins)
        self.rng.shuffle(chosen)
        for branch in chosen[:some]:
            self.check_logits(branch)
        if self.ctx.memory.seq_pos_max(0) < 0:
            self.raw = 0  # a stopped computation may have cost it its state
        seats = {info["seat"] for b in self.twins if (info := b._info_native())["seq"] >= 0}
        seats |= {info["seat"] for k, _, _ in self.kept if (info := k._info_native())["seq"] >= 0}
        if self.store.available + len(seats) + self.raw != self.config.n_seq_max:
            raise Wrong(
                f"{self.store.available} sequences are available beside {len(seats)} seats and {self.raw} others"
            )

    def check_logits(self, branch: Branch) -> None:
        row, tokens = self.row(branch), self.twins[branch].tokens
        if row is None or not tokens or branch in self.changed_rows:
            return
        recipe = tuple(("t", i, token, 0) for i, token in enumerate(tokens))
        if why := self.oracle.far(row[None, :], recipe):
            raise Wrong(f"{branch}: {why}")
        self.counts["rows compared"] += 1

    changed_rows: set[Branch]

    # Doing

    def attempt(self, what: str, run: Callable[[], Any]) -> Any:
        """`run`; after an exception of ours everything must be as it was, and None comes back."""
        self.log.append(what)
        self.counts[what.split("(")[0]] += 1
        before = {branch: self.look(branch) for branch in self.twins}
        fault, stop = self.rng.random() < 0.08, self.rng.random() < 0.08
        if fault:
            fault_arm(self.rng.randrange(6))
            self.log.append("  with a fault")
        if stop:
            abort_arm(int(2 ** self.rng.uniform(0, 10)))
            self.log.append("  stopped at some node")
        try:
            return run()
        except (Aborted, NoLease, CacheFull, InvalidBatch, OutOfDeviceMemory, DecodeFailed) as error:
            if isinstance(error, (OutOfDeviceMemory, DecodeFailed)) and not fault and not stop:
                raise
            self.log.append(f"  {type(error).__name__}: {error}")
            if isinstance(error, NoLease) and self.auto_park and not fault:
                held = {info["seat"] for k, _, _ in self.kept if (info := k._info_native())["seq"] >= 0}
                if len(held) + self.raw < self.config.n_seq_max:
                    raise Wrong(f"no sequence though others could be parked: {error}") from error
            self.counts[type(error).__name__] += 1
            fault_arm(-1)
            abort_arm(-1)
            for branch, looked in before.items():
                if self.look(branch) != looked:
                    raise Wrong(f"{branch} changed though the call failed: {error}") from error
            return None
        finally:
            fault_arm(-1)
            abort_arm(-1)

    def some(self, branches: list[Branch]) -> list[Branch]:
        return self.rng.sample(branches, self.rng.randint(1, len(branches))) if branches else []

    def tokens(self, n: int) -> list[int]:
        return [self.rng.randrange(N_VOCAB - 8) for _ in range(n)]

    def sampling(self) -> Sampling:
        rng = self.rng
        if rng.random() < 0.3:
            return Sampling(temperature=0)
        return Sampling(
            temperature=rng.choice((0.7, 1.3)), top_k=rng.choice((0, 5, 40)), top_p=rng.choice((1.0, 0.9)),
            repeat_penalty=rng.choice((1.0, 1.2)), repeat_last_n=rng.choice((4, 16)),
            xtc_probability=rng.choice((0.0, 0.5)),
            dry_multiplier=rng.choice((0.0, 0.0, 0.7)), seed=rng.randrange(1000),
        )  # fmt: skip

    def op_create(self) -> None:
        if len(self.twins) >= MOST:
            return
        prompt, sampling = self.tokens(self.rng.choice((0, 1, 5, 20, 60, 100))), self.sampling()
        branch = self.attempt(f"create({len(prompt)})", lambda: self.store.create(prompt, sampling=sampling))
        if branch is not None:
            twin = Twin([], [], [], sampling, prompt, sampling.build(self.ctx.vocab, history=prompt), {})
            twin.read(prompt, None, False)
            self.twins[branch] = twin

    def op_fork(self) -> None:
        if not self.twins or len(self.twins) >= MOST:
            return
        source = self.rng.choice(list(self.twins))
        seed = self.rng.choice((None, None, self.rng.randrange(1000)))
        forks = self.attempt(f"fork({source.name})", lambda: source.fork(self.rng.randint(1, 3), seed=seed))
        for i, fork in enumerate(forks or ()):
            twin = self.twins[source].copy()
            if seed is not None:
                sampling = dataclasses.replace(twin.sampling, seed=seed + i)
                self.pending_seed[fork] = twin.sampling = sampling
            self.twins[fork] = twin
            if source in self.pending_seed and seed is None:
                self.pending_seed[fork] = self.pending_seed[source]
            if source in self.changed_rows:
                self.changed_rows.add(fork)

    pending_seed: dict[Branch, Sampling]  # for the random generator, before the next pick

    def draw_from_seed(self, branch: Branch) -> None:
        """A fork's seed counts from its first change of the sampler on."""
        sampling, twin = self.pending_seed.pop(branch, None), self.twins[branch]
        if sampling is not None and twin.sampling.temperature > 0:
            twin.sampler = with_draws(twin.sampler, sampling.build(self.ctx.vocab).state())

    def op_step(self) -> None:
        able = [b for b, twin in self.twins.items() if not twin.ended and self.row(b) is not None]
        chosen = self.some(able)
        if not chosen:
            return
        rows = {branch: np.array(branch.logits) for branch in chosen}
        got = self.attempt(f"step({[b.name for b in chosen]})", lambda: self.store.step(chosen))
        for branch, token in zip(chosen, got or (), strict=False):
            twin = self.twins[branch]
            self.draw_from_seed(branch)
            want = twin.pick(rows[branch])
            if want != token:
                raise Wrong(f"{branch} picked {token}, its twin {want}")
            if self.ctx.vocab.is_eog(token):
                twin.ended = True
            else:
                twin.passed = None
                twin.read([token], rows[branch], True)
                self.changed_rows.discard(branch)

    def op_speculate(self) -> None:
        """Guesses, right up to some point, as a fork has found them by steps; or those of a drafter."""
        able = [b for b, t in self.twins.items() if not t.ended and t.passed is None and self.row(b) is not None]
        chosen = [b for b in self.some(able) if b not in self.pending_seed and b not in self.changed_rows][:3]
        ways: dict[Branch, tuple[list[int], list[np.ndarray]]] = {}
        for branch in chosen:
            fork, tokens, rows = branch.fork(), [], []
            self.twins[fork] = self.twins[branch].copy()  # counted while it lives
            for _ in range(self.rng.choice((1, 2, 3, 5, 9))):
                row = np.array(fork.logits)
                if (token := self.attempt("step", lambda fork=fork: fork.step())) is None:
                    break
                tokens.append(token)
                rows.append(row)
                if fork.ended:
                    break
            fork.prune()
            self.forget([fork])
            if tokens:
                ways[branch] = (tokens, rows)
        guesses = []
        for tokens, _ in ways.values():
            guess = tokens[1:]
            if guess and self.rng.random() < 0.6:
                guess[self.rng.randrange(len(guess))] = self.rng.randrange(N_VOCAB - 8)
            guesses.append(guess)
        if not ways:
            return
        names = [branch.name for branch in ways]
        drafted = self.draft_rng.random() < 0.3

        def run() -> list[list[int]]:
            made: list[list[int]] = []
            if drafted:  # not further than what is known to be right
                self.speculator.n = min(len(tokens) for tokens, _ in ways.values()) - 1
                return self.speculator.step(list(ways))

            def some(group: list[Branch]) -> None:
                begin = len(made)
                made.extend(native_step.draw(self.ctx, group).verify(guesses[begin : begin + len(group)]))

            self.store._in_groups(list(ways), some)
            return made

        got = self.attempt(f"speculate({names}, {'drafted' if drafted else guesses})", run)
        for (branch, (tokens, rows)), guess, read in zip(ways.items(), guesses, got or (), strict=False):
            twin = self.twins[branch]
            right = 1 + next((i for i, (a, b) in enumerate(zip(tokens[1:], guess, strict=True)) if a != b), len(guess))
            right = max(1, len(read)) if drafted else right
            if branch.ended:
                if read != tokens[:1]:
                    raise Wrong(f"{branch} ended with {read}, its fork with {tokens}")
                twin.pick(rows[0])
                twin.ended = True
                continue
            if self.ctx.vocab.is_eog(tokens[right - 1]):
                right -= 1
            self.counts["guessed rows"] += right
            if read != tokens[: len(read)] or len(read) > right:
                raise Wrong(f"{branch} read {read}, its fork {tokens}, the guess was {guess}")
            # A draw so close that another batch decides it otherwise, or a fault that cost a checkpoint. Windows take
            # guesses of one micro-batch only.
            if len(read) < right and "window" not in self.ctx.memory.kind:
                self.counts["near ties"] += 1
                if self.counts["near ties"] > 3 + 0.02 * self.counts["guessed rows"]:
                    raise Wrong(f"{branch} read {read}, its fork {tokens}, the guess was {guess}; that is too often")
            for token, row in zip(read, rows, strict=False):
                twin.pick(row)
                twin.read([token], row, True)
            mine = branch.log_probs[-len(read) :]
            # Rows at once and one by one round otherwise; in quantized caches more so (fine in f32, 0.094 in q4_0).
            coarse = "q4_0" in (self.config.type_k, self.config.type_v)
            if not np.allclose(mine, twin.log_probs[-len(read) :], atol=0.2 if coarse else 0.05):
                raise Wrong(f"{branch}: log-probabilities {mine}, not {twin.log_probs[-len(read) :]}")
            twin.log_probs[-len(read) :] = mine

    def read(self, name: str, items: list[tuple[Branch, list[int]]], run: Callable[[], Any], accept: bool) -> None:
        rows = {branch: self.row(branch) for branch, _ in items}
        done = self.attempt(f"{name}({[(b.name, len(t)) for b, t in items]})", lambda: (run(), True))
        if done:
            for branch, tokens in items:
                if accept:
                    self.draw_from_seed(branch)
                twin = self.twins[branch]
                row = rows[branch] if accept or (tokens and twin.passed == tokens[0]) else None
                if tokens and twin.passed == tokens[0]:
                    row = self.passed_rows[branch]
                twin.read(tokens, row, accept)
                if tokens:
                    self.changed_rows.discard(branch)

    passed_rows: dict[Branch, np.ndarray | None]

    def op_commit(self) -> None:
        items = [(branch, self.tokens(1)) for branch in self.some(list(self.twins))]
        self.read("commit", items, lambda: self.store.commit([(b, t[0]) for b, t in items]), True)

    def op_decode_each(self) -> None:
        items = [(branch, self.tokens(1)) for branch in self.some(list(self.twins))]
        self.read("decode_each", items, lambda: self.store.decode_each([(b, t[0]) for b, t in items]), False)

    def op_decode_scatter(self) -> None:
        items = [(b, self.tokens(self.rng.choice((0, 1, 3, 20, 40)))) for b in self.some(list(self.twins))]
        self.read("decode_scatter", items, lambda: self.store.decode_scatter(items), False)

    def op_sample(self) -> None:
        able = [b for b in self.twins if self.row(b) is not None]
        if able:
            branch = self.rng.choice(able)
            row = np.array(branch.logits)
            got = self.attempt(f"sample({branch.name})", branch.sample)
            self.draw_from_seed(branch)
            want = self.twins[branch].pick(row)
            if got != want:
                raise Wrong(f"{branch} picked {got}, its twin {want}")

    def op_accept(self) -> None:
        if self.twins:
            branch, token = self.rng.choice(list(self.twins)), self.tokens(1)[0]
            if self.twins[branch].passed is None:
                row = self.row(branch)
                self.attempt(f"accept({branch.name})", lambda: branch.accept(token))
                self.draw_from_seed(branch)
                self.twins[branch].accept(token)
                self.twins[branch].passed = token
                self.passed_rows[branch] = None if row is None else np.array(row)
                self.read("decode_each", [(branch, [token])], lambda: self.store.decode_each([(branch, token)]), False)
                if self.twins[branch].passed is not None:  # it was not read: forget the branch, its twin knows too much
                    self.forget(list(branch.subtree()))
                    branch.prune_subtree()

    def forget(self, branches: list[Branch]) -> None:
        for branch in branches:
            self.twins.pop(branch, None)
            self.pending_seed.pop(branch, None)
            self.changed_rows.discard(branch)

    def op_prune(self) -> None:
        if self.twins:
            branch = self.rng.choice(list(self.twins))
            if not branch.is_leaf and self.rng.random() < 0.3:
                with contextlib.suppress(lloyal.errors.BranchHasChildren):
                    branch.prune()
                    raise Wrong(f"{branch} was pruned though it has forks")
                return
            below = list(branch.subtree())
            self.attempt(f"prune_subtree({branch.name})", branch.prune_subtree)
            self.forget(below)

    def op_detach(self) -> None:
        if self.twins:
            self.attempt("detach", self.rng.choice(list(self.twins)).detach)

    def op_retain_only(self) -> None:
        if self.twins and self.rng.random() < 0.2:
            winner = self.rng.choice(list(self.twins))
            self.attempt(f"retain_only({winner.name})", lambda: self.store.retain_only(winner))
            self.forget([branch for branch in self.twins if branch is not winner])

    def op_checkpoint(self) -> None:
        if self.twins and len(self.kept) < 4:
            branch = self.rng.choice(list(self.twins))
            if branch in self.pending_seed or branch in self.changed_rows:
                return
            where = self.rng.choice(("device", "device", "host", "cells"))
            kept = self.attempt(f"checkpoint({branch.name}, {where})", lambda: branch.checkpoint(where))
            if kept is not None:
                row = self.row(branch)
                self.kept.append((kept, self.twins[branch].copy(), None if row is None else np.array(row)))

    def op_restore(self) -> None:
        if self.twins and self.kept:
            branch = self.rng.choice(list(self.twins))
            kept, twin, row = self.rng.choice(self.kept)
            self.attempt(f"restore({branch.name})", lambda: branch.restore(kept))
            self.twins[branch] = twin.copy()
            self.pending_seed.pop(branch, None)
            self.changed_rows.discard(branch)
            got = self.row(branch)
            if (got is None) != (row is None) or (got is not None and not np.array_equal(got, row)):
                raise Wrong(f"{branch}: other logits than when it was kept")

    def op_release(self) -> None:
        if self.kept:
            kept, _, _ = self.kept.pop(self.rng.randrange(len(self.kept)))
            self.attempt("release", kept.release)

    def op_rewind(self) -> None:
        able = [b for b, twin in self.twins.items() if twin.tokens and b not in self.pending_seed]
        if able:
            branch = self.rng.choice(able)
            twin = self.twins[branch]
            n = min(len(twin.tokens), self.rng.choice((1, 1, 2, 5, 30, 1000)))
            if self.attempt(f"rewind({branch.name}, {n})", lambda: (branch.rewind(n), True)):
                del twin.tokens[-n:], twin.accepted[-n:], twin.log_probs[-n:]
                twin.prompt = twin.prompt[: len(twin.tokens)]
                if twin.sampling.temperature > 0:
                    built = twin.sampling.build(self.ctx.vocab, history=twin.heard)
                    twin.sampler = with_draws(built, twin.sampler.state())
                else:
                    twin.sampler = twin.sampling.build(self.ctx.vocab, history=twin.heard)
                twin.ended, twin.passed = False, None
                self.changed_rows.discard(branch)

    def op_park(self) -> None:
        if self.twins:
            branch = self.rng.choice(list(self.twins))
            self.attempt(f"park({branch.name})", branch.park)

    def op_resume(self) -> None:
        if self.twins:
            branch = self.rng.choice(list(self.twins))
            self.attempt(f"resume({branch.name})", branch.resume)

    def op_set_sampling(self) -> None:
        able = [b for b in self.twins if b not in self.pending_seed]
        if able:
            branch, sampling = self.rng.choice(able), self.sampling()
            twin = self.twins[branch]
            same_seed = sampling.seed is None or sampling.seed == twin.sampling.seed
            self.attempt(f"set_sampling({branch.name})", lambda: branch.set_sampling(sampling))
            if sampling != twin.sampling:
                built = sampling.build(self.ctx.vocab, history=twin.heard)
                twin.sampler = with_draws(built, twin.sampler.state()) if same_seed else built
            twin.sampling = sampling

    def op_set_bias(self) -> None:
        if self.twins:
            branch = self.rng.choice(list(self.twins))
            bias = {token: self.rng.choice((-math.inf, -2.0, 3.0)) for token in self.tokens(self.rng.randint(0, 4))}
            self.attempt(f"set_bias({branch.name})", lambda: branch.set_bias(bias))
            self.twins[branch].bias = bias

    def op_set_logits(self) -> None:
        if self.twins:
            branch = self.rng.choice(list(self.twins))
            row = np.random.default_rng(self.rng.randrange(2**32)).normal(0, 2, N_VOCAB).astype(np.float32)
            self.attempt(f"set_logits({branch.name})", lambda: branch.set_logits(row))
            self.changed_rows.add(branch)

    def op_raw(self) -> None:
        """Somebody beside the store, and somebody who meddles with its sequences."""
        memory = self.ctx.memory
        what = self.rng.choice(("decode", "clear", "compact", "meddle"))
        if what == "decode" and self.raw == 0 and self.store.available > 1:
            batch = lloyal.Batch()
            batch.extend(self.tokens(3), 0, 0)
            with contextlib.suppress(LloyalError):
                if memory.seq_pos_max(0) < 0:
                    self.ctx.decode(batch)
                    self.raw = 1
            self.log.append("raw decode")
        elif what == "clear" and self.rng.random() < 0.3:
            memory.clear()
            self.raw = 0
            self.log.append("clear")
        elif what == "compact":
            with contextlib.suppress(LloyalError):
                self.ctx.compact()
            self.log.append("compact")
        elif what == "meddle" and self.rng.random() < 0.3:
            seq = self.rng.randrange(self.config.n_seq_max)
            with contextlib.suppress(LloyalError):
                memory.seq_rm(seq, self.rng.choice((-1, 3)), -1)
            self.raw = 0 if seq == 0 and memory.seq_pos_max(0) < 0 else self.raw
            self.log.append(f"seq_rm({seq})")

    OPS = (
        ("create", 3), ("fork", 5), ("step", 10), ("commit", 3), ("decode_each", 2), ("decode_scatter", 4),
        ("sample", 2), ("accept", 2), ("prune", 2), ("detach", 1), ("retain_only", 1), ("checkpoint", 2),
        ("restore", 2), ("release", 1), ("rewind", 3), ("park", 2), ("resume", 1), ("set_sampling", 1),
        ("set_bias", 1), ("set_logits", 1), ("raw", 2), ("speculate", 5),
    )  # fmt: skip

    def run(self, steps: int) -> None:
        self.changed_rows, self.pending_seed, self.passed_rows = set(), {}, {}
        names, weights = zip(*self.OPS, strict=True)
        for _ in range(steps):
            getattr(self, "op_" + self.rng.choices(names, weights)[0])()
            self.check()
        self.check(some=MOST)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", default=str(datetime.date.today()), help="default: the day")
    parser.add_argument("--config", choices=list(MODELS))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--most", type=int, help="histories")
    parser.add_argument("--history", type=int, help="only this one")
    parser.add_argument("--inside", action="store_true", help="in this process: its death is the end")
    arguments = parser.parse_args()
    start = time.monotonic()
    if not arguments.inside:
        done = subprocess.run([sys.executable, "-P", __file__, *sys.argv[1:], "--inside"], check=False)
        if done.returncode not in (0, 1):
            print(f"# died with {done.returncode}, in the history that was named last")
        if done.returncode:
            print(f"# found after {time.monotonic() - start:.1f} s")
        return int(done.returncode != 0)
    faulthandler.enable()
    counts = Counter[str]()
    numbers = itertools.count() if arguments.history is None else iter([arguments.history])
    for number in numbers:
        if time.monotonic() - start > arguments.seconds or number == arguments.most:
            break
        history = History(arguments.seed, number, arguments.config)
        print(f"history {number} of seed {arguments.seed}: {history.config}", file=sys.stderr, flush=True)
        try:
            history.run(arguments.steps)
        except Exception as error:
            print("\n".join(history.log[-40:]))
            print(f"# wrong in history {number} of seed {arguments.seed}: {type(error).__name__}: {error}")
            print(f"# {history.config} auto_park={history.auto_park}", flush=True)
            if not isinstance(error, Wrong):
                traceback.print_exc()
            return 1
        finally:
            counts += history.counts
            history.close()
    print(f"{sum(n for name, n in counts.items() if name[0].islower())} operations: {dict(counts)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
