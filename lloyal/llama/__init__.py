"""Ring 1: llama.h as Python, under llama.cpp's own names. What we invented lives in `lloyal` itself."""

from lloyal.llama.backend import Device, build_info, devices, live_handles, system_info
from lloyal.llama.batch import Batch
from lloyal.llama.context import Context
from lloyal.llama.enums import (
    LLAMA_DEFAULT_SEED,
    LLAMA_STATE_SEQ_FLAGS_NONE,
    LLAMA_STATE_SEQ_FLAGS_ON_DEVICE,
    LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY,
    LLAMA_STATE_SEQ_FLAGS_SWA_ONLY,
    LLAMA_TOKEN_NULL,
    StateSeqFlags,
    TokenAttr,
    VocabType,
)
from lloyal.llama.memory import Memory
from lloyal.llama.model import Model
from lloyal.llama.outputs import Logits
from lloyal.llama.params import ContextParams, ModelParams
from lloyal.llama.sampler import Sampler
from lloyal.llama.vocab import Vocab

__all__ = [
    "LLAMA_DEFAULT_SEED",
    "LLAMA_STATE_SEQ_FLAGS_NONE",
    "LLAMA_STATE_SEQ_FLAGS_ON_DEVICE",
    "LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY",
    "LLAMA_STATE_SEQ_FLAGS_SWA_ONLY",
    "LLAMA_TOKEN_NULL",
    "Batch",
    "Context",
    "ContextParams",
    "Device",
    "Logits",
    "Memory",
    "Model",
    "ModelParams",
    "Sampler",
    "StateSeqFlags",
    "TokenAttr",
    "Vocab",
    "VocabType",
    "build_info",
    "devices",
    "live_handles",
    "system_info",
]
