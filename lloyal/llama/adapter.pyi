# Written by tools/stubs.py from adapter.pyx.
"""What is laid over a model's weights: low-rank adapters (LoRA) and control vectors, set per context."""

from collections.abc import Iterable
from lloyal.llama.base import Closing, ContextBase
from lloyal.llama.model import Model
from numpy.typing import NDArray
from os import PathLike
from typing import Any
from typing_extensions import Buffer

StrPath = str | PathLike[str]
BufferLike = Buffer | NDArray[Any]

__all__ = ["LoraAdapter", "set_adapter_cvec", "set_adapters_lora"]

class LoraAdapter(Closing):
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
    @property
    def metadata(self) -> dict[str, str]:
        """The file's scalar metadata as strings; arrays are left out, as in llama.cpp's own accessor."""
    def meta_val_str(self, key: str) -> str | None:
        """One value of `metadata`, or None (``llama_adapter_meta_val_str``)."""
    @property
    def alora_invocation_tokens(self) -> list[int]:
        """Tokens after which an activated LoRA (aLoRA) is to be switched on; empty for other adapters."""
    def __repr__(self) -> str: ...

def set_adapters_lora(ctx: ContextBase, adapters: Iterable[LoraAdapter], scales: Iterable[float] | None) -> tuple[tuple[LoraAdapter, float], ...]:
    """`Context.set_adapters_lora`; returns those in use."""

def set_adapter_cvec(ctx: ContextBase, data: BufferLike | None, il_start: int, il_end: int | None) -> None:
    """`Context.set_adapter_cvec`."""
