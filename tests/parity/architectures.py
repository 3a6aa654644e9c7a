"""Every architecture that upstream's generator writes, and what its memory must be.

The names are the generator's file names. The classes were read off llama.cpp's choice of memory for each architecture;
a test compares them with the run-time type that a program without any of lloyal's code sees.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

import lloyal

PLAIN = """
    arcee-dense arctic-moe baichuan-dense bailingmoe-moe bailingmoe2-moe bloom-dense chatglm-dense codeshell-dense
    cogvlm-dense command-r-dense dbrx-moe deci-dense deepseek-moe deepseek2-moe dots1-moe ernie4_5-moe-moe ernie4_5-moe
    exaone-dense exaone4-dense falcon-dense gemma-dense glm4-dense glm4moe-moe gpt2-dense gptneox-dense granite-dense
    granite-moe granitemoe-dense granitemoe-moe grok-moe grovemoe-moe hrm_text-dense hunyuan-dense-dense
    hunyuan-moe-moe hunyuan_vl-dense hy_v3-moe internlm2-dense jais-dense jais2-dense llama-dense llama-moe
    maincoder-dense minicpm-dense minicpm-moe minicpm3-dense minimax-m2-moe mistral3-dense mistral3-moe mistral4-moe
    mpt-dense nanbeige-dense nemotron-dense olmo-dense olmoe-moe openelm-dense orion-dense paddleocr-moe
    pangu-embedded-dense phi2-dense phi3-dense phimoe-moe plamo-dense pockettts-dense qwen-dense qwen2-dense
    qwen2moe-moe qwen2vl-dense qwen3-dense qwen3moe-moe qwen3tts-dense qwen3vl-dense qwen3vlmoe-moe refact-dense
    refact-moe seed_oss-dense smollm3-dense stablelm-dense starcoder-dense starcoder2-dense talkie-dense xverse-dense
"""

WINDOW = """
    afmoe-moe cohere2-dense cohere2moe-moe exaone-moe-moe gemma2-dense gemma3-dense gpt-oss-moe granite_swa-dense
    laguna-moe llama4-moe maple-moe mellum-moe mimo2-moe muse-glimmer-dense olmo2-dense plamo3-dense smallthinker-moe
    spark2_5-dense
"""

HYBRID = """
    bailingmoe3-moe falcon-h1-dense granitehybrid-dense jamba-dense kimi-k3-moe kimi-linear-moe lfm2moe-moe
    minimax-01-moe nemotron_h-dense nemotron_h_moe-dense plamo2-dense qwen35-dense qwen35moe-moe qwen3next-moe
"""

# class of llama.cpp's memory -> (`memory.kind`, architectures)
MEMORY_CLASSES: dict[str, tuple[str, list[str]]] = {
    "llama_kv_cache": ("attention", PLAIN.split()),
    "llama_kv_cache_iswa": ("sliding_window", WINDOW.split()),
    "llama_kv_cache_dsa": ("sparse_attention", ["deepseek32-moe", "glm-dsa-moe", "hy_v4-moe"]),
    "llama_kv_cache_dsa_iswa": ("sparse_attention", ["dots3note-moe"]),
    "llama_kv_cache_msa": ("sparse_attention", ["minimax-m3-moe"]),
    "llama_kv_cache_dsv4": ("compressed", ["deepseek4-moe"]),
    "llama_memory_recurrent": ("recurrent", ["mamba-dense", "mamba2-dense"]),
    "llama_memory_hybrid": ("hybrid", HYBRID.split()),
    "llama_memory_hybrid_iswa": ("hybrid_sliding_window", ["lfm2-dense"]),
    "llama_memory_hybrid_idx": ("hybrid_indexed", ["glm5-next-moe", "qwen4exp-moe"]),
    "none": ("none", ["dream-dense", "llada-dense", "llada-moe-moe", "rnd1-moe"]),
}

# Architectures whose recurrent states llama.cpp can keep in a rollback ring.
RING = {
    "bailingmoe3-moe",
    "deepseek4-moe",
    "glm5-next-moe",
    "kimi-k3-moe",
    "lfm2-dense",
    "lfm2moe-moe",
    "nemotron_h-dense",
    "nemotron_h_moe-dense",
    "qwen35-dense",
    "qwen35moe-moe",
    "qwen4exp-moe",
}

# llama4 attends in chunks of 8192 positions, smallthinker in a window of 4096.
LARGE_WINDOW = {"llama4-moe", "smallthinker-moe"}


@dataclasses.dataclass(frozen=True)
class Architecture:
    name: str
    memory_class: str
    kind: str

    @property
    def has_memory(self) -> bool:
        return self.kind != "none"

    @property
    def has_small_window(self) -> bool:
        """A window of 32 positions, as the generator asks for; some architectures fix theirs."""
        return ("iswa" in self.memory_class or self.kind == "compressed") and self.name not in LARGE_WINDOW

    @property
    def has_state(self) -> bool:
        """Rows are folded into a state that only a ring can take back."""
        return self.kind in ("recurrent", "compressed") or self.kind.startswith("hybrid")

    @property
    def has_ring(self) -> bool:
        return self.name in RING

    @property
    def generator_name(self) -> str:
        """What the generator calls the architecture: the file name without -dense or -moe at its end."""
        return self.name.rpartition("-")[0]


ARCHITECTURES = {
    name: Architecture(name, memory_class, kind)
    for memory_class, (kind, names) in MEMORY_CLASSES.items()
    for name in names
}

FULL = bool(os.environ.get("LLOYAL_TEST_FULL"))

# One of every class, with and without a ring, a mixture of experts and M-RoPE among them.
SAMPLE = (
    "deepseek2-moe",
    "deepseek32-moe",
    "deepseek4-moe",
    "dots3note-moe",
    "falcon-h1-dense",
    "gemma3-dense",
    "lfm2-dense",
    "llada-dense",
    "llama-dense",
    "mamba2-dense",
    "minimax-m3-moe",
    "plamo2-dense",
    "qwen35-dense",
    "qwen4exp-moe",
)


def chosen(condition: Callable[[Architecture], bool] = lambda arch: True) -> list[str]:
    """The names this run tests: the sample, or all with LLOYAL_TEST_FULL=1."""
    return [name for name in (sorted(ARCHITECTURES) if FULL else SAMPLE) if condition(ARCHITECTURES[name])]


Contexts = Callable[..., lloyal.Context]


@contextlib.contextmanager
def contexts_of(model: lloyal.Model, common: dict[str, Any]) -> Iterator[Contexts]:
    """Makes contexts with these parameters and more, and closes them."""
    with contextlib.ExitStack() as made:
        yield lambda **parameters: made.enter_context(lloyal.Context(model, **(common | parameters)))
