"""Torch definitions of the two architectures, laid out as llama.cpp evaluates them.

`Decoder` covers both: a llama layer is attention (interleaved RoPE) and a gated feed-forward; an lfm2 layer
is either attention with normed queries and keys (half-split RoPE) or a short gated convolution, then the same
feed-forward.  Parameter names follow llama.cpp's tensor names, so export needs no table.  Does not know about
data or files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    """Shape of one model.  `conv_layers` are lfm2's convolutional layers; none means a llama model."""

    name: str
    n_embd: int
    n_layer: int
    n_head: int
    n_head_kv: int
    n_ff: int
    n_vocab: int
    head_dim: int = 64  # flash attention on a CPU steps by 64 values and takes the rest one by one
    conv_layers: tuple[int, ...] = ()
    conv_width: int = 3
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    n_ctx: int = 32768
    quant: str = "F16"  # of the exported matrices

    @property
    def arch(self) -> str:
        return "lfm2" if self.conv_layers else "llama"


class Cache:
    """What `batch` rows of at most `capacity` tokens leave behind; `past` counts the tokens seen."""

    def __init__(self, config: Config, batch: int, capacity: int, dtype: torch.dtype = torch.float32) -> None:
        self.past = 0
        shape = (batch, config.n_head_kv, capacity, config.head_dim)
        self.tensors: list[tuple[Tensor, ...]] = [
            () if i in config.conv_layers else tuple(torch.zeros(2, *shape, dtype=dtype)) for i in range(config.n_layer)
        ]


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * self.weight).to(x.dtype)


def rope_table(config: Config, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, [length, head_dim / 2]."""
    inverse = config.rope_base ** (-torch.arange(0, config.head_dim, 2).float() / config.head_dim)
    angle = torch.outer(torch.arange(length).float(), inverse)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotate pairs of elements of each head: neighbours if interleaved, else i with i + head_dim / 2."""
    if interleaved:
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2).to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).to(x.dtype)


