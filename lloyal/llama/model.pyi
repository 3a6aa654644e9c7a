# Written by tools/stubs.py from model.pyx.
"""Models: weights, vocabulary and metadata, loaded once and shared by contexts."""

from collections.abc import Callable, Mapping, Sequence
from lloyal.llama.model_info import ModelInfo
from lloyal.llama.params import ModelParams
from os import PathLike
from typing import Any

StrPath = str | PathLike[str]

__all__ = ["Model"]

class Model(ModelInfo):
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

    def __init__(self, path: StrPath | Sequence[StrPath], params: ModelParams | None = None, *, n_gpu_layers: int = ..., devices: Sequence[Any] | None = ..., split_mode: str = ..., main_gpu: int = ..., tensor_split: Sequence[float] | None = ..., use_mmap: bool = ..., use_mlock: bool = ..., vocab_only: bool = ..., check_tensors: bool = ..., use_extra_bufts: bool = ..., no_host: bool = ..., load_mtp: bool = ..., kv_overrides: Mapping[str, bool | int | float | str] | None = ..., tensor_buft_overrides: Mapping[str, Any] | None = ..., progress: Callable[[float], bool | None] | None = ...) -> None: ...
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
