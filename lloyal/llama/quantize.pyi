# Written by tools/stubs.py from quantize.pyx.
"""Quantizing model files, and the names of split ones."""

from collections.abc import Iterable, Mapping
from numpy.typing import NDArray
from os import PathLike
from typing import Any
from typing_extensions import Buffer

StrPath = str | PathLike[str]
BufferLike = Buffer | NDArray[Any]

__all__ = ["FILE_TYPES", "quantize", "split_path", "split_prefix"]

FILE_TYPES: int

def quantize(source: StrPath, target: StrPath, ftype: str = "q8_0", *, n_threads: int | None = None, output_tensor_type: str | None = None, token_embedding_type: str | None = None, tensor_types: Mapping[str, str] | None = None, imatrix: Mapping[str, BufferLike] | None = None, kv_overrides: Mapping[str, bool | int | float | str] | None = None, prune_layers: Iterable[int] = (), allow_requantize: bool = False, quantize_output_tensor: bool = True, only_copy: bool = False, pure: bool = False, keep_split: bool = False, dry_run: bool = False, max_buf_size: int = 0) -> list[str]:
    """Write a model with its weights in another type (``llama_model_quantize``).

    The target appears complete or not at all; it may be the source.

    Parameters
    ----------
    source, target : str or os.PathLike
        GGUF files. Of a split model `source` is the first part. With `keep_split` the target is the prefix of the
        parts' names (see `split_path`).
    ftype : str
        One of `FILE_TYPES`: the mixture of types, such as ``"q4_k_m"``.
    n_threads : int, optional
        From 1 to 512; the CPUs of the machine if not given.
    output_tensor_type, token_embedding_type : str, optional
        Types of these two, such as ``"q8_0"`` or ``"f16"``.
    tensor_types : mapping of str to str, optional
        Types of the tensors whose name a regular expression matches; the first that matches counts.
    imatrix : mapping of str to array of float32, optional
        Importance of the columns of tensors, by name; shape (n_columns * n_experts,). The smallest types need it.
    kv_overrides : mapping, optional
        Metadata to write instead, as in `ModelParams`.
    prune_layers : sequence of int
        Layers to leave out.
    allow_requantize : bool
        Quantize what is quantized already, at a loss.
    quantize_output_tensor : bool
        False leaves the output matrix as it is.
    only_copy : bool
        Change no types.
    pure : bool
        One type for everything instead of a mixture.
    keep_split : bool
        Write as many files as there are.
    dry_run : bool
        Compute only; the sizes are in the log.
    max_buf_size : int
        Bytes of the working buffers; 0 means llama.cpp's own choice.

    Returns
    -------
    list of str
        The files written.

    Raises
    ------
    InvalidArgument
        A type, tensor, layer or importance that cannot be.
    LoadFailed
        The source is no model or the target cannot be written; the log of llama.cpp is in the message.
    Unsupported
        A file that llama.cpp cannot quantize.

    Notes
    -----
    Releases the GIL.
    """

def split_path(path_prefix: StrPath, split_no: int, split_count: int) -> str:
    """The name of one part of a split model (``llama_split_path``).

    Parameters
    ----------
    path_prefix : str or os.PathLike
    split_no : int
        Index of the part, from 0.
    split_count : int
    """

def split_prefix(path: StrPath, split_no: int, split_count: int) -> str | None:
    """The prefix that `path` is part `split_no` of `split_count` of; None if it is not (``llama_split_prefix``)."""