WRITTEN_OUT_UP_TO = 256


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention.  On a CPU in bfloat16 this written-out form trains faster on short rows only."""
    length = q.shape[2]
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    if length > WRITTEN_OUT_UP_TO:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    scores = (q * (1.0 / math.sqrt(q.shape[-1]))) @ k.transpose(-1, -2)
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    scores = scores.masked_fill(hidden, float("-inf"))
    return scores.float().softmax(-1).to(v.dtype) @ v


def attend_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of one new token per row to everything in the cache, without repeating the shared heads."""
    batch, n_head, _, head_dim = q.shape
    q = q.view(batch, k.shape[1], n_head // k.shape[1], head_dim)
    scores = (q * (1.0 / math.sqrt(head_dim))) @ k.transpose(-1, -2)
    return (scores.float().softmax(-1).to(v.dtype) @ v).view(batch, n_head, 1, head_dim)


class Attention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        inner, inner_kv = config.n_head * config.head_dim, config.n_head_kv * config.head_dim
        self.attn_q = nn.Linear(config.n_embd, inner, bias=False)
        self.attn_k = nn.Linear(config.n_embd, inner_kv, bias=False)
        self.attn_v = nn.Linear(config.n_embd, inner_kv, bias=False)
        self.attn_output = nn.Linear(inner, config.n_embd, bias=False)
        if config.arch == "lfm2":
            self.attn_q_norm = RMSNorm(config.head_dim, config.norm_eps)
            self.attn_k_norm = RMSNorm(config.head_dim, config.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: Cache | None, index: int) -> Tensor:
        c, (batch, length, _) = self.config, x.shape
        q = self.attn_q(x).view(batch, length, c.n_head, c.head_dim)
        k = self.attn_k(x).view(batch, length, c.n_head_kv, c.head_dim)
        v = self.attn_v(x).view(batch, length, c.n_head_kv, c.head_dim).transpose(1, 2)
        if c.arch == "lfm2":
            q, k = self.attn_q_norm(q), self.attn_k_norm(k)
        q = rotate(q.transpose(1, 2), cos, sin, c.arch == "llama")
        k = rotate(k.transpose(1, 2), cos, sin, c.arch == "llama")
        if cache is None:
            y = attend(q, k, v)
        else:
            past, (keys, values) = cache.past, cache.tensors[index]
            keys[:, :, past : past + length], values[:, :, past : past + length] = k, v
            if past and length > 1:
                raise ValueError("a filled cache takes one token at a time")
            y = attend_one(q, keys[:, :, : past + 1], values[:, :, : past + 1]) if past else attend(q, k, v)
        return self.attn_output(y.transpose(1, 2).reshape(batch, length, -1))


class ShortConv(nn.Module):
    """Gate, convolve causally over `conv_width` tokens, gate again."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.in_proj = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.conv = nn.Parameter(torch.zeros(config.n_embd, config.conv_width))
        self.out_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        with torch.no_grad():
            self.conv[:, -1] = 1.0

    def forward(self, x: Tensor, cache: Cache | None, index: int) -> Tensor:
        gate_in, gate_out, value = self.in_proj(x).chunk(3, dim=-1)
        gated = gate_in * value
        width = self.conv.shape[1]
        padded = F.pad(gated, (0, 0, width - 1, 0))
        if cache is not None:
            if cache.past:
                padded = torch.cat((cache.tensors[index][0], gated), dim=1)
            cache.tensors[index] = (padded[:, padded.shape[1] - width + 1 :],)
        length = x.shape[1]
        mixed = sum(padded[:, k : k + length] * self.conv[:, k] for k in range(width))
        return self.out_proj((gate_out * mixed).to(x.dtype))


class Layer(nn.Module):
    def __init__(self, config: Config, index: int) -> None:
        super().__init__()
        self.is_conv = index in config.conv_layers
        self.attn_norm = RMSNorm(config.n_embd, config.norm_eps)
        if self.is_conv:
            self.shortconv = ShortConv(config)
        else:
            self.attn = Attention(config)
        self.ffn_norm = RMSNorm(config.n_embd, config.norm_eps)
        self.ffn_gate = nn.Linear(config.n_embd, config.n_ff, bias=False)
        self.ffn_up = nn.Linear(config.n_embd, config.n_ff, bias=False)
        self.ffn_down = nn.Linear(config.n_ff, config.n_embd, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: Cache | None, index: int) -> Tensor:
        h = self.attn_norm(x)
        x = x + (self.shortconv(h, cache, index) if self.is_conv else self.attn(h, cos, sin, cache, index))
        h = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))


class Decoder(nn.Module):
    """Token ids [batch, length] to logits [batch, length, n_vocab]; both embeddings are one matrix."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.token_embd = nn.Embedding(config.n_vocab, config.n_embd)
        self.blk = nn.ModuleList(Layer(config, i) for i in range(config.n_layer))
        self.output_norm = RMSNorm(config.n_embd, config.norm_eps)
        cos, sin = rope_table(config, 4096)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2 and "conv.conv" not in name:
                std = 0.02 if name.startswith("token_embd") else 0.5 / math.sqrt(weight.shape[1])
                if name.endswith(("attn_output.weight", "ffn_down.weight", "out_proj.weight")):
                    std /= math.sqrt(2 * config.n_layer)
                nn.init.normal_(weight, std=std)

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        start, length = cache.past if cache else 0, ids.shape[1]
        cos, sin = self.cos[start : start + length], self.sin[start : start + length]
        x = self.token_embd(ids)
        for i, layer in enumerate(self.blk):
            x = layer(x, cos, sin, cache, i)
        if cache:
            cache.past += length
        return F.linear(self.output_norm(x), self.token_embd.weight)

    def n_params(self) -> int:
        return sum(p.numel() for p in self.parameters())
