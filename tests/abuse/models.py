"""Tiny models that only the abuse cases need: learned position tables, encoders, no tokenizer."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from tests.models import HEAD, N_EMBD, N_FF, N_HEAD, N_LAYER, N_VOCAB, Recipe

N_POS_TABLE = 64


def mpt(seed: int = 0) -> Recipe:
    recipe = Recipe("mpt", seed)
    recipe.keys |= {
        "attention.head_count": N_HEAD,
        "attention.layer_norm_epsilon": 1e-5,
        "attention.max_alibi_bias": 0.0,
        "feed_forward_length": N_FF,
        "context_length": N_POS_TABLE,
    }
    recipe.head()
    recipe.random("position_embd.weight", (N_POS_TABLE, N_EMBD), 0.5)
    for i in range(N_LAYER):
        prefix = f"blk.{i}."
        recipe.norms(i, "attn_norm.weight", "ffn_norm.weight")
        recipe.matrix(prefix + "attn_qkv.weight", N_EMBD, 3 * N_EMBD, 1.5)
        recipe.matrix(prefix + "attn_output.weight", N_EMBD, N_EMBD, 2.0)
        recipe.matrix(prefix + "ffn_up.weight", N_EMBD, N_FF)
        recipe.matrix(prefix + "ffn_down.weight", N_FF, N_EMBD)
    return recipe


def starcoder(seed: int = 0) -> Recipe:
    recipe = mpt(seed)
    recipe.arch = "starcoder"
    del recipe.keys["attention.max_alibi_bias"]
    recipe.vector("output_norm.bias", N_EMBD, 0.0)
    for i in range(N_LAYER):
        recipe.biases(i)
    return recipe


def bert(seed: int = 0) -> Recipe:
    recipe = Recipe("bert", seed)
    recipe.keys |= {
        "attention.head_count": N_HEAD,
        "attention.layer_norm_epsilon": 1e-5,
        "attention.causal": False,
        "feed_forward_length": N_FF,
        "context_length": N_POS_TABLE,
        "tokenizer.ggml.token_type_count": 2,
    }
    recipe.random("token_embd.weight", (N_VOCAB, N_EMBD), 0.5)
    recipe.random("position_embd.weight", (N_POS_TABLE, N_EMBD), 0.5)
    recipe.random("token_types.weight", (2, N_EMBD), 0.5)
    recipe.vector("token_embd_norm.weight", N_EMBD)
    recipe.vector("token_embd_norm.bias", N_EMBD, 0.0)
    for i in range(N_LAYER):
        prefix = f"blk.{i}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            recipe.matrix(f"{prefix}{name}.weight", N_EMBD, N_EMBD)
            recipe.vector(f"{prefix}{name}.bias", N_EMBD, 0.0)
        recipe.matrix(prefix + "ffn_up.weight", N_EMBD, N_FF)
        recipe.vector(prefix + "ffn_up.bias", N_FF, 0.0)
        recipe.matrix(prefix + "ffn_down.weight", N_FF, N_EMBD)
        recipe.vector(prefix + "ffn_down.bias", N_EMBD, 0.0)
        for name in ("attn_output_norm", "layer_output_norm"):
            recipe.vector(f"{prefix}{name}.weight", N_EMBD)
            recipe.vector(f"{prefix}{name}.bias", N_EMBD, 0.0)
    return recipe


def t5(seed: int = 0) -> Recipe:
    recipe = Recipe("t5", seed)
    recipe.keys |= {
        "attention.head_count": N_HEAD,
        "attention.key_length": HEAD,
        "attention.value_length": HEAD,
        "attention.layer_norm_epsilon": 1e-5,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.relative_buckets_count": 8,
        "feed_forward_length": N_FF,
        "decoder_start_token_id": 0,
    }
    recipe.random("token_embd.weight", (N_VOCAB, N_EMBD), 0.5)
    recipe.matrix("output.weight", N_EMBD, N_VOCAB, 2.0)
    for side in ("enc", "dec"):
        recipe.vector(f"{side}.output_norm.weight", N_EMBD)
        for i in range(N_LAYER):
            prefix = f"{side}.blk.{i}."
            recipe.random(prefix + "attn_rel_b.weight", (8, N_HEAD), 0.1)
            for block in ("attn", "cross_attn")[: 2 if side == "dec" else 1]:
                recipe.vector(f"{prefix}{block}_norm.weight", N_EMBD)
                for part in ("q", "k", "v", "o"):
                    recipe.matrix(f"{prefix}{block}_{part}.weight", N_EMBD, N_EMBD, 1.5)
            recipe.vector(prefix + "ffn_norm.weight", N_EMBD)
            recipe.matrix(prefix + "ffn_up.weight", N_EMBD, N_FF)
            recipe.matrix(prefix + "ffn_down.weight", N_FF, N_EMBD)
    return recipe


RECIPES = {"mpt": mpt, "starcoder": starcoder, "bert": bert, "t5": t5}


def write(name: str, folder: Path) -> Path:
    path = folder / f"{name}.gguf"
    RECIPES[name]().write(path)
    return path


def without_tokenizer(source: Path, path: Path) -> Path:
    """A copy of a GGUF file whose tokenizer is llama.cpp's kind "none"."""
    reader = gguf.GGUFReader(source)
    arch = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(path, arch)
    for name, field in reader.fields.items():
        if name.startswith(f"{arch}."):
            writer.add_key_value(
                name, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None
            )
    writer.add_tokenizer_model("none")
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
