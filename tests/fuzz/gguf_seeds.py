"""The genuine files that the mutator starts from: models of many architectures, vocabularies, adapters."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import tests.abuse.models as more
import tests.models as tiny
from tests.fuzz.gguf_file import ARRAY, F32, I32, STRING, U32, Array, File, Pair, Tensor, parse
from tests.models import Recipe

N_EXPERT = 4


def qwen3moe(seed: int = 0) -> Recipe:
    recipe = Recipe("qwen3moe", seed)
    recipe.attention_keys()
    recipe.keys |= {"expert_count": N_EXPERT, "expert_used_count": 2, "expert_feed_forward_length": tiny.N_FF}
    recipe.head()
    for i in range(tiny.N_LAYER):
        prefix = f"blk.{i}."
        recipe.norms(i, "attn_norm.weight", "ffn_norm.weight")
        recipe.attention(i, qk_norm=True)
        recipe.matrix(prefix + "ffn_gate_inp.weight", tiny.N_EMBD, N_EXPERT)
        for name, n_in, n_out in (
            ("gate", tiny.N_EMBD, tiny.N_FF),
            ("up", tiny.N_EMBD, tiny.N_FF),
            ("down", tiny.N_FF, tiny.N_EMBD),
        ):
            recipe.random(f"{prefix}ffn_{name}_exps.weight", (N_EXPERT, n_out, n_in), 1 / np.sqrt(n_in))
    return recipe


RECIPES: dict[str, Callable[[int], Recipe]] = {
    "llama": tiny.llama,
    "gemma3": tiny.gemma3,
    "llama4": tiny.llama4,
    "mamba2": tiny.mamba2,
    "lfm2": tiny.lfm2,
    "falcon-h1": tiny.falcon_h1,
    "qwen35-mtp": tiny.qwen35_mtp,
    "gpt2": tiny.gpt2,
    "mpt": more.mpt,
    "starcoder": more.starcoder,
    "bert": more.bert,
    "t5": more.t5,
    "qwen3moe": qwen3moe,
}


@contextlib.contextmanager
def _sizes(**sizes: int) -> Iterator[None]:
    """Other sizes of the recipes for a while."""
    before = [
        (module, name, getattr(module, name)) for module in (tiny, more) for name in sizes if hasattr(module, name)
    ]
    try:
        for module, name, _ in before:
            setattr(module, name, sizes[name])
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def _written(recipe: Recipe, folder: Path) -> File:
    path = folder / "seed.gguf"
    recipe.write(path)
    return parse(path.read_bytes())


def models(wide: bool = False) -> dict[str, File]:
    """One of each recipe. `wide`: rows of 256 values, which every type of tensor divides."""
    sizes = {"N_EMBD": 256, "HEAD": 128, "N_FF": 256} if wide else {}
    with tempfile.TemporaryDirectory() as folder, _sizes(**sizes):
        return {name: _written(make(0), Path(folder)) for name, make in RECIPES.items()}


@functools.cache
def adapter() -> File:
    """A low-rank adapter of the llama recipe."""
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (tiny.N_VOCAB, tiny.N_EMBD),
        "blk.0.attn_q.weight": (tiny.N_EMBD, tiny.N_EMBD),
        "blk.1.attn_v.weight": (tiny.N_EMBD, tiny.N_EMBD),
        "blk.2.ffn_down.weight": (tiny.N_FF, tiny.N_EMBD),
        "output.weight": (tiny.N_EMBD, tiny.N_VOCAB),
    }
    tensors = []
    for name, (n_in, n_out) in shapes.items():
        for half, shape in (("a", [n_in, 4]), ("b", [4, n_out])):
            if name.startswith("token_embd"):
                shape = [4, n_in] if half == "a" else [4, n_out]
            data = rng.normal(0, 0.1, shape[0] * shape[1]).astype(np.float32).tobytes()
            tensors.append(Tensor(f"{name}.lora_{half}".encode(), shape, 0, data))
    pairs = [
        Pair(b"general.architecture", STRING, b"llama"),
        Pair(b"general.type", STRING, b"adapter"),
        Pair(b"adapter.type", STRING, b"lora"),
        Pair(b"adapter.lora.alpha", F32, 8.0),
        Pair(b"adapter.alora.invocation_tokens", ARRAY, Array(U32, [1, 2, 3])),
    ]
    return File(pairs, tensors)


def vocabularies() -> dict[str, File]:
    """Files of a vocabulary alone, one of each tokenizer."""
    pieces = [f"<0x{i:02X}>".encode() for i in range(256)]
    letters = [bytes([c]) for c in range(97, 123)] + [
        b"\xe2\x96\x81",
        b"\xe2\x96\x81the",
        b"th",
        b"he",
        b"the",
        b"##he",
        b"[CLS]",
    ]
    found = {}
    for kind in ("llama", "bert", "gpt2", "t5", "rwkv", "plamo2", "gemma4", "hybriddna", "whitespace"):
        tokens = [b"<unk>", b"<s>", b"</s>", *pieces, *letters, b"[UNK]", b"[SEP]", b"[PAD]"]
        n = len(tokens)
        pairs = [
            Pair(b"general.architecture", STRING, b"llama"),
            *(
                Pair(b"llama." + key, U32, value)
                for key, value in (
                    (b"context_length", 256),
                    (b"embedding_length", 64),
                    (b"block_count", 1),
                    (b"attention.head_count", 2),
                    (b"feed_forward_length", 64),
                )
            ),
            Pair(b"llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
            Pair(b"tokenizer.ggml.model", STRING, kind.encode()),
            Pair(b"tokenizer.ggml.pre", STRING, b"default"),
            Pair(b"tokenizer.ggml.tokens", ARRAY, Array(STRING, list(tokens))),
            Pair(b"tokenizer.ggml.scores", ARRAY, Array(F32, [-float(i) for i in range(n)])),
            Pair(b"tokenizer.ggml.token_type", ARRAY, Array(I32, [2, 3, 3] + [6] * 256 + [1] * (n - 259))),
            Pair(b"tokenizer.ggml.merges", ARRAY, Array(STRING, [b"t h", b"h e", b"th e"])),
            Pair(b"tokenizer.ggml.unknown_token_id", U32, 0),
            Pair(b"tokenizer.ggml.bos_token_id", U32, 1),
            Pair(b"tokenizer.ggml.eos_token_id", U32, 2),
            Pair(b"tokenizer.ggml.precompiled_charsmap", ARRAY, Array(0, list(b"\4\0\0\0\0\0\0\0abcd\0"))),
            Pair(b"tokenizer.chat_template", STRING, b"{% for m in messages %}{{ m.content }}{% endfor %}"),
        ]
        found[f"vocabulary {kind}"] = File(pairs, [])
    return found


def embedded() -> dict[str, File]:
    """The models in the wheel."""
    import lloyal

    return {name: parse(Path(lloyal.models.path(name)).read_bytes()) for name in ("nano-draft", "nano-hybrid", "nano")}
