"""Measures the shipped models through the lloyal library itself: step cost, acceptance of drafts, samples.

Knows the two definitions the model card quotes.  Cost: the median time of one single-token decode of each
model on one thread, the models taking turns, at a few context lengths.  Acceptance: both models greedy, the
draft proposes four tokens, the target checks them in one batch, and accepted over drafted is summed over 64
held-out prompts.  Does not know how the models were trained, and needs no torch.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from lloyal import Batch, Context, Model

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))  # last, so that the installed lloyal is found before the source folder
from tools.train_nano import corpus  # noqa: E402

MODELS = ROOT / "lloyal" / "models"
DRAFTED = 4
PROMPTS = 64
NEW_TOKENS = 128
SEQ = 0


class Runner:
    """One model on one thread with a single sequence, and the position that the sequence has reached."""

    def __init__(self, path: Path, n_ctx: int = 1024) -> None:
        self.model = Model(str(path))
        self.ctx = Context(self.model, n_ctx=n_ctx, n_threads=1, n_threads_batch=1)
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
        self.ctx.memory.seq_rm(SEQ, to, -1)
        self.past = to


@dataclass
class Tally:
    accepted: int = 0
    drafted: int = 0
    rounds: int = 0
    tokens: int = 0

    @property
    def acceptance(self) -> float:
        return self.accepted / self.drafted


def matched(proposed: list[int], wanted: list[int]) -> int:
    """Length of the common prefix."""
    count = 0
    while count < len(proposed) and proposed[count] == wanted[count]:
        count += 1
    return count


def speculate(target: Runner, draft: Runner, prompt: list[int], n_new: int, ends: set[int], tally: Tally) -> list[int]:
    """Generate at least `n_new` tokens, or up to an end token, counting into `tally`."""
    target.rewind(0)
    draft.rewind(0)
    tokens = prompt + target.feed(prompt)
    draft.feed(prompt)
    while len(tokens) - len(prompt) < n_new and tokens[-1] not in ends:
        proposed = draft.feed(tokens[draft.past :])
        while len(proposed) < DRAFTED:
            proposed += draft.feed(proposed[-1:])
        base = len(tokens)
        wanted = target.feed(tokens[-1:] + proposed, all_logits=True)
        count = matched(proposed, wanted)
        tally.accepted += count
        tally.drafted += DRAFTED
        tally.rounds += 1
        new = wanted[: count + 1]
        for i, token in enumerate(new):
            if token in ends:
                new = new[: i + 1]
                break
        tokens += new
        tally.tokens += len(new)
        target.rewind(min(target.past, len(tokens) - 1))
        draft.rewind(min(draft.past, base + count))
    return tokens


def step_costs(runners: list[Runner], filled: int, repeats: int) -> list[float]:
    """Median microseconds of one single-token decode after `filled` tokens, the runners taking turns."""
    times: list[list[float]] = [[] for _ in runners]
    for runner in runners:
        runner.rewind(0)
        runner.feed([20 + i % 500 for i in range(filled)])
    for _ in range(repeats):
        for runner, taken in zip(runners, times, strict=True):
            for token in range(40, 44):
                began = time.perf_counter()
                runner.feed([token])
                taken.append(time.perf_counter() - began)
            runner.rewind(filled)
    return [statistics.median(taken) * 1e6 for taken in times]


def sample(runner: Runner, text: str, n_new: int, ends: set[int]) -> str:
    """Greedy continuation of `text`, as text."""
    vocab = runner.model.vocab
    tokens = vocab.tokenize(text, add_special=True, parse_special=True)
    runner.rewind(0)
    new = runner.feed(tokens)
    while len(new) < n_new and new[-1] not in ends:
        new += runner.feed(new[-1:])
    return text + vocab.detokenize([t for t in new if t not in ends])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=MODELS, help="folder with the three GGUF files")
    parser.add_argument("--repeats", type=int, default=200, help="timed turns per model and context length")
    args = parser.parse_args()
    target, draft = Runner(args.models / "nano.gguf"), Runner(args.models / "nano-draft.gguf")
    ends = {1, 3}  # <|endoftext|> and <|im_end|>
    for filled in (64, 128, 256):
        big, small = step_costs([target, draft], filled, args.repeats)
        print(f"after {filled} tokens: target {big:.0f} us, draft {small:.0f} us, ratio {small / big:.3f}")
    tally = Tally()
    for text in corpus.prompts(corpus.load().held_out, PROMPTS):
        prompt = target.model.vocab.tokenize(text, add_special=True, parse_special=False)
        speculate(target, draft, list(prompt), NEW_TOKENS, ends, tally)
    print(
        f"acceptance {tally.accepted}/{tally.drafted} = {tally.acceptance:.3f}, "
        f"{tally.tokens / tally.rounds:.2f} tokens per target step, {PROMPTS} prompts"
    )
    for name in ("nano", "nano-draft", "nano-hybrid"):
        print(f"--- {name}\n{sample(Runner(args.models / f'{name}.gguf'), 'def ', 120, ends)}")


if __name__ == "__main__":
    main()
