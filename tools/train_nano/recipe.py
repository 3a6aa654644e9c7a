"""The shapes and schedules of the three shipped models: every number that decides them."""

from __future__ import annotations

from dataclasses import dataclass

from .model import Config
from .tokenizer import VOCAB_SIZE
from .train import Plan

# Wide and shallow: on a CPU a step costs llama.cpp as much for its number of operations as for their size.
NANO = Config("nano", n_embd=256, n_layer=6, n_head=4, n_head_kv=1, n_ff=512, n_vocab=VOCAB_SIZE)
DRAFT = Config("nano-draft", n_embd=128, n_layer=2, n_head=2, n_head_kv=1, n_ff=256, n_vocab=VOCAB_SIZE)
HYBRID = Config(
    "nano-hybrid", n_embd=192, n_layer=6, n_head=3, n_head_kv=1, n_ff=384, n_vocab=VOCAB_SIZE, conv_layers=(0, 1, 3, 5)
)

NANO_PLANS = [Plan(steps=5500, function_share=0.0, weight_decay=0.05)]
# The second plan is a short course with many single functions, so that `def ` alone is a good beginning. Nano's is
# TARGET_COURSE.
HYBRID_PLANS = [
    Plan(steps=2600, weight_decay=0.05),
    Plan(steps=600, seed=78, function_share=0.3, long_share=0.0, warmup=20, cooldown=0.8),
]
DRAFT_PLANS = [Plan(steps=2000, muon_rate=0.03, adam_rate=0.005, long_share=0.1)]


@dataclass(frozen=True)
class Course:
    """Lessons to compose, `batches` times `rows` of them, and how long they are studied."""

    batches: int
    seed: int  # of the prompts
    plan: Plan
    rows: int = 192


# Draft: learns texts in which its own guesses stand where nano finds them plausible; (lenience, course) per round.
ROUNDS = [
    (
        lenience,
        Course(5, 4321 + i, Plan(steps=200, seed=99 + i, muon_rate=0.012, adam_rate=0.002, warmup=10, cooldown=0.7)),
    )
    for i, lenience in enumerate((0.3, 0.3, 0.25, 0.25))
]
# Nano: learns to write such texts, beside as many rows of the library's source.
TARGET_COURSE = Course(
    10,
    5000,
    Plan(
        steps=200,
        rows=6,
        seed=55,
        long_share=0.0,
        chat_share=0.17,
        function_share=0.34,
        muon_rate=0.008,
        adam_rate=0.0015,
        warmup=15,
        cooldown=0.8,
    ),
)
# How far nano goes from what it was to what the course makes of it: 0 costs nothing, 1 costs 0.085 bits per byte.
TARGET_SHARE = 0.65
# Draft: learns nano's own greedy text.
DRAFT_COURSE = Course(60, 6000, Plan(steps=1500, seed=9999, muon_rate=0.012, adam_rate=0.002, warmup=10, cooldown=1.0))
# And what nano would say in long texts, which no lesson is.
DRAFT_READING = Plan(steps=750, rows=4, length=1024, long_share=0.0, chat_share=0.0, function_share=0.0, seed=31)

THREADS = 2
