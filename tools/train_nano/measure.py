"""Measures the shipped models through the lloyal library itself and prints the model card's tables.

One thread, processor time of that thread, the sides of a comparison taking turns.  Plain: single-token decodes after so
many tokens.  Verify: decodes of several tokens of one sequence, all with logits, against single ones.  Loop: greedy
generation with drafts against greedy generation without, the same text but for near-ties, each side with the flash
attention setting that suits it better.  Does not know how the models were trained, and needs no torch.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lloyal import Batch, Context, Model

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))  # last, so that the installed lloyal is found before the source folder
from tools.train_nano import corpus  # noqa: E402

FlashAttention = Literal["auto", "on", "off"]

MODELS = ROOT / "lloyal" / "models"
NAMES = ("nano", "nano-draft", "nano-hybrid")
DEPTHS = (128, 2000, 8000)
WIDTHS = range(2, 9)
DRAFTED = 4
NEW_TOKENS = 128
SEQ = 0
ENDS = {1, 3}  # <|endoftext|> and <|im_end|>


class Runner:
    """One model on one thread with a single sequence, and the position that the sequence has reached."""

    def __init__(self, path: Path, n_ctx: int = 2048, flash_attn: FlashAttention = "auto") -> None:
        self.model = Model(str(path))
        self.ctx = Context(
            self.model, n_ctx=n_ctx, n_seq_max=1, n_threads=1, n_threads_batch=1, flash_attn=flash_attn, n_rs_seq=0
        )
        self.batch = Batch()
        self.past = 0

    def feed(self, tokens: list[int], all_logits: bool = False) -> list[int]:
        """Decode `tokens`; the likeliest next token after the last one, or after every one."""
        self.batch.clear()
        last = len(tokens) - 1
        for i, token in enumerate(tokens):
            self.batch.add(token, self.past + i, [SEQ], logits=all_logits or i == last)
        self.ctx.decode(self.batch)
        self.past += len(tokens)
        asked = range(len(tokens)) if all_logits else (last,)
        return [int(self.ctx.logits(i).argmax()) for i in asked]

    def rewind(self, to: int) -> None:
        """Forget everything from position `to` on."""
        if to != self.past:
            self.ctx.memory.seq_rm(SEQ, to, -1)
            self.past = to

    def fill(self, n_tokens: int) -> None:
        """Start over with `n_tokens` of anything."""
        self.rewind(0)
        for start in range(0, n_tokens, 1000):
            self.feed([20 + i % 500 for i in range(start, min(start + 1000, n_tokens))])


@dataclass
class Tally:
    """What drafting came to: tokens drafted and accepted, target steps, tokens they gave."""

    accepted: int = 0
    drafted: int = 0
    rounds: int = 0
    tokens: int = 0


def step_costs(runners: list[Runner], filled: int, width: int, repeats: int) -> list[float]:
    """Median seconds of a decode of `width` tokens after `filled` ones, the runners taking turns.

    Every decode is one position later: a recurrent state cannot go back.
    """
    times: list[list[float]] = [[] for _ in runners]
    for runner in runners:
        runner.fill(filled)
    for round_ in range(repeats):
        for runner, taken in zip(runners, times, strict=True):
            tokens = [40 + (round_ + i) % 400 for i in range(width)]
            began = time.thread_time()
            runner.feed(tokens, all_logits=True)
            taken.append(time.thread_time() - began)
    return [statistics.median(taken) for taken in times]


def plain(target: Runner, prompt: list[int], n_new: int) -> tuple[list[int], float]:
    """`n_new` greedy tokens, or up to an end token; and the seconds they took, without reading the prompt."""
    target.rewind(0)
    new = target.feed(prompt)
    began = time.thread_time()
    while len(new) < n_new and new[-1] not in ENDS:
        new += target.feed(new[-1:])
    return new, time.thread_time() - began


def speculate(
    target: Runner, draft: Runner, prompt: list[int], n_new: int, k: int, tally: Tally
) -> tuple[list[int], float]:
    """The same, `k` tokens drafted at a time."""
    target.rewind(0)
    draft.rewind(0)
    tokens = prompt + target.feed(prompt)
    draft.feed(prompt)
    began = time.thread_time()
    while len(tokens) - len(prompt) < n_new and tokens[-1] not in ENDS:
        proposed = draft.feed(tokens[draft.past :])
        while len(proposed) < k:
            proposed += draft.feed(proposed[-1:])
        base = len(tokens)
        wanted = target.feed(tokens[-1:] + proposed, all_logits=True)
        count = next((i for i in range(k) if proposed[i] != wanted[i]), k)
        new = wanted[: count + 1]
        end = next((i for i, token in enumerate(new) if token in ENDS), count)
        tokens += new[: end + 1]
        tally.accepted += count
        tally.drafted += k
        tally.rounds += 1
        tally.tokens += end + 1
        target.rewind(min(target.past, len(tokens) - 1))
        draft.rewind(min(draft.past, base + count))
    return tokens[len(prompt) : len(prompt) + n_new], time.thread_time() - began


def held_out_prompts(model: Model, count: int, n_tokens: int | None = None) -> list[list[int]]:
    """Prompts from the files that nobody trained on, of their own lengths or of exactly `n_tokens`."""
    files = corpus.load().held_out
    if n_tokens is None:
        texts = corpus.prompts(files, count)
    else:
        texts = corpus.prompts(files, count, min_chars=6 * n_tokens, max_chars=8 * n_tokens)
    found = [list(model.vocab.tokenize(text, add_special=True, parse_special=False)) for text in texts]
    return found if n_tokens is None else [tokens[:n_tokens] for tokens in found]


def plain_speed(folder: Path, repeats: int) -> None:
    print("| tokens before | " + " | ".join(f"{name}, on | {name}, off" for name in NAMES) + " |")
    print("|---" * (1 + 2 * len(NAMES)) + "|")
    settings: tuple[FlashAttention, ...] = ("on", "off")
    for depth in DEPTHS:
        runners = [Runner(folder / f"{n}.gguf", depth + 1024, setting) for n in NAMES for setting in settings]
        costs = step_costs(runners, depth, 1, repeats)
        print(f"| {depth} | " + " | ".join(f"{1 / cost:.0f}" for cost in costs) + " |", flush=True)


def widths(folder: Path, repeats: int) -> None:
    print("| tokens before, flash attention | draft | " + " | ".join(map(str, WIDTHS)) + " |")
    print("|---" * (2 + len(WIDTHS)) + "|")
    for depth in (128, 1000):
        settings: tuple[FlashAttention, ...] = ("on", "off")
        for setting in settings:
            target, draft = (Runner(folder / f"{n}.gguf", 4096, setting) for n in ("nano", "nano-draft"))
            single, drafted = step_costs([target, draft], depth, 1, repeats)
            cells = [drafted, *(step_costs([target], depth, width, repeats // 4)[0] for width in WIDTHS)]
            row = " | ".join(f"{cost / single:.2f}" for cost in cells)
            print(f"| {depth}, {setting} ({single * 1e6:.0f} us) | {row} |", flush=True)


def loops(folder: Path, n_prompts: int) -> None:
    print("| tokens before | k | accepted | tokens a step | speed against plain |\n|---|---|---|---|---|")
    settings: tuple[FlashAttention, ...] = ("on", "off")
    for depth in (None, 1000):
        targets = [Runner(folder / "nano.gguf", 4096, setting) for setting in settings]
        draft = Runner(folder / "nano-draft.gguf", 4096)
        for k in (2, 3, DRAFTED):
            tallies = [Tally() for _ in settings]
            plain_times, times, differs = [0.0, 0.0], [0.0, 0.0], 0
            for prompt in held_out_prompts(draft.model, n_prompts, depth):
                for i, target in enumerate(targets):
                    alone, plain_seconds = plain(target, prompt, NEW_TOKENS)
                    drafted, seconds = speculate(target, draft, prompt, NEW_TOKENS, k, tallies[i])
                    plain_times[i] += plain_seconds
                    times[i] += seconds
                    differs += alone != drafted
            best = min(range(2), key=times.__getitem__)
            tally = tallies[best]
            where = "as they come" if depth is None else str(depth)
            print(
                f"| {where} | {k} | {tally.accepted / tally.drafted:.3f} | {tally.tokens / tally.rounds:.2f} | "
                f"{min(plain_times) / times[best]:.2f} ({settings[best]}; {differs} of {2 * n_prompts} texts differ) |",
                flush=True,
            )


def samples(folder: Path) -> None:
    for name in NAMES:
        runner = Runner(folder / f"{name}.gguf")
        vocab = runner.model.vocab
        for text in ("def ", "class "):
            new, _ = plain(runner, list(vocab.tokenize(text, add_special=True, parse_special=True)), NEW_TOKENS)
            print(f"--- {name}\n{text}{vocab.detokenize([token for token in new if token not in ENDS])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=MODELS, help="folder with the three GGUF files")
    parser.add_argument("--repeats", type=int, default=200, help="timed turns of a single-token decode")
    parser.add_argument("--prompts", type=int, default=64, help="prompts of the loop")
    args = parser.parse_args()
    print("Tokens a second, by flash attention:\n")
    plain_speed(args.models, args.repeats)
    print("\nA draft step, and decodes of several tokens, in single decodes of nano:\n")
    widths(args.models, args.repeats)
    print("\nThe greedy loop:\n")
    loops(args.models, args.prompts)
    print()
    samples(args.models)


if __name__ == "__main__":
    main()
