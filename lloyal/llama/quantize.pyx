# cython: language_level=3
"""Quantizing model files, and the names of split ones."""

from libc.stdint cimport INT32_MAX, INT64_MAX
from libcpp.string cimport string

cimport lloyal._cpp.core as core
cimport lloyal._cpp.model as cmodel
cimport lloyal.libllama.ggml as g
cimport lloyal.libllama.llama as c
from lloyal.llama.args cimport as_integer
from lloyal.llama.backend cimport ensure_started
from lloyal.llama.load cimport kv_override
from lloyal.llama.status cimport check

import os
import re
import shutil
import tempfile

from lloyal.errors import InvalidArgument, LoadFailed
from lloyal.llama.load import check_file
from lloyal.llama.params import plain_overrides

cdef extern from "<thread>" nogil:
    int hardware_concurrency "std::thread::hardware_concurrency"()

__all__ = ["FILE_TYPES", "quantize", "split_path", "split_prefix"]

# File types by the name that `llama-quantize` gives them, in lower case.
cdef dict _FTYPES = {
    "f32": c.LLAMA_FTYPE_ALL_F32, "f16": c.LLAMA_FTYPE_MOSTLY_F16, "bf16": c.LLAMA_FTYPE_MOSTLY_BF16,
    "q1_0": c.LLAMA_FTYPE_MOSTLY_Q1_0, "q2_0": c.LLAMA_FTYPE_MOSTLY_Q2_0, "q4_0": c.LLAMA_FTYPE_MOSTLY_Q4_0,
    "q4_1": c.LLAMA_FTYPE_MOSTLY_Q4_1, "q5_0": c.LLAMA_FTYPE_MOSTLY_Q5_0, "q5_1": c.LLAMA_FTYPE_MOSTLY_Q5_1,
    "q8_0": c.LLAMA_FTYPE_MOSTLY_Q8_0, "q2_k": c.LLAMA_FTYPE_MOSTLY_Q2_K, "q2_k_s": c.LLAMA_FTYPE_MOSTLY_Q2_K_S,
    "q3_k_s": c.LLAMA_FTYPE_MOSTLY_Q3_K_S, "q3_k_m": c.LLAMA_FTYPE_MOSTLY_Q3_K_M, "q3_k_l": c.LLAMA_FTYPE_MOSTLY_Q3_K_L,
    "q4_k_s": c.LLAMA_FTYPE_MOSTLY_Q4_K_S, "q4_k_m": c.LLAMA_FTYPE_MOSTLY_Q4_K_M, "q5_k_s": c.LLAMA_FTYPE_MOSTLY_Q5_K_S,
    "q5_k_m": c.LLAMA_FTYPE_MOSTLY_Q5_K_M, "q6_k": c.LLAMA_FTYPE_MOSTLY_Q6_K, "iq1_s": c.LLAMA_FTYPE_MOSTLY_IQ1_S,
    "iq1_m": c.LLAMA_FTYPE_MOSTLY_IQ1_M, "iq2_xxs": c.LLAMA_FTYPE_MOSTLY_IQ2_XXS, "iq2_xs": c.LLAMA_FTYPE_MOSTLY_IQ2_XS,
    "iq2_s": c.LLAMA_FTYPE_MOSTLY_IQ2_S, "iq2_m": c.LLAMA_FTYPE_MOSTLY_IQ2_M, "iq3_xxs": c.LLAMA_FTYPE_MOSTLY_IQ3_XXS,
    "iq3_xs": c.LLAMA_FTYPE_MOSTLY_IQ3_XS, "iq3_s": c.LLAMA_FTYPE_MOSTLY_IQ3_S, "iq3_m": c.LLAMA_FTYPE_MOSTLY_IQ3_M,
    "iq4_nl": c.LLAMA_FTYPE_MOSTLY_IQ4_NL, "iq4_xs": c.LLAMA_FTYPE_MOSTLY_IQ4_XS, "tq1_0": c.LLAMA_FTYPE_MOSTLY_TQ1_0,
    "tq2_0": c.LLAMA_FTYPE_MOSTLY_TQ2_0, "mxfp4_moe": c.LLAMA_FTYPE_MOSTLY_MXFP4_MOE,
}
FILE_TYPES = tuple(_FTYPES)


