"""Tiny models with random weights, one for every kind of memory, written in milliseconds.

`tiny(name)` gives the path of one, written at its first use and kept for the process. The weights are scaled
so that the logits depend on the whole context: a wrong row in a cache shows. Heads have 32 values, so quantized
caches (blocks of 32) are legal. The vocabulary is llama.cpp's "test" kind: every 5 bytes of text are one token,
any id decodes.

==============  =====================  ====================================================================
name            ``memory.kind``        also
==============  =====================  ====================================================================
``llama``       attention
``gemma3``      sliding_window         window 16 on every other layer
``llama4``      sliding_window         chunks of 8192 positions (the architecture fixes it) on 3 of 4 layers
``mamba2``      recurrent              no rollback ring
``lfm2``        hybrid                 rollback ring; layers 0 and 2 are short convolutions
``lfm2-swa``    hybrid_sliding_window  rollback ring; window 16 on both attention layers
``falcon-h1``   hybrid                 every layer has attention and a recurrent state; no ring
``qwen35``      hybrid                 rollback ring, M-RoPE positions
``qwen35-mtp``  hybrid                 the same with a multi-token-prediction head
``gpt2``        attention              a learned position table of 128 rows
==============  =====================  ====================================================================
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

N_VOCAB = 128
N_EMBD = 64
N_HEAD = 2
N_FF = 96
N_LAYER = 4
HEAD = N_EMBD // N_HEAD
WINDOW = 16
CHUNK = 8192
N_CTX_TRAIN = 4096
N_POS_TABLE = 128

Shape = tuple[int, ...]


@dataclasses.dataclass
class Recipe:
    """The tensors and metadata of one model, in the order they are added."""

    arch: str
    seed: int
    keys: dict[str, object] = dataclasses.field(default_factory=dict)
    tensors: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def matrix(self, name: str, n_in: int, n_out: int, gain: float = 1.0) -> None:
        """Random weights that turn values of unit variance into values of variance gain**2."""
        self.tensors[name] = self.rng.normal(0.0, gain / np.sqrt(n_in), (n_out, n_in))

    def vector(self, name: str, shape: int | Shape, value: float = 1.0) -> None:
        self.tensors[name] = np.full(shape, value)

    def random(self, name: str, shape: int | Shape, stdev: float, mean: float = 0.0) -> None:
        self.tensors[name] = self.rng.normal(mean, stdev, shape)

    def decay(self, name: str, shape: int | Shape) -> None:
        """Negative rates of a recurrent state: memories from a few to a few hundred tokens long."""
        self.tensors[name] = -np.exp(self.rng.uniform(np.log(0.005), np.log(0.3), shape))

    # The common parts. Gains are above 1 where tokens meet each other, so that attention is sharp and its result
    # is not drowned in the token's own embedding.

    def head(self, norm: str = "output_norm.weight") -> None:
        self.random("token_embd.weight", (N_VOCAB, N_EMBD), 0.5)
        self.vector(norm, N_EMBD)
        self.matrix("output.weight", N_EMBD, N_VOCAB, 2.0)

    def attention(self, layer: int, *, q_parts: int = 1, qk_norm: bool = False) -> None:
        prefix = f"blk.{layer}."
        self.matrix(prefix + "attn_q.weight", N_EMBD, N_EMBD * q_parts, 1.5)
        self.matrix(prefix + "attn_k.weight", N_EMBD, N_EMBD, 1.5)
        self.matrix(prefix + "attn_v.weight", N_EMBD, N_EMBD, 1.5)
        self.matrix(prefix + "attn_output.weight", N_EMBD, N_EMBD, 2.0)
        if qk_norm:
            self.vector(prefix + "attn_q_norm.weight", HEAD, 1.5)
            self.vector(prefix + "attn_k_norm.weight", HEAD, 1.5)

    def biases(self, i: int) -> None:
        """Zeros, as models of the GPT-2 family have them."""
        sizes = {
            "attn_norm": N_EMBD,
            "ffn_norm": N_EMBD,
            "attn_qkv": 3 * N_EMBD,
            "attn_output": N_EMBD,
            "ffn_up": N_FF,
            "ffn_down": N_EMBD,
        }
        for name, n in sizes.items():
            self.vector(f"blk.{i}.{name}.bias", n, 0.0)

    def feed_forward(self, layer: int) -> None:
        prefix = f"blk.{layer}."
        self.matrix(prefix + "ffn_gate.weight", N_EMBD, N_FF)
        self.matrix(prefix + "ffn_up.weight", N_EMBD, N_FF)
        self.matrix(prefix + "ffn_down.weight", N_FF, N_EMBD)

    def norms(self, layer: int, *names: str) -> None:
        for name in names:
            self.vector(f"blk.{layer}.{name}", N_EMBD)

    def mamba2(self, layer: int) -> None:
        inner, state, heads, groups = 128, 16, 4, 1
        prefix = f"blk.{layer}."
        conv = inner + 2 * groups * state
        self.matrix(prefix + "ssm_in.weight", N_EMBD, inner + conv + heads, 1.5)
        self.matrix(prefix + "ssm_conv1d.weight", 4, conv, 1.5)
        self.vector(prefix + "ssm_conv1d.bias", conv, 0.0)
        self.random(prefix + "ssm_dt.bias", heads, 0.5)
        self.decay(prefix + "ssm_a", (heads, 1))
        self.random(prefix + "ssm_d", (heads, 1), 0.2, 1.0)
        self.vector(prefix + "ssm_norm.weight", (groups, inner // groups))
        self.matrix(prefix + "ssm_out.weight", inner, N_EMBD, 2.0)
        self.ssm_keys(inner, state, heads, groups)

    def ssm_keys(self, inner: int, state: int, heads: int, groups: int) -> None:
        self.keys |= {
            "ssm.conv_kernel": 4,
            "ssm.inner_size": inner,
            "ssm.state_size": state,
            "ssm.time_step_rank": heads,
            "ssm.group_count": groups,
        }

    def attention_keys(self) -> None:
        self.keys |= {
            "attention.head_count": N_HEAD,
            "attention.head_count_kv": N_HEAD,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "feed_forward_length": N_FF,
            "rope.dimension_count": HEAD,
        }

    def write(self, path: Path) -> None:
        writer = gguf.GGUFWriter(path, self.arch)
        writer.add_name(f"tiny random {self.arch}")
        sizes = {
            "context_length": N_CTX_TRAIN,
            "embedding_length": N_EMBD,
            "block_count": N_LAYER,
            "vocab_size": N_VOCAB,
        }
        for key, value in (sizes | self.keys).items():
            key = key if key.startswith("tokenizer.") else f"{self.arch}.{key}"
            if isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, int):
                writer.add_uint32(key, value)
            elif isinstance(value, float):
                writer.add_float32(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            else:
                writer.add_array(key, value)
        writer.add_tokenizer_model("test")
        writer.add_token_list([f"tok_{i}" for i in range(N_VOCAB)])
        writer.add_token_scores([0.0] * N_VOCAB)
        for name, values in self.tensors.items():
            writer.add_tensor(name, values if values.dtype == np.int64 else values.astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def llama(seed: int) -> Recipe:
    recipe = Recipe("llama", seed)
    recipe.attention_keys()
    recipe.head()
    for i in range(N_LAYER):
        recipe.norms(i, "attn_norm.weight", "ffn_norm.weight")
        recipe.attention(i)
        recipe.feed_forward(i)
    return recipe


def gemma3(seed: int) -> Recipe:
    recipe = Recipe("gemma3", seed)
    recipe.attention_keys()
    recipe.keys |= {"attention.sliding_window": WINDOW, "attention.sliding_window_pattern": 2}
    recipe.head()
    for i in range(N_LAYER):
        recipe.norms(i, "attn_norm.weight", "ffn_norm.weight", "post_ffw_norm.weight")
        recipe.attention(i, qk_norm=True)
        recipe.feed_forward(i)
        # What attention found is normalized before it joins the embeddings, which gemma multiplies by 8.
        recipe.vector(f"blk.{i}.post_attention_norm.weight", N_EMBD, 4.0)
    return recipe


def llama4(seed: int) -> Recipe:
    recipe = Recipe("llama4", seed)
    recipe.attention_keys()
    recipe.keys |= {
        "expert_count": 2,
        "expert_used_count": 1,
        "expert_feed_forward_length": N_FF,
        "interleave_moe_layer_step": 8,
    }
    recipe.head()
    for i in range(N_LAYER):
        recipe.norms(i, "attn_norm.weight", "ffn_norm.weight")
        recipe.attention(i)
        recipe.feed_forward(i)
    return recipe


def mamba2(seed: int) -> Recipe:
    recipe = Recipe("mamba2", seed)
    recipe.keys["attention.layer_norm_rms_epsilon"] = 1e-5
    recipe.head()
    for i in range(N_LAYER):
        recipe.norms(i, "attn_norm.weight")
        recipe.mamba2(i)
    return recipe


def lfm2(seed: int) -> Recipe:
    recipe = Recipe("lfm2", seed)
    recipe.attention_keys()
    recipe.keys |= {"attention.head_count_kv": [0, N_HEAD, 0, N_HEAD], "shortconv.l_cache": 3}
    recipe.head("token_embd_norm.weight")
    for i in range(N_LAYER):
        recipe.norms(i, "attn_norm.weight", "ffn_norm.weight")
        if i % 2:
            recipe.attention(i, qk_norm=True)
        else:
            recipe.matrix(f"blk.{i}.shortconv.conv.weight", 3, N_EMBD, 1.5)
            recipe.matrix(f"blk.{i}.shortconv.in_proj.weight", N_EMBD, 3 * N_EMBD, 1.5)
            recipe.matrix(f"blk.{i}.shortconv.out_proj.weight", N_EMBD, N_EMBD, 1.5)
        recipe.feed_forward(i)
    return recipe


def lfm2_swa(seed: int) -> Recipe:
    recipe = lfm2(seed)
    recipe.keys["attention.sliding_window"] = WINDOW
    return recipe


def falcon_h1(seed: int) -> Recipe:
    recipe = Recipe("falcon-h1", seed)
    recipe.attention_keys()
    recipe.head()
    for i in range(N_LAYER):
        recipe.norms(i, "attn_norm.weight", "ffn_norm")  # this architecture's ffn_norm has no ".weight"
        recipe.attention(i)
        recipe.mamba2(i)
        recipe.feed_forward(i)
    return recipe


def qwen35(seed: int, mtp: bool = False) -> Recipe:
    state, n_k, n_v = 16, 2, 4
    d_k, d_v = state * n_k, state * n_v
    recipe = Recipe("qwen35", seed)
    recipe.attention_keys()
    recipe.keys |= {"rope.dimension_sections": [HEAD // 4, HEAD // 4, 0, 0], "full_attention_interval": 2}
    recipe.ssm_keys(d_v, state, n_v, n_k)
    recipe.head()
    for i in range(N_LAYER + mtp):
        recipe.norms(i, "attn_norm.weight", "post_attention_norm.weight")
        if i % 2 or i == N_LAYER:
            recipe.attention(i, q_parts=2, qk_norm=True)
        else:
            prefix = f"blk.{i}."
            recipe.matrix(prefix + "attn_qkv.weight", N_EMBD, 2 * d_k + d_v, 1.5)
            recipe.matrix(prefix + "attn_gate.weight", N_EMBD, d_v, 1.5)
            recipe.matrix(prefix + "ssm_conv1d.weight", 4, 2 * d_k + d_v, 1.5)
            recipe.random(prefix + "ssm_dt.bias", n_v, 0.5)
            recipe.decay(prefix + "ssm_a", n_v)
            recipe.matrix(prefix + "ssm_beta.weight", N_EMBD, n_v)
            recipe.matrix(prefix + "ssm_alpha.weight", N_EMBD, n_v)
            recipe.vector(prefix + "ssm_norm.weight", state)
            recipe.matrix(prefix + "ssm_out.weight", d_v, N_EMBD, 2.0)
        recipe.feed_forward(i)
    if mtp:
        prefix = f"blk.{N_LAYER}.nextn."
        recipe.keys |= {"nextn_predict_layers": 1, "block_count": N_LAYER + 1}
        recipe.matrix(prefix + "eh_proj.weight", 2 * N_EMBD, N_EMBD)
        recipe.norms(N_LAYER, "nextn.enorm.weight", "nextn.hnorm.weight")
    return recipe


def qwen35_mtp(seed: int) -> Recipe:
    return qwen35(seed, mtp=True)


def gpt2(seed: int) -> Recipe:
    recipe = Recipe("gpt2", seed)
    recipe.keys |= {
        "attention.head_count": N_HEAD,
        "attention.layer_norm_epsilon": 1e-5,
        "feed_forward_length": N_FF,
        "context_length": N_POS_TABLE,
    }
    recipe.head()
    recipe.vector("output_norm.bias", N_EMBD, 0.0)
    recipe.random("position_embd.weight", (N_POS_TABLE, N_EMBD), 0.5)
    for i in range(N_LAYER):
        prefix = f"blk.{i}."
        recipe.norms(i, "attn_norm.weight", "ffn_norm.weight")
        recipe.matrix(prefix + "attn_qkv.weight", N_EMBD, 3 * N_EMBD, 1.5)
        recipe.matrix(prefix + "attn_output.weight", N_EMBD, N_EMBD, 2.0)
        recipe.matrix(prefix + "ffn_up.weight", N_EMBD, N_FF)
        recipe.matrix(prefix + "ffn_down.weight", N_FF, N_EMBD)
        recipe.biases(i)
    return recipe


RECIPES: dict[str, Callable[[int], Recipe]] = {
    "llama": llama,
    "gemma3": gemma3,
    "llama4": llama4,
    "mamba2": mamba2,
    "lfm2": lfm2,
    "lfm2-swa": lfm2_swa,
    "falcon-h1": falcon_h1,
    "qwen35": qwen35,
    "qwen35-mtp": qwen35_mtp,
    "gpt2": gpt2,
}
NAMES = tuple(RECIPES)

# The memory of each, written down independently of lloyal: what the architecture's layers need.
KINDS = {
    "llama": "attention",
    "gemma3": "sliding_window",
    "llama4": "sliding_window",
    "mamba2": "recurrent",
    "lfm2": "hybrid",
    "lfm2-swa": "hybrid_sliding_window",
    "falcon-h1": "hybrid",
    "qwen35": "hybrid",
    "qwen35-mtp": "hybrid",
    "gpt2": "attention",
}


def write(name: str, path: str | Path, seed: int = 0) -> Path:
    """Write the model `name` with the weights of `seed` (another seed is another model of the same shape)."""
    RECIPES[name](seed).write(Path(path))
    return Path(path)


@functools.cache
def _folder() -> Path:
    folder = tempfile.mkdtemp(prefix="lloyal-tiny-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@functools.cache
def tiny(name: str, seed: int = 0) -> Path:
    """The path of the model `name`, written at the first call; the file lives as long as this process."""
    return write(name, _folder() / f"{name}-{seed}.gguf", seed)


def tokens(n: int, seed: int = 0) -> list[int]:
    """`n` random tokens of the tiny models' vocabulary."""
    return np.random.default_rng(seed).integers(0, N_VOCAB, n).tolist()
