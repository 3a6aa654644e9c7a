"""Brings nano and nano-draft to the same greedy text, so that the draft's guesses are accepted.

A model a tenth of nano's size cannot follow every choice of a target that it has no part in.  So first the draft
has a say: texts are composed in which its guess stands wherever nano finds that guess plausible, and the draft
learns those texts, round after round.  Then nano learns to write them.  Last, the draft learns nano's own greedy
text.  Knows how such texts are composed and what each model learns from them.  Does not know GGUF, and does not
measure acceptance as it is shipped (measure.py does, through the library).
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .model import Cache, Decoder, rope_table
from .tokenizer import BOS_ID, EOS_ID, IM_END_ID
from .train import Plan, Rows, fit

TOP = 8
IGNORED = -100
ROW = 256  # tokens of a lesson: a prompt from the training text, then what follows
PROMPT_LENGTHS = (4, 48, 80, 112, 144)  # batches take turns; the shortest are the beginnings of functions


@dataclass(frozen=True)
class Lessons:
    """Rows of prompt plus continuation.

    `labels` is the token to say next, or IGNORED in the prompt and after the end; `top_ids` and `top_probs` are
    what the target finds likeliest there.
    """

    ids: Tensor
    labels: Tensor
    top_ids: Tensor
    top_probs: Tensor

    @property
    def n_tokens(self) -> int:
        return int((self.labels != IGNORED).sum())


@dataclass(frozen=True)
class Say:
    """A draft whose guess is taken if the target gives it at least `lenience` times its best token's probability.

    A guess that would begin the third copy of something is not taken.
    """

    draft: Decoder
    lenience: float


class Echoes:
    """Finds the tokens that would begin the third copy of the latest few tokens, row by row."""

    def __init__(self, prompts: Tensor, longest: int = 32, shortest: int = 4) -> None:
        self.longest = longest
        self.needed = torch.arange(1, longest + 1).clamp_min(shortest)
        self.seen = F.pad(prompts[:, :1], (longest, 0), value=-1)
        self.runs = torch.zeros(len(prompts), longest, dtype=torch.long)  # matches in a row, by distance
        for at in range(1, prompts.shape[1]):
            self.add(prompts[:, at : at + 1])

    def _back(self) -> Tensor:
        """The latest tokens, nearest first."""
        return self.seen[:, -self.longest :].flip(1)

    def add(self, tokens: Tensor) -> None:
        self.runs = torch.where(tokens == self._back(), self.runs + 1, 0)
        self.seen = torch.cat((self.seen, tokens), 1)

    def third_copies(self, n_vocab: int) -> Tensor:
        """True where a token, [rows, n_vocab], would begin one."""
        back = self._back()
        found = torch.zeros(len(back), n_vocab)
        return found.scatter_add_(1, back.clamp_min(0), ((self.runs >= self.needed) & (back >= 0)).float()) > 0


def half_precision(model: Decoder) -> Decoder:
    """A bfloat16 copy for fast generation; the rotation tables stay in 32 bits."""
    fast = copy.deepcopy(model).to(torch.bfloat16).eval()
    fast.cos, fast.sin = rope_table(model.config, len(model.cos))
    return fast


@torch.no_grad()
def continue_text(
    target: Decoder, prompts: Tensor, n_new: int, say: Say | None, varied: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Greedy continuations [rows, n_new] of equally long prompts, and the target's top probabilities at each step.

    `varied` keeps the target, too, from beginning third copies.
    """
    models = [half_precision(m) for m in ([target, say.draft] if say else [target])]
    caches = [Cache(m.config, len(prompts), prompts.shape[1] + n_new, torch.bfloat16) for m in models]
    echoes = Echoes(prompts) if say else None
    ids, top_ids, top_probs = [], [], []
    fed = prompts
    for _ in range(n_new):
        logits = [model(fed, cache)[:, -1].float() for model, cache in zip(models, caches, strict=True)]
        copies = echoes.third_copies(logits[0].shape[1]) if echoes else None
        if varied and copies is not None:
            logits[0] = logits[0].masked_fill(copies, float("-inf"))
        all_probs = logits[0].softmax(-1)
        probs, best = all_probs.topk(TOP)
        fed = best[:, :1]
        if say and echoes and copies is not None:
            guess = logits[1].argmax(-1, keepdim=True)
            taken = (all_probs.gather(1, guess) >= say.lenience * probs[:, :1]) & ~copies.gather(1, guess)
            fed = torch.where(taken, guess, fed)
            echoes.add(fed)
        ids.append(fed[:, 0])
        top_ids.append(best.to(torch.int16))
        top_probs.append(probs.half())
    return torch.stack(ids, 1), torch.stack(top_ids, 1), torch.stack(top_probs, 1)


