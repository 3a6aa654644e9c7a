"""Ring 1: llama.h as Python, under llama.cpp's own names. What we invented lives in `lloyal` itself."""

from lloyal.llama.openmp import passive_waiting

with passive_waiting():  # the first of them loads the native libraries
    from lloyal.llama.adapter import LoraAdapter
    from lloyal.llama.backend import Device, build_info, devices, live_handles, system_info
    from lloyal.llama.batch import Batch
    from lloyal.llama.batch_ext import BatchExt
    from lloyal.llama.buffers import BufferUse
    from lloyal.llama.candidates import Candidates
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
    from lloyal.llama.quantize import FILE_TYPES, quantize, split_path, split_prefix
    from lloyal.llama.rpc import rpc_device, rpc_serve
    from lloyal.llama.sampler import Sampler
    from lloyal.llama.vocab import Vocab

__all__ = [
    "FILE_TYPES",
    "LLAMA_DEFAULT_SEED",
    "LLAMA_STATE_SEQ_FLAGS_NONE",
    "LLAMA_STATE_SEQ_FLAGS_ON_DEVICE",
    "LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY",
    "LLAMA_STATE_SEQ_FLAGS_SWA_ONLY",
    "LLAMA_TOKEN_NULL",
    "Batch",
    "BatchExt",
    "BufferUse",
    "Candidates",
    "Context",
    "ContextParams",
    "Device",
    "Logits",
    "LoraAdapter",
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
    "quantize",
    "rpc_device",
    "rpc_serve",
    "split_path",
    "split_prefix",
    "system_info",
]
