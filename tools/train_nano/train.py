"""Next-token training of a nano model on the corpus.

Knows batches, the optimisers, the schedule and the held-out measure.  Does not know GGUF or distillation.
Every random choice comes from the seed, so two runs see the same batches in the same order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .corpus import Corpus, SourceFile, chat_pairs, functions
from .model import Config, Decoder
from .tokenizer import BOS_ID, EOS_ID, Vocab, chat_text


@dataclass(frozen=True)
class Plan:
    """How long and how fast one model is trained."""

    steps: int
    rows: int = 16
    length: int = 256
    long_share: float = 0.15  # of the steps, at the end, with rows twice as long and half as many
    seed: int = 1234
    chat_share: float = 0.12  # of the rows: packed chats
    function_share: float = 0.15  # of the rows: packed single functions
    muon_rate: float = 0.02
    adam_rate: float = 0.003
    warmup: int = 50
    cooldown: float = 0.6
    weight_decay: float = 0.02


class Rows:
    """Training rows: BOS, then tokens from some line's start; or packed chats or functions."""

    def __init__(self, vocab: Vocab, corpus: Corpus, plan: Plan, cache: Path) -> None:
        self.plan = plan
        if not cache.exists():
            texts = vocab.encode_all([f.text for f in corpus.train])
            chats = vocab.encode_all([chat_text(*pair) for pair in chat_pairs(corpus.train)])
            single = vocab.encode_all(functions(corpus.train))
            torch.save(
                {
                    "text": self._flat(texts, [EOS_ID]),
                    "chat": self._flat(chats, []),
                    "function": self._flat(single, [EOS_ID]),
                },
                cache,
            )
        flat = torch.load(cache)
        self.text, self.packed = flat["text"], (flat["chat"], flat["function"])
        ends_line = torch.tensor(["\u010a" in piece for piece in vocab.tokens])
        self.starts = self._usable(ends_line[self.text].nonzero().flatten() + 1, self.text)
        self.packed_starts = tuple(self._usable((p == BOS_ID).nonzero().flatten(), p) for p in self.packed)

    @staticmethod
    def _flat(documents: list[list[int]], end: list[int]) -> Tensor:
        return torch.tensor([i for document in documents for i in (BOS_ID, *document, *end)])

    def _usable(self, starts: Tensor, flat: Tensor) -> Tensor:
        return starts[starts < len(flat) - 2 * self.plan.length - 1]

    def __iter__(self) -> Iterator[Tensor]:
        plan = self.plan
        generator = torch.Generator().manual_seed(plan.seed)
        for step in range(plan.steps):
            long = step >= plan.steps * (1 - plan.long_share)
            n_rows, length = (plan.rows // 2, 2 * plan.length) if long else (plan.rows, plan.length)
            counts = (round(n_rows * plan.chat_share), round(n_rows * plan.function_share))
            picks = torch.randint(len(self.starts), (n_rows - sum(counts),), generator=generator)
            rows = [F.pad(self.text[s : s + length], (1, 0), value=BOS_ID) for s in self.starts[picks]]
            for flat, starts, count in zip(self.packed, self.packed_starts, counts, strict=True):
                picks = torch.randint(len(starts), (count,), generator=generator)
                rows += [flat[s : s + length + 1] for s in starts[picks]]
            yield torch.stack(rows)


def optimisers(model: torch.nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding, norms and convolution kernels."""
    matrices = [
        p for n, p in model.named_parameters() if p.dim() == 2 and "blk." in n and not n.endswith("shortconv.conv")
    ]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=plan.muon_rate, momentum=0.95, weight_decay=plan.weight_decay),
        torch.optim.AdamW(others, lr=plan.adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate_factor(step: int, plan: Plan) -> float:
    """Warm up, hold, then fall linearly to zero over the last `cooldown` of the run."""
    left = (plan.steps - step) / max(1.0, plan.cooldown * plan.steps)
    return min(1.0, (step + 1) / plan.warmup, max(left, 0.0))


def fit(
    model: torch.nn.Module,
    batches: Iterator[Any],
    plan: Plan,
    loss_of: Callable[[torch.nn.Module, Any], Tensor],
    log: Path,
    compiled: bool = True,
) -> None:
    """Run through `batches`; a state saved beside `log` every few hundred steps lets a stopped run go on."""
    opts = optimisers(model, plan)
    base = [[g["lr"] for g in o.param_groups] for o in opts]
    saved = log.with_suffix(".state.pt")
    first = 0
    if saved.exists():
        state = torch.load(saved)
        model.load_state_dict(state["model"])
        for opt, content in zip(opts, state["opts"], strict=True):
            opt.load_state_dict(content)
        first = state["step"]
    runner = torch.compile(model, dynamic=False) if compiled else model
    began, shown = time.time(), 0.0
    for step, batch in enumerate(batches):
        if step < first:
            continue
        for opt, rates in zip(opts, base, strict=True):
            for group, rate in zip(opt.param_groups, rates, strict=True):
                group["lr"] = rate * rate_factor(step, plan)
        loss = loss_of(runner, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        shown = loss.item() if not shown else 0.95 * shown + 0.05 * loss.item()
        if step % 20 == 0 or step == plan.steps - 1:
            with log.open("a") as out:
                print(f"step {step} loss {shown:.4f} seconds {time.time() - began:.0f}", file=out)
        if step % 100 == 99 or step == plan.steps - 1:
            states = [o.state_dict() for o in opts]
            torch.save({"model": model.state_dict(), "opts": states, "step": step + 1}, saved)


def next_token_loss(model: torch.nn.Module, rows: Tensor) -> Tensor:
    """Mean cross entropy of every token after the first."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(rows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())


@torch.no_grad()
def held_out(model: Decoder, vocab: Vocab, files: list[SourceFile], length: int = 512) -> tuple[float, float]:
    """(nats per token, bits per byte) over whole files, in windows of `length` after BOS, in 32 bits."""
    total, n_tokens = 0.0, 0
    for file in files:
        ids = [*vocab.encode(file.text), EOS_ID]
        for at in range(0, len(ids), length):
            row = torch.tensor([[BOS_ID, *ids[at : at + length]]])
            total += F.cross_entropy(model(row[:, :-1])[0], row[0, 1:], reduction="sum").item()
        n_tokens += len(ids)
    n_bytes = sum(len(f.text.encode()) for f in files)
    return total / n_tokens, total / math.log(2) / n_bytes


def train_model(config: Config, vocab: Vocab, corpus: Corpus, plans: list[Plan], folder: Path) -> Decoder:
    """Train one model from scratch on the corpus, by one plan after another."""
    torch.manual_seed(plans[0].seed)
    model = Decoder(config)
    for i, plan in enumerate(plans):
        rows = Rows(vocab, corpus, plan, folder / "tokens.pt")
        fit(model, iter(rows), plan, next_token_loss, folder / f"{config.name}-{i}.log")
    return model
