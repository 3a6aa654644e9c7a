"""Rescales the generator's weights so that what a model says depends on its whole context.

The generator draws every value of every tensor from one normal distribution of deviation 0.1: norms, scales and rope
factors included. Activations then shrink at every norm, attention is flat, and the last token's own embedding decides
the logits: another context moves them by less than 1e-2, so a comparison of logits cannot tell a wrong cache. Here
each tensor gets the deviation its role asks for.
"""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np

GENERATED_STDEV = 0.1

# The first pattern that matches a tensor's name decides. A number is the gain of a matrix: it turns inputs of unit
# variance into outputs of variance gain**2. Gains are above 1 where tokens meet each other.
RULES: tuple[tuple[str, float | str], ...] = (
    (r"scales?$|\.layer_output_scale\.|^rope_|\.rope_", "one"),  # factors of something that is scaled already
    (r"hc_.*_scale|hc_scale", "one"),
    (r"\.bias$|_base\.weight$|attn_sinks|exp_probs_b|z_l_init", "keep"),
    (r"norm", "around one"),
    (r"ssm_d$", "around one"),
    (r"ssm_a$", "decay"),
    (r"token_embd|position_embd", "embedding"),
    (r"attn_k_b\.weight$", 0.6),  # multi-head latent attention folds it into the query, the wrong way round
    (r"attn_(q|k|v|qkv|kv|q_a|q_b|kv_a_mqa|kv_b|v_b)\.weight$|indexer\.(attn_\w+|\w_proj)", 1.5),
    (r"attn_output(_a|_b)?\.weight$|ssm_out|shortconv\.out_proj", 2.0),
    (r"ssm_(in|conv1d\w*|x)\b|shortconv", 1.5),
    (r"^output\.weight$", 2.0),
    (r"", 1.0),
)


def rescale(path: Path) -> None:
    """Rescale the tensors of a generated GGUF file in place."""
    reader = gguf.GGUFReader(path, "r+")
    for tensor in reader.tensors:
        if tensor.data.dtype not in (np.float32, np.float16):
            raise ValueError(f"{path}: {tensor.name} is {tensor.tensor_type.name}; the generator writes F32 and F16")
        values = tensor.data
        rule = next(rule for pattern, rule in RULES if re.search(pattern, tensor.name))
        if isinstance(rule, float):
            values *= rule / np.sqrt(tensor.shape[0]) / GENERATED_STDEV
        elif rule == "one":
            values[...] = 1.0
        elif rule == "around one":
            values += 1.0
        elif rule == "embedding":
            values *= 0.5 / GENERATED_STDEV
        elif rule == "decay":
            # Rates from a hundredth to a few tenths per token: states that remember long enough to matter.
            values[...] = -0.01 * np.exp(np.minimum(np.abs(values) / GENERATED_STDEV, 3.0))
    reader.data.flush()
