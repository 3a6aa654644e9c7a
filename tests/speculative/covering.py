"""Runs that meet every pair of what speculation depends on, and what such a run is.

`design` chooses them: a greedy choice, the same every time, of runs that cover pairs of levels which few runs before
have; combinations that make no sense are left out by `allowed`. `carry_out` writes the texts of a run by plain steps,
each alone, and with a drafter, together, and holds these against those.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

import lloyal
from lloyal import BranchStore, Context, Sampling
from lloyal.speculative import (
    MTP,
    Chain,
    DFlash,
    Drafter,
    DraftModel,
    Eagle3,
    Forced,
    NGram,
    Speculator,
    Suffix,
    Synthetic,
)
from tests.heads import path as head_path
from tests.speculative import reference

HYBRID = ("nano-hybrid", "qwen35", "easy-qwen35")
TINY = ("llama", "easy-llama", "qwen35", "easy-qwen35")
SMALL = ("nano", "nano-hybrid", *TINY)
REAL = ("smollm2-f16", "smollm2-q8_0")
FACTORS: dict[str, tuple[Any, ...]] = {
    "model": (*SMALL, *REAL),
    "drafter": (
        "ngram", "suffix", "draft", "forced", "chain", "synthetic-half", "synthetic", "mtp", "eagle3", "dflash"
    ),
    "n": (1, 2, 3, 4, 6, 8, 12, 16, None),
    "sequences": (1, 2, 4, 8),
    "temperature": (0.0, 0.7, 1.0),
    "noise": ("stream", "keyed", "coupled"),
    "penalties": (False, True),
    "grammar": (False, True),
    "ring": (0, 4),
    "cache": ("default", "exact"),
}  # fmt: skip
LEAST_RUNS = 450
LEAST_REAL = 44
SHORT_RUNS = 20
Levels = Mapping[str, Any]


def allowed(some: Levels) -> bool:
    """Whether a run may have these levels; of those that are not named nothing is said."""
    model, drafter = some.get("model"), some.get("drafter")
    if model is not None:
        if some.get("ring") and model not in HYBRID:
            return False
        if drafter == "mtp" and "qwen35" not in model:
            return False
        if drafter in ("eagle3", "dflash") and model not in ("llama", "easy-llama"):
            return False
        if drafter == "forced" and model in TINY:  # their vocabulary does not tokenize what it writes
            return False
    return not (drafter == "forced" and some.get("grammar") is False)


def may_become_a_run(some: Levels, factors: Mapping[str, Sequence[Any]] = FACTORS) -> bool:
    """Whether there is an allowed run with these levels."""
    if not allowed(some):
        return False
    free = next((factor for factor in factors if factor not in some), None)
    return free is None or any(may_become_a_run({**some, free: level}, factors) for level in factors[free])


def pairs(levels: Levels) -> list[tuple[str, Any, str, Any]]:
    """The pairs of levels, each once: factors in the order of `FACTORS`."""
    named = [(factor, levels[factor]) for factor in FACTORS if factor in levels]
    return [(*a, *b) for a, b in itertools.combinations(named, 2)]


def cover(
    factors: Mapping[str, Sequence[Any]], least: int, before: Iterable[Levels] = (), seed: int = 0
) -> list[Levels]:
    """More runs behind those before: until they are so many, and cover every pair of levels that any run can have."""
    rng = random.Random(seed)
    rows = list(before)
    count = Counter(pair for row in rows for pair in pairs(row))
    wanted = [
        pair
        for (f, g) in itertools.combinations(factors, 2)
        for pair in ((f, a, g, b) for a in factors[f] for b in factors[g])
        if may_become_a_run({f: pair[1], g: pair[3]}, factors)
    ]

    def grown(pair: tuple[str, Any, str, Any]) -> dict[str, Any]:
        row = {pair[0]: pair[1], pair[2]: pair[3]}
        rest = [factor for factor in factors if factor not in row]
        rng.shuffle(rest)
        for factor in rest:
            levels = [level for level in factors[factor] if may_become_a_run({**row, factor: level}, factors)]
            gains = [
                sum(4.0 ** -count[p] for p in pairs({**row, factor: level}) if factor in (p[0], p[2]))
                + 1e-9 * rng.random()
                for level in levels
            ]
            row[factor] = levels[gains.index(max(gains))]
        return row

    while len(rows) < least or not all(count[pair] for pair in wanted):
        fewest = min(count[pair] for pair in wanted)
        missing = [pair for pair in wanted if count[pair] == fewest]
        tries = [grown(rng.choice(missing)) for _ in range(2)]
        row = max(tries, key=lambda row: sum(4.0 ** -count[pair] for pair in pairs(row)))
        count.update(pairs(row))
        rows.append({factor: row[factor] for factor in FACTORS})
    return rows


@dataclasses.dataclass(frozen=True)
class Run:
    """A level of each factor, and a number, which seeds its chance."""

    number: int
    model: str
    drafter: str
    n: int | None
    sequences: int
    temperature: float
    noise: str
    penalties: bool
    grammar: bool
    ring: int
    cache: str

    def __str__(self) -> str:
        parts = [f"{self.number:03}", self.model, self.drafter, f"n{self.n}", f"x{self.sequences}", self.temperature]
        parts += [self.noise, *(name for name in ("penalties", "grammar") if getattr(self, name))]
        return "-".join(map(str, [*parts, f"ring{self.ring}", self.cache]))

    @property
    def real(self) -> bool:
        """Whether it takes a file that this repository does not have."""
        return self.model in REAL

    def sampling(self, text: int, vocab: lloyal.Vocab) -> Sampling:
        """Of one of its texts, which never ends by itself."""
        more: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0} if self.temperature == 1 else {}
        if self.penalties:
            more |= {"repeat_penalty": 1.15, "presence_penalty": 0.3, "dry_multiplier": 0.2}
        return Sampling(
            temperature=self.temperature,
            seed=100 * self.number + text,
            noise="stream" if self.noise == "stream" else "keyed",
            logit_bias={token: -np.inf for token in range(vocab.n_tokens) if vocab.is_eog(token)},
            **more,
        )

    def rules(self) -> str | None:
        """A grammar without an end, that leaves no choice here and there."""
        if not self.grammar:
            return None
        if self.model in TINY:  # its tokens are numbers in base 16
            return "root ::= [0-9] [a-f] [0-9a-f]{1,4} root"
        return r"""root ::= "{\"name\": \"" [a-z]{1,9} "\", \"size\": " [0-9]{1,4} "}\n" root"""


@functools.cache
def design() -> tuple[Run, ...]:
    """All runs: every pair once; then more of those on real models, and more of the others."""
    rows = cover(FACTORS, 1)
    n_real = sum(row["model"] in REAL for row in rows)
    rows = cover(FACTORS | {"model": REAL}, len(rows) + max(0, LEAST_REAL - n_real), rows)
    rows = cover(FACTORS | {"model": SMALL}, LEAST_RUNS, rows)
    return tuple(Run(number, **row) for number, row in enumerate(rows))


@functools.cache
def short_design() -> tuple[Run, ...]:
    """As many pairs as a few runs on small models cover."""
    factors = FACTORS | {"model": SMALL}
    rows = cover(factors, SHORT_RUNS)[:SHORT_RUNS]
    return tuple(Run(number, **row) for number, row in enumerate(rows))


@dataclasses.dataclass
class Outcome:
    """What a run has done."""

    run: Run
    tokens: int = 0
    ties: int = 0  #: tokens that the noise of batches has decided otherwise
    guessed: int = 0
    kept: int = 0
    seconds: float = 0.0


def carry_out(run: Run, n_tokens: int, made: Callable[..., Speculator] = Speculator) -> Outcome:
    """Hold the texts of a speculator against plain ones, each of so many tokens; `AssertionError` where they part.

    Where a near tie parts them, the text goes on from the plain one, behind that token. `made` makes the speculator.
    """
    begin, outcome = time.perf_counter(), Outcome(run)
    with ExitStack() as stack:
        model = stack.enter_context(lloyal.Model(_file(run.model)))
        prompts = _prompts(run, model.vocab)
        room = -(-(max(map(len, prompts)) + n_tokens + 40) // 256) * 256
        common = {"n_rs_seq": run.ring, **_parameters(run)}
        alone = stack.enter_context(Context(model, n_ctx=2 * room, n_seq_max=2, **common))
        want = [_plain(alone, run, i, prompt, n_tokens) for i, prompt in enumerate(prompts)]
        ctx = stack.enter_context(Context(model, n_ctx=run.sequences * room, n_seq_max=run.sequences, **common))
        known = [[*prompt, *text] for prompt, text in zip(prompts, want, strict=True)]
        drafter = _drafter(run, stack, model, ctx, room, known)
        speculator = made(ctx, drafter, n=run.n, accept="coupled" if run.noise == "coupled" else "exact")
        outcome.ties = _compare(run, alone, speculator, prompts, want)
        outcome.guessed, outcome.kept = speculator.stats.guessed, speculator.stats.kept
        outcome.tokens = sum(map(len, want))
        del speculator, drafter
    outcome.seconds = time.perf_counter() - begin
    return outcome


def _compare(run: Run, alone: Context, speculator: Speculator, prompts: list[list[int]], want: list[list[int]]) -> int:
    """How many tokens near ties have decided."""
    ctx, n_ties = speculator.ctx, 0
    n_read = [0] * len(want)
    with BranchStore(ctx) as store:

        def branch_of(i: int) -> lloyal.Branch:
            return store.create(prompts[i], sampling=run.sampling(i, ctx.vocab), grammar=run.rules())

        branches = [branch_of(i) for i in range(len(want))]
        while going := [i for i, text in enumerate(want) if n_read[i] < len(text)]:
            for i, tokens in zip(going, speculator.step([branches[i] for i in going]), strict=True):
                for token in tokens:
                    at = n_read[i]
                    if at == len(want[i]):
                        break
                    n_read[i] += 1
                    if token == want[i][at]:
                        continue
                    _check_tie(run, alone, i, prompts[i], [*want[i][:at], token], want[i])
                    n_ties += 1
                    branches[i].prune()
                    branches[i] = branch_of(i)
                    for read in want[i][: at + 1]:
                        branches[i].sample()  # as much chance as plain steps have taken
                        branches[i].commit(read)
                    break
            for i in going:
                if n_read[i] == len(want[i]) and not branches[i].pruned:
                    branches[i].prune()
    return n_ties


def _check_tie(run: Run, alone: Context, i: int, prompt: list[int], got: list[int], want: list[int]) -> None:
    alone.memory.clear()
    others = len(reference.NEAR_TIES)
    how = run.sampling(i, alone.vocab)
    try:
        reference.check_same(alone, prompt, how, run.rules(), got, want[: len(got)])  # type: ignore[arg-type]
    except AssertionError:  # by luck there may be no noise at this very token, while all before it have some
        if not run.real or got[-1] not in _picks(run, alone, how, prompt, want[: len(got) - 1]):
            raise
    del reference.NEAR_TIES[others:]  # counted here


def _picks(run: Run, alone: Context, how: Sampling, prompt: list[int], read: list[int]) -> set[int | None]:
    """What a branch may pick behind these tokens, with the most noise that any of the last ones has."""
    alone.memory.clear()
    with BranchStore(alone) as store:
        branch, other = store.create(prompt, sampling=how, grammar=run.rules()), store.create(prompt, sampling=how)
        noise, step = 0.0, 4
        for i, token in enumerate(read, 1):
            assert branch.step() == token
            if i % step == 0 and i > len(read) - 10 * step:
                other.prefill([*prompt, *read][other.position : len(prompt) + i])
                noise = max(noise, 3 * float(np.abs(other.logits - branch.logits).max()))
        chain = how.build(alone.vocab, grammar=run.rules(), history=branch.tokens)
        chain.set_state(branch._sampler_state_native())
        rng, alone_logits = np.random.default_rng(len(read)), np.array(branch.logits)
        return {
            chain.clone().apply(alone_logits + rng.uniform(-noise, noise, alone_logits.size).astype(np.float32)).token
            for _ in range(500)
        }


def _plain(ctx: Context, run: Run, i: int, prompt: list[int], n_tokens: int) -> list[int]:
    ctx.memory.clear()  # the same cells for all
    with BranchStore(ctx) as store:
        text = list(store.create(prompt, sampling=run.sampling(i, ctx.vocab), grammar=run.rules()).generate(n_tokens))
    assert len(text) == n_tokens
    return text


def _parameters(run: Run) -> dict[str, Any]:
    threads = 2 if run.real else 1
    exact = {"type_k": "f32", "type_v": "f32", "flash_attn": "off"} if run.cache == "exact" else {}
    return {"n_threads": threads, "n_threads_batch": threads, **exact}


def _file(model: str) -> Path:
    if model in REAL:
        return Path(os.environ["LLOYAL_TEST_REAL"]) / f"SmolLM2-135M-Instruct.{model.split('-')[1].upper()}.gguf"
    if model in TINY:
        return head_path({"qwen35": "mtp", "easy-qwen35": "easy-mtp"}.get(model, model))
    return Path(lloyal.models.path(model))


def _draft_file(model: str) -> Path:
    """Of a small model with the same vocabulary."""
    if model in REAL:
        return Path(os.environ["LLOYAL_TEST_REAL"]) / "SmolLM2-135M-Instruct.Q4_0.gguf"
    if model in TINY:
        return head_path("llama" if model == "llama" else "easy-llama")
    return Path(lloyal.models.path("nano-draft"))


CODE = (
    'def fibonacci(n):\n    """Return the n-th number."""\n',
    "class A:\n    def __init__(self, a, b):\n",
    "import os\n\n",
    "x = 1\ny = 2\n",
    "for i in range(10):\n    print(i)\nfor i in range(10):\n",
    "def area(width, height):\n",
    '{"name": "a", "size": 1}\n{"name": "b", "size": 20}\n',
    "a = [1, 2, 3]\nb = [1, 2, 3]\nc = [1,",
)


def _prompts(run: Run, vocab: lloyal.Vocab) -> list[list[int]]:
    if run.model in TINY:
        rng = random.Random(run.number)
        return [[i, *(rng.randrange(8, 120) for _ in range(rng.randrange(8, 40)))] for i in range(run.sequences)]
    return [vocab.tokenize(CODE[(run.number + i) % len(CODE)]) for i in range(run.sequences)]


def _drafter(
    run: Run, stack: ExitStack, model: lloyal.Model, ctx: Context, room: int, known: list[list[int]]
) -> Drafter:
    def context(model: lloyal.Model, **more: Any) -> Context:
        size = {"n_ctx": run.sequences * room, "n_seq_max": run.sequences}
        return stack.enter_context(Context(model, **size, **_parameters(run), **more))

    def opened(file: Path) -> lloyal.Model:
        return stack.enter_context(lloyal.Model(file))

    def following(heard: list[int]) -> list[int]:
        return next((text[len(heard) :] for text in known if text[: len(heard)] == heard), [])

    easy = "easy-" if run.model.startswith("easy") else ""
    makers: dict[str, Callable[[], Drafter]] = {
        "ngram": lambda: NGram(3, 1),
        "suffix": lambda: Suffix(least=0.2),
        "draft": lambda: DraftModel(context(opened(_draft_file(run.model)))),
        "forced": Forced,
        "chain": lambda: Chain(Forced(), NGram()) if run.grammar else Chain(NGram(), Suffix()),
        "synthetic-half": lambda: Synthetic(following, 0.5, seed=run.number),
        "synthetic": lambda: Synthetic(following, 1.0),
        "mtp": lambda: MTP(context(model, type="mtp", parent=ctx)),
        "eagle3": lambda: Eagle3(context(opened(head_path(easy + "eagle3")), parent=ctx)),
        "dflash": lambda: DFlash(context(opened(head_path("dflash")), parent=ctx)),
    }
    return makers[run.drafter]()


def table(outcomes: Sequence[Outcome]) -> str:
    """Runs, tokens, near ties and guesses by model, and by what else decides about them."""
    lines = [f"{'':16} {'runs':>5} {'tokens':>9} {'near ties':>9} {'share':>8} {'guessed':>9} {'kept':>9} {'s':>7}"]
    groups: list[tuple[str, list[Outcome]]] = [("all", list(outcomes))]
    for factor in ("model", "drafter", "temperature", "noise", "cache"):
        for level in FACTORS[factor]:
            name = f"temperature {level}" if factor == "temperature" else level
            groups.append((name, [one for one in outcomes if getattr(one.run, factor) == level]))
    for name, some in groups:
        if some:
            tokens, ties = sum(one.tokens for one in some), sum(one.ties for one in some)
            guessed, kept = sum(one.guessed for one in some), sum(one.kept for one in some)
            seconds = sum(one.seconds for one in some)
            lines.append(
                f"{name:16} {len(some):5} {tokens:9} {ties:9} {ties / tokens:8.4%} {guessed:9} {kept:9} {seconds:7.1f}"
            )
    return "\n".join(lines)
