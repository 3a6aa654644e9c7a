"""Writes a trained model and its vocabulary as one GGUF file.

Knows GGUF keys and which tensors stay in 32 bits.  Does not know how the weights came about.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from torch import Tensor

from . import tokenizer
from .model import Config, Decoder
from .tokenizer import Vocab

AUTHOR = "the lloyal authors"
# Splits text as "gpt-2" does, but does not drop the space before punctuation when turning tokens into text.
PRE_TOKENIZER = "trillion"
FILE_TYPES = {
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}


def tensor_name(parameter: str, arch: str) -> str:
    """The GGUF name of a torch parameter."""
    if arch == "lfm2" and parameter.startswith("output_norm."):
        return parameter.replace("output_norm", "token_embd_norm")
    name = parameter.replace(".attn.attn_", ".attn_")
    return name if name.endswith(".weight") else name + ".weight"


def _write_vocab(writer: gguf.GGUFWriter, vocab: Vocab) -> None:
    reserved = len(tokenizer.RESERVED)
    kinds = [gguf.TokenType.CONTROL] * reserved + [gguf.TokenType.NORMAL] * (len(vocab.tokens) - reserved)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(vocab.tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([f"{left} {right}" for left, right in vocab.merges])
    writer.add_bos_token_id(tokenizer.BOS_ID)
    writer.add_eos_token_id(tokenizer.EOS_ID)
    writer.add_eot_token_id(tokenizer.IM_END_ID)
    writer.add_pad_token_id(tokenizer.EOS_ID)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(tokenizer.CHAT_TEMPLATE)


def _write_shape(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_context_length(config.n_ctx)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.n_ff)
    writer.add_head_count(config.n_head)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.n_vocab)
    if config.arch == "lfm2":
        is_conv = [i in config.conv_layers for i in range(config.n_layer)]
        writer.add_head_count_kv([0 if conv else config.n_head_kv for conv in is_conv])
        writer.add_shortconv_l_cache(config.conv_width)
    else:
        writer.add_head_count_kv(config.n_head_kv)


def _pack(name: str, parameter: Tensor, quant: gguf.GGMLQuantizationType) -> tuple[np.ndarray, Any]:
    data = parameter.detach().float().numpy()
    if parameter.dim() == 1 or name.endswith("shortconv.conv"):
        return data, None
    if quant == gguf.GGMLQuantizationType.F16:
        return data.astype(np.float16), None
    return gguf.quants.quantize(data, quant), quant


def write_gguf(model: Decoder, vocab: Vocab, path: Path) -> int:
    """Write `path` (through a temporary file beside it) and return its size in bytes."""
    config = model.config
    temporary = path.with_name(path.name + ".tmp")
    writer = gguf.GGUFWriter(str(temporary), config.arch)
    writer.add_name(config.name)
    writer.add_author(AUTHOR)
    writer.add_license("MIT")
    writer.add_description("Trained on the CPython standard library's source; see MODEL_CARD.md.")
    writer.add_file_type(FILE_TYPES[config.quant])
    _write_shape(writer, config)
    _write_vocab(writer, vocab)
    for name, parameter in model.named_parameters():
        data, dtype = _pack(name, parameter, gguf.GGMLQuantizationType[config.quant])
        writer.add_tensor(tensor_name(name, config.arch), data, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(temporary, path)
    return path.stat().st_size
