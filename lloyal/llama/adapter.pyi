# Written by tools/stubs.py from adapter.pyx.
"""What is laid over a model's weights: low-rank adapters (LoRA) and control vectors, set per context."""

from collections.abc import Iterable
from lloyal.llama.ext import ContextExt
from lloyal.llama.model import Model
from numpy.typing import NDArray
from os import PathLike
from typing import Any, Self
from typing_extensions import Buffer

StrPath = str | PathLike[str]
BufferLike = Buffer | NDArray[Any]

__all__ = ["ContextAdapters", "LoraAdapter"]

class LoraAdapter:
    """A LoRA adapter, loaded for one model (``llama_adapter_lora``). Apply it with `Context.set_adapters_lora`.

    It keeps the model's weights alive, and the contexts it is set on keep it alive: it may be closed at any time.

    Parameters
    ----------
    model : Model
        The model it was trained for.
    path : str or os.PathLike
        The adapter as GGUF.

    Raises
    ------
    LoadFailed
        The file is missing, no adapter, damaged, or does not fit the model.
    Unsupported
        It adapts a matrix that the model uses in two ways.

    Notes
    -----
    Loading releases the GIL; contexts of the same model cannot be created meanwhile.
    """

    @property
    def path(self) -> str: ...
    def __init__(self, model: Model, path: StrPath) -> None: ...
    def close(self) -> None:
        """Drop this object's hold on the adapter; it is freed when no context uses it. Releases the GIL."""
    @property
    def closed(self) -> bool: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc_info: object) -> None: ...
    @property
    def metadata(self) -> dict[str, str]:
        """The file's scalar metadata as strings; arrays are left out, as in llama.cpp's own accessor."""
    def meta_val_str(self, key: str) -> str | None:
        """One value of `metadata`, or None (``llama_adapter_meta_val_str``)."""
    @property
    def alora_invocation_tokens(self) -> list[int]:
        """Tokens after which an activated LoRA (aLoRA) is to be switched on; empty for other adapters."""
    def __repr__(self) -> str: ...

class ContextAdapters(ContextExt):
    """The part of a context that changes its weights. Not for direct use: see `Context`."""

    def set_adapters_lora(self, adapters: Iterable[LoraAdapter], scales: Iterable[float] | None = None) -> None:
        """Replace the LoRA adapters in use (``llama_set_adapters_lora``); an empty list removes them.

        What is in the memory was computed with the adapters of its time and stays.

        Parameters
        ----------
        adapters : sequence of LoraAdapter
            Adapters of this context's model, each once. The context keeps them alive.
        scales : sequence of float, optional
            How much of each to add; 1 for all if not given.

        Raises
        ------
        InvalidArgument
            An adapter of another model, given twice, or a scale that is not finite; nothing was changed.

        Notes
        -----
        Plans the memory for computing again, which takes milliseconds. Releases the GIL.
        """
    @property
    def adapters_lora(self) -> tuple[tuple[LoraAdapter, float], ...]:
        """The adapters in use, as pairs of `LoraAdapter` and scale."""
    def set_adapter_cvec(self, data: BufferLike | None, il_start: int = 1, il_end: int | None = None) -> None:
        """Add a control vector to the output of layers (``llama_set_adapter_cvec``).

        Parameters
        ----------
        data : array of float32, shape (n_rows, n_embd), C-contiguous, or None
            One row per layer, the first for layer 1 (layer 0 has none). It is copied. None turns it off.
        il_start, il_end : int
            The first and the last layer it acts on; the last of the model if `il_end` is not given.

        Raises
        ------
        InvalidArgument
            Rows of another width, layers out of range, or too few rows; nothing was changed.
        OutOfDeviceMemory
            A device had no room; the control vector is off.

        Notes
        -----
        Releases the GIL.
        """