def quantize(source: StrPath, target: StrPath, ftype: str = "q8_0", *, n_threads: int | None = None,
             output_tensor_type: str | None = None, token_embedding_type: str | None = None,
             tensor_types: Mapping[str, str] | None = None, imatrix: Mapping[str, BufferLike] | None = None,
             kv_overrides: Mapping[str, bool | int | float | str] | None = None, prune_layers: Iterable[int] = (), allow_requantize: bool = False, quantize_output_tensor: bool = True, only_copy: bool = False,
             pure: bool = False, keep_split: bool = False, dry_run: bool = False, max_buf_size: int = 0) -> list[str]:
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
    cdef c.llama_model_quantize_params params = c.llama_model_quantize_default_params()
    cdef cmodel.QuantizeInputs inputs
    cdef string from_path
    cdef string to_path
    cdef core.Status status
    from_path = os.fsencode(source)
    target_path = os.fsdecode(target)
    check_file(os.fsdecode(from_path))
    wanted_type = _FTYPES.get(str.lower(ftype))
    if wanted_type is None:
        raise InvalidArgument(f"ftype={ftype!r} must be one of {', '.join(FILE_TYPES)}")
    params.nthread = 0 if n_threads is None else <int>as_integer(n_threads, "n_threads", 1, 512)
    buffer_size = as_integer(max_buf_size, "max_buf_size", 0, INT64_MAX)
    pruned = sorted({as_integer(layer, "prune_layers", 0, INT32_MAX) for layer in prune_layers})
    if keep_split and pruned:
        raise InvalidArgument("prune_layers may leave a part without tensors: use keep_split=False")
    params.ftype = wanted_type
    params.output_tensor_type = _tensor_type("output_tensor_type", output_tensor_type)
    params.token_embedding_type = _tensor_type("token_embedding_type", token_embedding_type)
    params.allow_requantize = allow_requantize
    params.quantize_output_tensor = quantize_output_tensor
    params.only_copy = only_copy
    params.pure = pure
    params.keep_split = keep_split
    params.dry_run = dry_run
    if buffer_size:
        params.max_buf_size = buffer_size
    _fill(inputs, tensor_types or {}, imatrix or {}, kv_overrides or {}, pruned)
    ensure_started()

    folder = os.path.dirname(os.path.abspath(target_path))
    if not os.path.isdir(folder):
        raise LoadFailed(f"{folder} is not a directory: there is nowhere to write {target_path}")
    try:
        work = tempfile.mkdtemp(prefix=".quantize-", dir=folder)
    except OSError as error:
        raise LoadFailed(f"cannot write in {folder}: {error.strerror}") from error
    try:
        to_path = os.fsencode(os.path.join(work, os.path.basename(target_path)))
        with nogil:
            status = core.check_threads(params.nthread if params.nthread > 0 else hardware_concurrency())
        check(status)
        with nogil:
            status = cmodel.quantize(from_path, to_path, params, inputs)
        check(status)
        written = []
        for name in sorted(os.listdir(work)):
            os.replace(os.path.join(work, name), os.path.join(folder, name))
            written.append(os.path.join(folder, name))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return written


def split_path(path_prefix: StrPath, split_no: int, split_count: int) -> str:
    """The name of one part of a split model (``llama_split_path``).

    Parameters
    ----------
    path_prefix : str or os.PathLike
    split_no : int
        Index of the part, from 0.
    split_count : int
    """
    cdef bytes prefix = os.fsencode(path_prefix)
    cdef bytearray text = bytearray(len(prefix) + 64)
    cdef int count = <int>as_integer(split_count, "split_count", 1, INT32_MAX)
    cdef int number = <int>as_integer(split_no, "split_no", 0, count - 1)
    size = c.llama_split_path(text, len(text), prefix, number, count)
    return os.fsdecode(bytes(text[:size]))


def split_prefix(path: StrPath, split_no: int, split_count: int) -> str | None:
    """The prefix that `path` is part `split_no` of `split_count` of; None if it is not (``llama_split_prefix``)."""
    cdef bytes name = os.fsencode(path)
    cdef bytearray text = bytearray(len(name) + 1)
    cdef int count = <int>as_integer(split_count, "split_count", 1, INT32_MAX)
    cdef int number = <int>as_integer(split_no, "split_no", 0, count - 1)
    size = c.llama_split_prefix(text, len(text), name, number, count)
    return os.fsdecode(bytes(text[:size])) if size > 0 else None


cdef g.ggml_type _tensor_type(str name, value) except *:
    cdef int i
    if value is None:
        return g.GGML_TYPE_COUNT
    names = []
    for i in range(g.GGML_TYPE_COUNT):
        if cmodel.can_quantize_to(<g.ggml_type>i):
            names.append(g.ggml_type_name(<g.ggml_type>i).decode())
            if names[-1].lower() == str(value).lower():
                return <g.ggml_type>i
    raise InvalidArgument(f"{name}={value!r} must be one of {', '.join(names)}")


cdef int _fill(cmodel.QuantizeInputs& inputs, tensor_types, imatrix, kv_overrides, prune_layers) except -1:
    cdef cmodel.Importance importance
    cdef cmodel.TensorType tensor_type
    cdef const float[::1] values
    for pattern, wanted in tensor_types.items():
        try:
            re.compile(pattern)
        except re.error as error:
            raise InvalidArgument(f"tensor_types: {pattern!r} is no regular expression: {error}") from None
        tensor_type.pattern = pattern.encode()
        tensor_type.type = _tensor_type(f"tensor_types[{pattern!r}]", wanted)
        inputs.tensor_types.push_back(tensor_type)
    for name, data in imatrix.items():
        values = data
        if values.shape[0] == 0:
            raise InvalidArgument(f"imatrix[{name!r}] is empty")
        importance.name = name.encode()
        importance.values.assign(&values[0], &values[0] + values.shape[0])
        inputs.imatrix.push_back(importance)
    kv_overrides = plain_overrides(kv_overrides)
    if "general.alignment" in kv_overrides:
        raise InvalidArgument("kv_overrides['general.alignment'] would not fit the file: llama.cpp aligns to 32 bytes")
    for key, value in kv_overrides.items():
        inputs.kv_overrides.push_back(kv_override(key.encode(), value))
    for layer in prune_layers:
        inputs.prune_layers.push_back(layer)
    return 0
