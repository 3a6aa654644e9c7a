"""llama.cpp for Python, with inference state as a first-class value.

What llama.h has is in `lloyal.llama` under llama's names; what this package adds is here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

try:
    from lloyal.llama import (
        Batch,
        ContextParams,
        Device,
        Logits,
        Memory,
        ModelParams,
        Sampler,
        StateSeqFlags,
        Vocab,
        build_info,
        devices,
        live_handles,
        system_info,
    )
except ModuleNotFoundError as error:
    if error.name is None or not error.name.startswith("lloyal."):
        raise
    raise ImportError(
        f"lloyal's compiled extensions are missing ({error.name}): this is the source tree, not an installed package. "
        "Run `python3 -m pip install .` in it, and start Python elsewhere (or with -P) so that this folder is not "
        "imported first."
    ) from error

from lloyal import errors, kv, llama, models
from lloyal.branch import Beam, Branch, BranchCheckpoint, BranchStore, beam_search
from lloyal.checkpoint import Checkpoint, Checkpoints
from lloyal.context import Context
from lloyal.decoding import prefill
from lloyal.embedding import embed, rerank
from lloyal.generation import Generation, generate
from lloyal.generation_many import Generations, generate_many
from lloyal.model import Model
from lloyal.sampling import Sampling
from lloyal.scoring import Score, score

if TYPE_CHECKING:
    from lloyal import aio, chat, grammar
    from lloyal.conversation import Conversation


def __getattr__(name: str) -> Any:
    # Text and grammars need llama-common, aio needs asyncio, which not every program does: loaded when first named.
    if name in ("aio", "chat", "grammar"):
        return import_module(f"lloyal.{name}")
    if name == "Conversation":
        return import_module("lloyal.conversation").Conversation
    if name == "__version__":
        return import_module("importlib.metadata").version("lloyal")  # takes longer to import than the rest
    raise AttributeError(f"module 'lloyal' has no attribute {name!r}")


__all__ = [
    "Batch",
    "Beam",
    "Branch",
    "BranchCheckpoint",
    "BranchStore",
    "Checkpoint",
    "Checkpoints",
    "Context",
    "ContextParams",
    "Conversation",
    "Device",
    "Generation",
    "Generations",
    "Logits",
    "Memory",
    "Model",
    "ModelParams",
    "Sampler",
    "Sampling",
    "Score",
    "StateSeqFlags",
    "Vocab",
    "aio",
    "beam_search",
    "build_info",
    "chat",
    "devices",
    "embed",
    "errors",
    "generate",
    "generate_many",
    "grammar",
    "kv",
    "live_handles",
    "llama",
    "models",
    "prefill",
    "rerank",
    "score",
    "system_info",
]
