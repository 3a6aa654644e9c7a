"""Generating beyond one prompt: what a sequence waits for, grammars, stop strings, samplers of one's own."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import numpy as np
import pytest

import lloyal
from lloyal.errors import InvalidArgument, InvalidGrammar, UnknownParameter
from lloyal.llama import Context, Sampler
from lloyal.sampling import Sampling
from tests.decode import distance

Make = Callable[..., lloyal.Context]
GREEDY = Sampling(temperature=0)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "size": {"type": "integer", "minimum": 0, "maximum": 999},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "size", "tags"],
    "additionalProperties": False,
}


class Histories:
    """Texts, generations, forks, checkpoints in random order; the oracle is the list of tokens of each sequence."""

    def __init__(self, ctx: lloyal.Context, seed: int) -> None:
        self.ctx = ctx
        self.rng = random.Random(seed)
        # All tokens, the one that was picked and not decoded included, and whether there is one.
        self.seqs: list[tuple[list[int], bool]] = [([], False) for _ in range(3)]
        self.saved: list[tuple[lloyal.Checkpoint, tuple[list[int], bool]]] = []

    def text(self, seq: int) -> None:
        tokens, _ = self.seqs[seq]
        said = self.rng.choice(["def f(x):\n", " return", "import os\n", "x = 1\n"])
        new = self.ctx.vocab.tokenize(said, add_special=not tokens)
        if self.rng.random() < 0.5:
            lloyal.prefill(self.ctx, said, seq_id=seq)
            self.seqs[seq] = ([*tokens, *new], False)
        else:
            made = lloyal.generate(
                self.ctx, said, max_tokens=self.rng.randint(1, 4), sampling=Sampling(seed=3), seq_id=seq
            )
            for i, _ in enumerate(made):
                if i == 2 and self.rng.random() < 0.5:
                    break
            self.seqs[seq] = ([*tokens, *new, *made.tokens], made.stop_reason != "end")

    def tokens(self, seq: int) -> None:
        tokens, waiting = self.seqs[seq]
        begin = tokens[-1:] if waiting else []
        lloyal.prefill(self.ctx, [*begin, 7, 8], seq_id=seq)
        self.seqs[seq] = ([*tokens, 7, 8], False)

    def trim(self, seq: int) -> None:
        tokens, waiting = self.seqs[seq]
        n = len(tokens) - waiting
        keep = n - self.rng.randint(1, 3)
        if keep > 0 and self.ctx.memory.can_rollback(seq, n - keep) is not None:
            self.ctx.memory.seq_rm(seq, keep)
            self.seqs[seq] = (tokens[:keep], False)

    def fork(self, seq: int) -> None:
        to = self.rng.randrange(3)
        if to != seq:
            self.ctx.memory.seq_rm(to)
            self.ctx.memory.seq_cp(seq, to)
            self.seqs[to] = self.seqs[seq]

    def save(self, seq: int) -> None:
        if self.seqs[seq][0]:
            checkpoint = self.ctx.checkpoint(seq, where=self.rng.choice(["device", "host"]))
            if self.rng.random() < 0.3:
                checkpoint = lloyal.Checkpoint.from_bytes(self.ctx, checkpoint.to_bytes())
            self.saved.append((checkpoint, self.seqs[seq]))

    def restore(self, seq: int) -> None:
        if self.saved:
            checkpoint, was = self.rng.choice(self.saved)
            checkpoint.restore(seq)
            self.seqs[seq] = was

    def check(self, seq: int, fresh: lloyal.Context) -> None:
        """What is decoded is the list without the waiting token, and its logits are those of the list alone."""
        tokens, waiting = self.seqs[seq]
        assert self.ctx.memory.seq_pos_max(seq) + 1 == len(tokens) - waiting
        lloyal.prefill(self.ctx, "#", seq_id=seq)
        self.seqs[seq] = ([*tokens, *self.ctx.vocab.tokenize("#", add_special=not tokens)], False)
        got = np.array(self.ctx.logits())
        fresh.memory.clear()
        lloyal.prefill(fresh, self.seqs[seq][0])
        assert distance(got, np.array(fresh.logits())) < 0.05


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", ["nano", "nano-hybrid"])
def test_no_history_loses_the_token_that_waits(name: str, seed: int, new_context: Make, request) -> None:
    model = request.getfixturevalue(name.replace("-", "_"))
    ctx, fresh = new_context(model, n_ctx=2048), new_context(model, n_ctx=1024)
    run = Histories(ctx, seed)
    for _ in range(25):
        seq = run.rng.randrange(3)
        if len(run.seqs[seq][0]) > 300:
            ctx.memory.seq_rm(seq)
            run.seqs[seq] = ([], False)
        run.rng.choice([run.text, run.text, run.tokens, run.trim, run.fork, run.save, run.restore])(seq)
        if run.rng.random() < 0.4:
            run.check(run.rng.randrange(3), fresh)
    for checkpoint, _ in run.saved:
        checkpoint.release()


def test_tokens_that_leave_out_the_waiting_one_are_refused(nano: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(nano)
    first = lloyal.generate(ctx, "def f(", max_tokens=3, sampling=GREEDY)
    list(first)
    other = next(token for token in range(5, 99) if token != first.tokens[-1])
    end = ctx.memory.seq_pos_max(0) + 1
    for call in (lloyal.generate, lloyal.prefill):
        with pytest.raises(InvalidArgument, match=rf"waits for token {first.tokens[-1]}.*pos0={end}"):
            call(ctx, [other])
    assert ctx.memory.seq_pos_max(0) + 1 == end
    assert lloyal.generate(ctx, " more").prompt == [first.tokens[-1], *nano.vocab.tokenize(" more", add_special=False)]
    assert lloyal.generate(ctx, [other], pos0=end).prompt == [other]
    assert lloyal.prefill(ctx, [other], pos0=end) == end + 1
    lloyal.prefill(ctx, [other])  # nothing waits any more


@pytest.mark.parametrize("name", ["nano", "nano-hybrid"])
def test_json_by_schema_is_json(name: str, new_context: Make, request) -> None:
    ctx = new_context(request.getfixturevalue(name.replace("-", "_")))
    for seed in range(10):
        ctx.memory.clear()
        made = lloyal.generate(ctx, "config = ", json_schema=SCHEMA, max_tokens=200, sampling=Sampling(seed=seed))
        value = json.loads("".join(made.text()))
        assert set(value) == {"name", "size", "tags"}, made
        assert 0 <= value["size"] <= 999
        assert made.stop_reason == "end"


def test_a_grammar_is_followed(nano: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(nano)
    rules = 'root ::= ("yes" | "no") "!"'
    for grammar in (rules, Sampler.grammar(nano.vocab, rules)):
        ctx.memory.clear()
        assert "".join(lloyal.generate(ctx, "x", grammar=grammar, max_tokens=20).text()) in ("yes!", "no!")
    with pytest.raises(InvalidGrammar):
        lloyal.generate(ctx, "x", grammar="root ::= (")
    with pytest.raises(InvalidArgument, match="two grammars"):
        lloyal.generate(ctx, "x", grammar=rules, json_schema=True)
    with pytest.raises(InvalidArgument, match="chain"):
        lloyal.generate(ctx, "x", grammar=rules, sampling=Sampler.greedy())


def test_stop_ends_the_tokens_too(nano: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(nano)
    made = lloyal.generate(ctx, "def f(self):\n", stop=["\n"], max_tokens=60, sampling=GREEDY)
    tokens = list(made)
    assert made.stop_reason == "stop"
    assert "\n" in nano.vocab.detokenize(tokens)
    assert "\n" not in nano.vocab.detokenize(tokens[:-1])
    ctx.memory.clear()
    again = lloyal.generate(ctx, "def f(self):\n", stop="\n", max_tokens=60, sampling=GREEDY)
    assert "\n" not in "".join(again.text("@"))
    assert again.tokens == tokens
    assert again.stop_reason == "stop"


def test_a_generation_says_what_it_is(nano: lloyal.Model, new_context: Make) -> None:
    made = lloyal.generate(new_context(nano), "x", max_tokens=2)
    assert repr(made) == "<Generation in sequence 0: 0 of at most 2 tokens>"
    list(made)
    assert repr(made) == f"<Generation in sequence 0: {len(made.tokens)} of at most 2 tokens, over: {made.stop_reason}>"


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        (lambda m, c: lloyal.generate(c, "x", temperature=0), "temperature is a parameter of Sampling"),
        (lambda m, c: lloyal.generate(c, "x", temp=0), "temperature is a parameter of Sampling"),
        (lambda m, c: lloyal.generate(c, "x", max_new_tokens=3), "did you mean 'max_tokens'"),
        (lambda m, c: lloyal.generate(c, "x", n_ctx=3), "n_ctx is a parameter of Context"),
        (lambda m, c: Sampling(temp=0), "did you mean 'temperature'"),
        (lambda m, c: Sampling(repetition_penalty=1.1), "did you mean 'repeat_penalty'"),
        (lambda m, c: Sampling(max_tokens=3), "max_tokens is a parameter of generate"),
        (lambda m, c: lloyal.Context(m, n_gpu_layers=3), "n_gpu_layers is a parameter of Model"),
        (lambda m, c: lloyal.Context(m, seed=3), "seed is a parameter of Sampling"),
        (lambda m, c: lloyal.Model(lloyal.models.path(), n_ctx=3), "n_ctx is a parameter of Context"),
        (lambda m, c: lloyal.Model(lloyal.models.path(), model_path="x"), "path is the first argument of Model"),
    ],
)
def test_a_name_that_is_taken_elsewhere_says_where(call, hint: str, nano: lloyal.Model, new_context: Make) -> None:
    with pytest.raises(UnknownParameter, match=hint):
        call(nano, new_context(nano))


class Biggest:
    """A sampler of one's own: `SupportsSample` in the fewest words."""

    def sample(self, ctx: Context, index: int = -1) -> int:
        return ctx.logits(index).argmax()


