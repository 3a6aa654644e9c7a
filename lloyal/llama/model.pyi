# Written by tools/stubs.py from model.pyx.
"""Models: weights, vocabulary and metadata, loaded once and shared by contexts."""

from collections.abc import Callable, Mapping, Sequence
from lloyal.llama.backend import Device
from lloyal.llama.base import Closing
from lloyal.llama.params import ModelParams
from lloyal.llama.vocab import Vocab
from numpy import float32
from numpy.typing import NDArray
from os import PathLike
from typing import Any, Literal

StrPath = str | PathLike[str]

__all__ = ["Model"]

class Model(Closing):
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
        The file is missing, unreadable, not GGUF, truncated, of an architecture llama.cpp does not know, or says of
        itself what cannot be. A tensor whose type does not suit its use is named when a context is made.
    UnknownParameter, InvalidArgument
        A keyword is unknown or its value impossible.
    Aborted
        `progress` returned False.

    Notes
    -----
    Loading releases the GIL. A mapped file (``use_mmap``, the default) that is cut short while the model is in use ends
    the process (SIGBUS): write the new one beside it and rename.
    """

    @property
    def params(self) -> ModelParams: ...
    @property
    def path(self) -> str: ...
    def __init__(self, path: StrPath | Sequence[StrPath], params: ModelParams | None = None, *, n_gpu_layers: int = ..., devices: Sequence[Any] | None = ..., split_mode: Literal['none', 'layer', 'row', 'tensor'] = ..., main_gpu: int = ..., tensor_split: Sequence[float] | None = ..., use_mmap: bool = ..., use_mlock: bool = ..., vocab_only: bool = ..., check_tensors: bool = ..., use_extra_bufts: bool | Literal['auto'] = ..., no_host: bool = ..., load_mtp: bool = ..., kv_overrides: Mapping[str, bool | int | float | str] | None = ..., tensor_buft_overrides: Mapping[str, Any] | None = ..., progress: Callable[[float], bool | None] | None = ...) -> None: ...
    def close(self) -> None:
        """Drop this object's hold on the weights; they are freed when nothing else uses them. Releases the GIL."""
    @property
    def closed(self) -> bool: ...
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
    def n_head(self) -> int:
        """Attention heads of the first layer; 0 without layers (vocab_only)."""
    @property
    def n_head_kv(self) -> int:
        """Key and value heads of the first layer; 0 without layers (vocab_only)."""
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
        """Names, types, shapes and a few bytes of every tensor of the file, for telling models apart."""
    @property
    def devices(self) -> list[Device]:
        """The devices its layers are on, without the CPU (``llama_model_get_device``)."""
    @property
    def n_expert(self) -> int:
        """Experts of a mixture-of-experts model, 0 without."""
    @property
    def target_layer_ids(self) -> list[int]:
        """Layers of the target model whose inputs a drafter of this kind reads; empty for other models."""
    @property
    def dflash_selector_top_k(self) -> int:
        """Candidates that a DFlash drafter's selector keeps; 0 for other models."""
    def tok_embd(self) -> NDArray[float32]:
        """The token embedding matrix, converted (``llama_model_get_tok_embd``).

        Returns
        -------
        numpy.ndarray
            float32, shape (n_vocab, n_embd).

        Raises
        ------
        Unsupported
            The model has none, or one that llama.cpp cannot convert.

        Notes
        -----
        Releases the GIL.
        """
    def save(self, path: StrPath) -> None:
        """Write the model as one GGUF file (`llama_model_save_to_file`), which may be the one it was loaded from.

        Raises
        ------
        Unsupported
            The model was loaded with vocab_only=True, or its weights were repacked (use_extra_bufts=True).
        OSError
            It cannot be written there; what was there before is untouched.

        Notes
        -----
        Releases the GIL.
        """
    def __repr__(self) -> str: ...
