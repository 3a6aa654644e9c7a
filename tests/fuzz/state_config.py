"""What a history runs on: a model, the parameters of its contexts, and all of them at random."""

from __future__ import annotations

import dataclasses
import functools
import random
from typing import Any

import lloyal
from tests.models import KINDS, tiny

# Weight by model: the more there is to a memory, the more often.
MODELS = {
    "llama": 3,
    "gemma3": 4,
    "mamba2": 1,
    "lfm2": 2,
    "lfm2-swa": 3,
    "falcon-h1": 2,
    "qwen35": 3,
    "qwen35-mtp": 1,
    "gpt2": 1,
}
RINGS = ("lfm2", "lfm2-swa", "qwen35", "qwen35-mtp")
MROPE = ("qwen35", "qwen35-mtp")
# What is not right yet, each with what is wrong. Histories of the default suite stay clear of it.
KNOWN: dict[str, str] = {}
TYPES = ("f32", "f32", "f32", "f16", "f16", "q8_0", "q4_0")


@functools.cache
def loaded(name: str) -> lloyal.Model:
    return lloyal.Model(tiny(name) if name in KINDS else name)


@functools.cache
def kind_of(path: str) -> str:
    with lloyal.Context(loaded(path), n_ctx=256, n_seq_max=2, n_threads=1) as ctx:
        return ctx.memory.kind


@dataclasses.dataclass(frozen=True)
class Config:
    """One model and the contexts that a history has of it: the first, and perhaps a second one."""

    model: str
    type_k: str = "f32"
    type_v: str = "f32"
    flash: bool = True
    unified: bool = True
    n_ctx: int = 512
    n_batch: int = 64
    n_ubatch: int = 16
    n_seq_max: int = 4
    swa_full: bool = False
    n_rs_seq: int = 0
    second: tuple[int, int] | None = None  # n_ctx, n_seq_max
    adapters: bool = False

    @property
    def kind(self) -> str:
        return KINDS[self.model] if self.model in KINDS else kind_of(self.model)

    @property
    def tiny(self) -> bool:
        """One of the models that tests write, about which everything is known; otherwise it is a file."""
        return self.model in KINDS

    @property
    def readable(self) -> bool:
        """Raw states of it are understood."""
        return self.tiny or self.kind in ("attention", "sliding_window")

    @property
    def mrope(self) -> bool:
        return self.model in MROPE

    @property
    def has_state(self) -> bool:
        """Only as a whole is it copied, and gone back in."""
        whole = ("recurrent", "hybrid", "hybrid_sliding_window", "hybrid_indexed", "compressed")
        return self.kind in whole

    @property
    def has_window(self) -> bool:
        return self.kind in ("sliding_window", "hybrid_sliding_window")

    @property
    def n_caches(self) -> int:
        return 0 if self.kind == "recurrent" else 1 + self.has_window

    def context(self, model: lloyal.Model, which: int = 0) -> lloyal.Context:
        n_ctx, n_seq_max = (self.n_ctx, self.n_seq_max) if which == 0 or self.second is None else self.second
        return lloyal.Context(
            model,
            n_ctx=n_ctx,
            n_batch=self.n_batch,
            n_ubatch=self.n_ubatch,
            n_seq_max=n_seq_max,
            type_k=self.type_k,
            type_v=self.type_v,
            flash_attn=self.flash,
            kv_unified=self.unified,
            swa_full=self.swa_full,
            n_rs_seq=self.n_rs_seq,
            n_threads=1,
            n_threads_batch=1,
        )

    def oracle(self, model: lloyal.Model, n_seq_max: int = 1) -> lloyal.Context:
        """Of one sequence, or with room for more; everything kept, everything in one micro-batch."""
        return lloyal.Context(
            model,
            n_ctx=1024 if n_seq_max == 1 else 8192,
            n_batch=1024,
            n_ubatch=256,
            n_seq_max=n_seq_max,
            kv_unified=True,
            type_k=self.type_k,
            type_v=self.type_v,
            flash_attn=self.flash,
            swa_full=True,
            n_threads=1,
            n_threads_batch=1,
        )

    @classmethod
    def random(cls, rng: random.Random, model: str | None = None) -> Config:
        name = model or rng.choices(list(MODELS), list(MODELS.values()))[0]
        flash = rng.random() < 0.7
        type_k = rng.choice(TYPES)
        type_v = type_k if flash or type_k in ("f32", "f16") else "f16"
        if name not in KINDS:  # quantized caches, and those without flash attention, are not for every architecture
            flash, type_k, type_v = True, "f16", "f16"
        if name == "mamba2":
            type_k = type_v = "f32"
        n_seq_max = rng.choice((1, 2, 3, 4, 4, 6, 8) if name in KINDS else (2, 3, 4))
        n_ubatch = rng.choice((8, 16, 16, 32, 64))
        return cls(
            model=name,
            type_k=type_k,
            type_v=type_v,
            flash=flash,
            unified=rng.random() < 0.7,
            n_ctx=256 * rng.choice((1, 1, 2, 3)),
            n_batch=rng.choice((n_ubatch, 64, 128)),
            n_ubatch=n_ubatch,
            n_seq_max=n_seq_max,
            swa_full=name in ("gemma3", "lfm2-swa") and rng.random() < 0.1,
            n_rs_seq=rng.choice((0, 3, 6)) if name in RINGS else 0,
            second=(256 * rng.choice((1, 2)), rng.choice((1, 2, n_seq_max))) if rng.random() < 0.3 else None,
            adapters=name in KINDS and rng.random() < 0.15,
        )

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Config:
        second = found.get("second")
        return cls(**(found | {"second": tuple(second) if second else None}))

    def __str__(self) -> str:
        default = {field.name: field.default for field in dataclasses.fields(self)}
        parts = [f"{name}={value}" for name, value in self.to_json().items() if value != default[name]]
        return " ".join([self.model, *(part for part in parts if not part.startswith("model="))])