def test_a_sampler_of_ones_own(nano: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(nano)
    own = list(lloyal.generate(ctx, "def f", sampling=Biggest(), max_tokens=8))
    ctx.memory.clear()
    assert own == list(lloyal.generate(ctx, "def f", sampling=GREEDY, max_tokens=8))


def test_logits_processors_see_the_tokens_and_change_the_logits(nano: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(nano)
    seen: list[list[int]] = []
    allowed = nano.vocab.tokenize("0123456789", add_special=False)

    def digits(tokens, logits):
        seen.append(list(tokens))
        kept = np.full_like(logits, -np.inf)
        kept[allowed] = logits[allowed]
        return kept

    def no_zero(tokens, logits):
        logits[allowed[0]] = -np.inf

    made = lloyal.generate(ctx, "x = ", sampling=Sampling(seed=1, logits_processors=[digits, no_zero]), max_tokens=6)
    text = "".join(made.text())
    assert text.isdigit()
    assert "0" not in text
    assert len(made.tokens) == 6
    assert seen == [made.prompt + made.tokens[:i] for i in range(6)]
    assert made.sampler.seed == 1
    with pytest.raises(InvalidArgument, match="shape"):
        next(lloyal.generate(ctx, "x", sampling=Sampling(logits_processors=[lambda t, x: x[:3]])))
    assert Sampling(logits_processors=(f for f in [digits])).logits_processors == (digits,)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="list of functions"):
        Sampling(logits_processors=digits)


def test_progress_comes_every_micro_batch(nano: lloyal.Model, new_context: Make) -> None:
    ctx = new_context(nano, n_ctx=1024, n_batch=512, n_ubatch=64)
    calls: list[tuple[int, int]] = []
    lloyal.prefill(ctx, [5] * 300, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(64, 300), (128, 300), (192, 300), (256, 300), (300, 300)]
