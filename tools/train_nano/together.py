"""Trains target and draft side by side, each a little towards the other.

A small draft cannot follow every choice of a target it has no part in.  Where the target is unsure, leaning to the
draft's guess costs it little and makes the guess right; where it is sure, the text outweighs the lean.  Knows the
joint loss only: batches, schedule and optimisers are train.py's.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .corpus import Corpus
from .model import Decoder
from .tokenizer import Vocab
from .train import Plan, Rows, fit


class Pair(nn.Module):
    """Two decoders on the same ids."""

    def __init__(self, target: Decoder, draft: Decoder) -> None:
        super().__init__()
        self.target, self.draft = target, draft

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.target(ids), self.draft(ids)


def joint_loss(pair: nn.Module, rows: Tensor, pull: float) -> Tensor:
    """Target: the text, and `pull` times the draft's opinion.  Draft: the target's opinion."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        of_target, of_draft = pair(rows[:, :-1])
    target = of_target.float().log_softmax(-1)
    draft = of_draft.float().log_softmax(-1)
    text = F.nll_loss(target.flatten(0, 1), rows[:, 1:].flatten())
    lean = -(draft.detach().exp() * target).sum(-1).mean()
    follow = -(target.detach().exp() * draft).sum(-1).mean()
    return text + pull * lean + follow


@torch.no_grad()
def same_choice(target: Decoder, draft: Decoder, rows: Tensor) -> float:
    """Share of positions at which both find the same token likeliest."""
    return float((target(rows).argmax(-1) == draft(rows).argmax(-1)).float().mean())


def train_together(target: Decoder, draft: Decoder, vocab: Vocab, corpus: Corpus, plan: Plan, pull: float,
                   folder: Path) -> Pair:
    """Go on training copies of both."""
    pair = Pair(copy.deepcopy(target), copy.deepcopy(draft))
    rows = Rows(vocab, corpus, plan, folder / "tokens.pt")
    fit(pair, iter(rows), plan, lambda model, batch: joint_loss(model, batch, pull), folder / "together.log")
    return pair