def make_lessons(
    target: Decoder, rows: Rows, batches: int, per_batch: int, seed: int, log: Path, say: Say | None = None
) -> Lessons:
    """Continue `batches * per_batch` prompts cut from the training text."""
    generator = torch.Generator().manual_seed(seed)
    parts: list[tuple[Tensor, ...]] = []
    began = time.time()
    for batch in range(batches):
        n_prompt = PROMPT_LENGTHS[batch % len(PROMPT_LENGTHS)]
        short = n_prompt == min(PROMPT_LENGTHS)
        flat, starts = (rows.packed[1], rows.packed_starts[1] + 1) if short else (rows.text, rows.starts)
        picks = torch.randint(len(starts), (per_batch,), generator=generator)
        prompts = torch.stack([F.pad(flat[s : s + n_prompt - 1], (1, 0), value=BOS_ID) for s in starts[picks]])
        new, top_ids, top_probs = continue_text(target, prompts, min(ROW + 1 - n_prompt, 160), say, varied=short)
        ended = ((new == EOS_ID) | (new == IM_END_ID)).int().cumsum(1)
        labels = new.masked_fill(F.pad(ended, (1, 0))[:, :-1] > 0, IGNORED)
        ids = torch.cat((prompts, new[:, :-1]), 1)
        tail, head = ROW - ids.shape[1], n_prompt - 1
        parts.append(
            (
                F.pad(ids, (0, tail)).to(torch.int16),
                F.pad(labels, (head, tail), value=IGNORED).to(torch.int16),
                F.pad(top_ids, (0, 0, head, tail)),
                F.pad(top_probs, (0, 0, head, tail)),
            )
        )
        with log.open("a") as out:
            print(f"lessons {batch + 1}/{batches} seconds {time.time() - began:.0f}", file=out)
    return Lessons(*(torch.cat(column) for column in zip(*parts, strict=True)))


def lesson_batches(lessons: Lessons, plan: Plan) -> Iterator[tuple[Tensor, ...]]:
    """`plan.steps` random batches, going through all rows before any repeats."""
    generator = torch.Generator().manual_seed(plan.seed)
    order = torch.randperm(len(lessons.ids), generator=generator)
    at = 0
    for _ in range(plan.steps):
        if at + plan.rows > len(order):
            order, at = torch.randperm(len(lessons.ids), generator=generator), 0
        picks = order[at : at + plan.rows]
        at += plan.rows
        yield (
            lessons.ids[picks].long(),
            lessons.labels[picks].long(),
            lessons.top_ids[picks].long(),
            lessons.top_probs[picks].float(),
        )


def draft_loss(model: torch.nn.Module, batch: tuple[Tensor, ...], soft: float = 0.4) -> Tensor:
    """Cross entropy against the lesson's choice, mixed with that against the target's likeliest few tokens."""
    ids, labels, top_ids, top_probs = batch
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(ids)
    logs = logits.float().log_softmax(-1)
    hard = F.nll_loss(logs.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    taught = labels != IGNORED
    weights = top_probs / top_probs.sum(-1, keepdim=True).clamp_min(1e-6)
    blended = -(logs.gather(-1, top_ids) * weights).sum(-1)
    return (1 - soft) * hard + soft * blended[taught].mean()


@torch.no_grad()
def read_along(target: Decoder, rows: Rows) -> Iterator[tuple[Tensor, ...]]:
    """Rows of the training text with what the target would say at every place: far longer than a lesson."""
    fast = half_precision(target)
    for row in rows:
        probs, ids = fast(row[:, :-1]).float().softmax(-1).topk(TOP)
        yield row[:, :-1], ids[..., 0], ids, probs


def teach_draft(
    draft: Decoder, lessons: Lessons, plan: Plan, log: Path, reading: Iterator[tuple[Tensor, ...]] | None = None
) -> Decoder:
    """Go on training a copy of `draft` on the lessons; with `reading`, on that and on lessons in turns."""
    draft = copy.deepcopy(draft)
    batches = lesson_batches(lessons, plan)
    if reading is not None:
        batches = itertools.chain.from_iterable(zip(batches, reading, strict=False))
    fit(draft, batches, plan, draft_loss, log)
    return draft


def target_batches(lessons: Lessons, rows: Rows, plan: Plan) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of ids and labels: `plan.rows` rows of the training text above as many lessons."""
    for row, (ids, labels, *_) in zip(rows, lesson_batches(lessons, plan), strict=True):
        yield torch.cat((row[:, :-1], ids)), torch.cat((row[:, 1:], labels))


def target_loss(model: torch.nn.Module, batch: tuple[Tensor, Tensor], weight: float = 1.0) -> Tensor:
    """Cross entropy of the text, plus `weight` times that of the lessons' choices."""
    ids, labels = batch
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(ids)
    half = len(ids) // 2
    text, lesson = (
        F.cross_entropy(logits[part].flatten(0, 1).float(), labels[part].flatten(), ignore_index=IGNORED)
        for part in (slice(None, half), slice(half, None))
    )
    return text + weight * lesson


def teach_target(target: Decoder, lessons: Lessons, rows: Rows, plan: Plan, log: Path) -> Decoder:
    """Go on training a copy of `target` on the text and on the lessons, half of the rows each."""
    target = copy.deepcopy(target)
    fit(target, target_batches(lessons, rows, plan), plan, target_loss, log)
    return target


def blend(before: Decoder, after: Decoder, share: float) -> Decoder:
    """A model between two, `share` of the way: most of what was taught, and less of what it cost."""
    blended = copy.deepcopy(before)
    first, last = before.state_dict(), after.state_dict()
    blended.load_state_dict({name: torch.lerp(first[name], last[name], share) for name in first})
    return blended


@torch.no_grad()
def agreement(draft: Decoder, lessons: Lessons, n_rows: int = 320) -> float:
    """Share of the lessons' choices that are the draft's likeliest tokens."""
    picks = torch.linspace(0, len(lessons.ids) - 1, n_rows).long()
    ids, labels = lessons.ids[picks].long(), lessons.labels[picks].long()
    taught = labels != IGNORED
    return float((draft(ids).argmax(-1) == labels)[taught].float().mean())
