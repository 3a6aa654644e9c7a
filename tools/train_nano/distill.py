"""Teaches the draft to say what the target says next when the target runs greedily.

Knows how the target's greedy continuations of training text are generated and how the draft learns from them.
Does not know GGUF, and does not measure acceptance (measure.py does, through the library).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .model import Cache, Config, Decoder, rope_table
from .tokenizer import BOS_ID, EOS_ID, IM_END_ID
from .train import Plan, Rows, fit

TOP = 8
IGNORED = -100


@dataclass(frozen=True)
class Lessons:
    """Rows of prompt plus greedy continuation, all `length` tokens long after padding at the end.

    `top_ids` and `top_probs` are the target's likeliest next tokens at each position; `labels` is its choice,
    or IGNORED in the prompt, after the end and in the padding.
    """

    ids: Tensor
    labels: Tensor
    top_ids: Tensor
    top_probs: Tensor

    @property
    def n_tokens(self) -> int:
        return int((self.labels != IGNORED).sum())


def half_precision(model: Decoder) -> Decoder:
    """A bfloat16 copy for fast generation; the rotation tables stay in 32 bits."""
    fast = copy.deepcopy(model).to(torch.bfloat16).eval()
    fast.cos, fast.sin = rope_table(model.config, len(model.cos))
    return fast


@torch.no_grad()
def continue_greedily(model: Decoder, prompts: Tensor, n_new: int) -> tuple[Tensor, Tensor, Tensor]:
    """Greedy continuations [rows, n_new] of equally long prompts, and the top probabilities at each step."""
    cache = Cache(model.config, len(prompts), prompts.shape[1] + n_new, torch.bfloat16)
    logits = model(prompts, cache)[:, -1].float()
    ids, top_ids, top_probs = [], [], []
    for _ in range(n_new):
        probs, best = logits.softmax(-1).topk(TOP)
        ids.append(best[:, 0])
        top_ids.append(best.to(torch.int16))
        top_probs.append(probs.half())
        logits = model(best[:, :1], cache)[:, -1].float()
    return torch.stack(ids, 1), torch.stack(top_ids, 1), torch.stack(top_probs, 1)


def make_lessons(target: Decoder, rows: Rows, batches: int, per_batch: int, seed: int, log: Path,
                 lengths: tuple[int, ...] = (4, 32, 64, 96, 128, 192), total: int = 320) -> Lessons:
    """Let the target continue `batches * per_batch` prompts cut from the training text."""
    fast = half_precision(target)
    generator = torch.Generator().manual_seed(seed)
    parts: list[tuple[Tensor, ...]] = []
    began = time.time()
    for batch in range(batches):
        n_prompt = lengths[batch % len(lengths)]
        picks = torch.randint(len(rows.starts), (per_batch,), generator=generator)
        prompts = torch.stack([F.pad(rows.text[s:s + n_prompt - 1], (1, 0), value=BOS_ID)
                               for s in rows.starts[picks]])
        n_new = min(total - n_prompt, 192)
        new, top_ids, top_probs = continue_greedily(fast, prompts, n_new)
        ended = ((new == EOS_ID) | (new == IM_END_ID)).int().cumsum(1)
        after = F.pad(ended, (1, 0))[:, :-1] > 0
        labels = new.masked_fill(after, IGNORED)
        ids = torch.cat((prompts, new[:, :-1]), 1)
        tail, head = total - ids.shape[1], n_prompt - 1
        parts.append((
            F.pad(ids, (0, tail)).to(torch.int16), F.pad(labels, (head, tail), value=IGNORED).to(torch.int16),
            F.pad(top_ids, (0, 0, head, tail)), F.pad(top_probs, (0, 0, head, tail)),
        ))
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
        picks = order[at:at + plan.rows]
        at += plan.rows
        yield (lessons.ids[picks].long(), lessons.labels[picks].long(),
               lessons.top_ids[picks].long(), lessons.top_probs[picks].float())


def lesson_loss(model: torch.nn.Module, batch: tuple[Tensor, ...], soft: float = 0.5) -> Tensor:
    """Cross entropy against the target's choice, mixed with that against its likeliest few tokens."""
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
def agreement(model: Decoder, lessons: Lessons, n_rows: int = 256) -> float:
    """Share of the target's choices that the draft's likeliest token matches, on the target's own text."""
    ids, labels = lessons.ids[:n_rows].long(), lessons.labels[:n_rows].long()
    best = model(ids).argmax(-1)
    taught = labels != IGNORED
    return float((best == labels)[taught].float().mean())


def distil(config: Config, lessons: Lessons, plan: Plan, folder: Path,
           start: Decoder) -> Decoder:
    """Go on training a copy of `start` on the lessons."""
    draft = copy.deepcopy(start)
    fit(draft, lesson_batches(lessons, plan), plan, lesson_loss, folder / f"{config.name}-distil.log")
    return draft
