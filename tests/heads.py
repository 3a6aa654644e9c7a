"""Tiny drafts for the tiny models of `tests.models`, and targets that they guess well.

`path(name)` is a file: ``mtp`` (a qwen35 with its prediction head), ``eagle3`` and ``dflash`` (drafts for ``llama``),
with random weights; ``easy-mtp``, ``easy-llama`` and ``easy-eagle3`` are made so that guesses are often right: the
target hardly looks back, and the draft does what it does with the last token.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.models import HEAD, N_EMBD, Recipe, llama, qwen35

BLOCK = 8
LAYERS = [1, 2, 3]
MASK = 5


def eagle3(seed: int) -> Recipe:
    recipe = Recipe("eagle3", seed)
    recipe.attention_keys()
    recipe.keys |= {"block_count": 1, "target_layers": LAYERS, "target_hidden_size": N_EMBD}
    recipe.matrix("fc.weight", 3 * N_EMBD, N_EMBD)
    recipe.vector("output_norm.weight", N_EMBD)
    recipe.norms(0, "attn_norm.weight", "attn_norm_2.weight", "ffn_norm.weight")
    for part in ("q", "k", "v"):
        recipe.matrix(f"blk.0.attn_{part}.weight", 2 * N_EMBD, N_EMBD, 1.5)
    recipe.matrix("blk.0.attn_output.weight", N_EMBD, N_EMBD, 2.0)
    recipe.feed_forward(0)
    return recipe


def dflash(seed: int) -> Recipe:
    recipe = Recipe("dflash", seed)
    recipe.attention_keys()
    recipe.keys |= {
        "block_count": 2,
        "target_layers": LAYERS,
        "block_size": BLOCK,
        "attention.key_length": HEAD,
        "attention.value_length": HEAD,
        "tokenizer.ggml.mask_token_id": MASK,
    }
    recipe.matrix("fc.weight", 3 * N_EMBD, N_EMBD)
    recipe.vector("enc.output_norm.weight", N_EMBD)
    recipe.vector("output_norm.weight", N_EMBD)
    for i in range(2):
        recipe.norms(i, "attn_norm.weight", "ffn_norm.weight")
        recipe.attention(i, qk_norm=True)
        recipe.feed_forward(i)
    return recipe


def _hardly_looks_back(recipe: Recipe, share: float) -> Recipe:
    for name in recipe.tensors:
        if name.endswith(("attn_output.weight", "ssm_out.weight", "ffn_down.weight")):
            recipe.tensors[name] *= share
    return recipe


def easy_mtp(seed: int) -> Recipe:
    recipe = _hardly_looks_back(qwen35(seed, mtp=True), 0.05)
    name = next(name for name in recipe.tensors if name.endswith("eh_proj.weight"))
    recipe.tensors[name] = np.concatenate([0.5 * np.eye(N_EMBD), 0.05 * recipe.tensors[name][:, N_EMBD:]], 1)
    return recipe


def easy_llama(seed: int) -> Recipe:
    return _hardly_looks_back(llama(seed), 0.05)


def easy_eagle3(seed: int) -> Recipe:
    recipe = _hardly_looks_back(eagle3(seed), 0.05)
    recipe.tensors["fc.weight"] *= 0.05
    nothing = np.zeros((N_EMBD, N_EMBD))
    for part, gain in (("q", 3.0), ("k", 3.0), ("v", 1.0)):
        recipe.tensors[f"blk.0.attn_{part}.weight"] = np.concatenate([gain * np.eye(N_EMBD), nothing], 1)
    recipe.tensors["blk.0.attn_output.weight"] = np.eye(N_EMBD)
    return recipe


RECIPES: dict[str, Callable[[int], Recipe]] = {
    "mtp": lambda seed: qwen35(seed, mtp=True),
    "eagle3": eagle3,
    "dflash": dflash,
    "llama": llama,
    "easy-mtp": easy_mtp,
    "easy-llama": easy_llama,
    "easy-eagle3": easy_eagle3,
}

_folder = tempfile.TemporaryDirectory(prefix="lloyal-heads-")


@functools.cache
def path(name: str) -> Path:
    """The file of a model, written at the first call; it lives as long as this process."""
    file = Path(_folder.name) / f"{name}.gguf"
    RECIPES[name](0).write(file)
    return file
