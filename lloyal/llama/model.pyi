# Written by tools/stubs.py from model.pyx.
"""Models: weights, vocabulary and metadata, loaded once and shared by contexts."""

from collections.abc import Callable, Mapping, Sequence
from lloyal.llama.params import ModelParams
from lloyal.llama.vocab import Vocab
from os import PathLike
from typing import Any, Self

StrPath = str | PathLike[str]

__all__ = ["Model"]

class Model:
    """A loaded GGUF model (``llama_model``).

    It keeps alive the devices and overrides it was loaded with; contexts, vocabularies and samplers made from it keep
    the weights alive, so `close()` may be called at any time, more than once, in any order.

    Parameters
    ----------
    path : str, os.PathLike, or a sequence of them
        The GGUF file; for a split model its first part (the rest is found by name) or all parts in order.
    params : ModelParams, optional
        All parameters at once; or
    **keywords
        the fields of `ModelParams`: n_gpu_layers, devices, use_mmap, progress, ...

    Raises
    ------
    LoadFailed
        The file is missing, unreadable, not GGUF, truncated, or of an architecture llama.cpp does not know.
    UnknownParameter, InvalidArgument
        A keyword is unknown or its value impossible.
    Aborted
        `progress` returned False.

    Notes
    -----
    Loading releases the GIL.
    """

    @property
    def params(self) -> ModelParams: ...
    @property
    def path(self) -> str: ...
    def __init__(self, path: StrPath | Sequence[StrPath], params: ModelParams | None = None, *, n_gpu_layers: int = ..., devices: Sequence[Any] | None = ..., split_mode: str = ..., main_gpu: int = ..., tensor_split: Sequence[float] | None = ..., use_mmap: bool = ..., use_mlock: bool = ..., vocab_only: bool = ..., check_tensors: bool = ..., use_extra_bufts: bool = ..., no_host: bool = ..., load_mtp: bool = ..., kv_overrides: Mapping[str, bool | int | float | str] | None = ..., progress: Callable[[float], bool | None] | None = ...) -> None: ...
    def close(self) -> None:
        """Drop this object's hold on the weights; they are freed when nothing else uses them. Releases the GIL."""
    @property
    def closed(self) -> bool: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc_info: object) -> None: ...
    @property
    def vocab(self) -> Vocab:
        """The vocabulary; it keeps the model alive."""
    @property
    def desc(self) -> str:
        """Architecture, size and quantization in a few words."""
    @property
    def arch(self) -> str:
        """``general.architecture`` of the file, such as ``"llama"`` or ``"lfm2"``."""
    @property
    def size(self) -> int:
        """Bytes of all tensors."""
    @property
    def n_params(self) -> int:
        """Number of weights."""
    @property
    def ftype(self) -> str:
        """File type, such as ``"F16"`` or ``"Q4_K - Medium"``."""
    @property
    def metadata(self) -> dict[str, str]:
        """The file's scalar metadata as strings; arrays are left out, as in llama.cpp's own accessor."""
    def chat_template(self, name: str | None = None) -> str | None:
        """The chat template of the file (the default one, or one by name), or None."""
    @property
    def n_ctx_train(self) -> int:
        """Context length it was trained with."""
    @property
    def n_embd(self) -> int: ...
    @property
    def n_embd_inp(self) -> int:
        """Values in an input embedding row."""
    @property
    def n_embd_out(self) -> int:
        """Values in an output embedding row."""
    @property
    def n_layer(self) -> int: ...
    @property
    def n_layer_nextn(self) -> int:
        """Multi-token-prediction layers appended to the model."""
    @property
    def n_head(self) -> int: ...
    @property
    def n_head_kv(self) -> int: ...
    @property
    def n_swa(self) -> int:
        """Sliding-window size of the file, 0 without one. `ctx.memory.kind` says what the cache really does."""
    @property
    def rope_type(self) -> str:
        """``"none"``, ``"norm"``, ``"neox"``, ``"mrope"``, ``"imrope"`` or ``"vision"``."""
    @property
    def rope_freq_scale_train(self) -> float: ...
    @property
    def classifier_labels(self) -> list[str | None]:
        """Labels of a classifier's outputs; empty for other models."""
    @property
    def has_encoder(self) -> bool: ...
    @property
    def has_decoder(self) -> bool: ...
    @property
    def decoder_start_token(self) -> int | None:
        """The token an encoder-decoder model's decoder starts from."""
    @property
    def is_recurrent(self) -> bool: ...
    @property
    def is_hybrid(self) -> bool: ...
    @property
    def is_diffusion(self) -> bool: ...
    def tensor_sample(self) -> bytes:
        """Names, types, shapes and a few bytes of every tensor, for telling models apart. Releases the GIL."""
    def save(self, path: StrPath) -> None:
        """Write the model as one GGUF file (`llama_model_save_to_file`). Releases the GIL."""
    def __repr__(self) -> str: ...
