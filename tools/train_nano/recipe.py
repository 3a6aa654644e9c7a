"""The shapes and schedules of the three shipped models: every number that decides them."""

from __future__ import annotations

from .model import Config
from .tokenizer import VOCAB_SIZE
from .train import Plan

NANO = Config("nano", n_embd=192, n_layer=9, n_head=8, n_head_kv=2, n_ff=384, n_vocab=VOCAB_SIZE)
DRAFT = Config("nano-draft", n_embd=128, n_layer=2, n_head=2, n_head_kv=1, n_ff=256, n_vocab=VOCAB_SIZE)
HYBRID = Config("nano-hybrid", n_embd=128, n_layer=6, n_head=4, n_head_kv=2, n_ff=288, n_vocab=VOCAB_SIZE,
                conv_layers=(0, 1, 3, 5))

# The second plan is a short course with many single functions, so that `def ` alone is a good beginning.
NANO_PLANS = [
    Plan(steps=2500, function_share=0.0),
    Plan(steps=250, seed=77, function_share=0.4, long_share=0.0, muon_rate=0.006, adam_rate=0.001,
         warmup=20, cooldown=0.9),
]
HYBRID_PLANS = [Plan(steps=1200)]
DRAFT_PLANS = [Plan(steps=2000, muon_rate=0.03, adam_rate=0.005, long_share=0.1)]

# Target and draft together: each learns from the other; PULL is how strongly the target leans to the draft.
TOGETHER_PLAN = Plan(steps=600, seed=55, function_share=0.25, muon_rate=0.01, adam_rate=0.002,
                     warmup=20, cooldown=0.9)
PULL = 1.0

# Then the draft alone: the target's greedy continuations of LESSON_BATCHES * LESSON_ROWS prompts.
LESSON_BATCHES = 60
LESSON_ROWS = 192
LESSON_SEED = 4321
DISTIL_PLAN = Plan(steps=2800, rows=16, seed=99, muon_rate=0.012, adam_rate=0.002, cooldown=1.0)

THREADS = 2
