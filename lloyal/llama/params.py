"""Parameters of models and contexts, as frozen dataclasses.

The keywords of `Model(...)` and `Context(...)` are the fields of these classes; a keyword that is not a field raises
`UnknownParameter` and names the nearest one. Defaults are llama.cpp's except where the docstring says otherwise.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import reprlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from lloyal.errors import InvalidArgument, UnknownParameter

__all__ = [
    "CACHE_TYPES",
    "ContextParams",
    "ModelParams",
    "check_names",
    "default_threads",
    "exact",
    "from_keywords",
    "plain_overrides",
    "signature",
    "unknown_parameter",
]

# Types that llama.cpp accepts for the K and V cache.
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]
CACHE_TYPES: tuple[str, ...] = get_args(CacheType)
FlashAttention = Literal["auto", "on", "off"]
Pooling = Literal["unspecified", "none", "mean", "cls", "last", "rank"]
Attention = Literal["unspecified", "causal", "non_causal"]
RopeScaling = Literal["unspecified", "none", "linear", "yarn", "longrope"]
SplitMode = Literal["none", "layer", "row", "tensor"]
ContextType = Literal["default", "mtp"]

INT32_MAX = 2**31 - 1

P = TypeVar("P")


def default_threads() -> int:
    """CPUs this process may run on, less those that other threads keep busy right now; at least 1.

    A graph's threads wait for each other after every operation: one without a CPU of its own stops them all. In a
    control group with a quota it is the quota: what else runs on the machine is not in the same group.
    """
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1
    quota = _cpu_quota()
    if quota is not None and quota < allowed:
        return max(1, int(quota))
    return max(1, min(allowed, (os.cpu_count() or 1) - _busy_elsewhere()))


def _cpu_quota(root: str = "/sys/fs/cgroup") -> float | None:
    """CPUs that the control group of this process may use in the mean, as a container sees it; None without a limit."""
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        try:
            quota, period = " ".join(Path(root, name).read_text(encoding="ascii") for name in files).split()
            if int(quota) > 0 and int(period) > 0:
                return int(quota) / int(period)
        except (OSError, ValueError):  # none there, or "max"
            continue
    return None


def _busy_elsewhere(samples: int = 5, seconds: float = 0.002) -> int:
    """Threads besides this one that want a CPU, machine-wide, at the quietest of a few moments; 0 if nobody knows."""
    fewest = 1 << 30
    for i in range(samples):
        if i:
            time.sleep(seconds)
        try:
            with open("/proc/loadavg", encoding="ascii") as file:
                running = int(file.read().split()[3].partition("/")[0])
        except (OSError, ValueError, IndexError):
            return 0
        fewest = min(fewest, running - 1)
        if fewest <= 0:
            return 0
    return fewest


def from_keywords(kind: type[P], keywords: Mapping[str, Any]) -> P:
    """Build a parameter class from keywords.

    Raises
    ------
    UnknownParameter
        A keyword is no field of `kind`; the message names the nearest field.
    """
    check_names(kind, keywords)
    return kind(**keywords)


# Names that other programs use for a parameter, or that are no parameter here.
SYNONYMS = {
    "model_path": "path",
    "filename": "path",
    "model": "path",
    "gpu_layers": "n_gpu_layers",
    "context_length": "n_ctx",
    "max_seq_len": "n_ctx",
    "batch_size": "n_batch",
    "threads": "n_threads",
    "flash_attention": "flash_attn",
    "embedding": "embeddings",
    "temp": "temperature",
    "repetition_penalty": "repeat_penalty",
    "penalty_repeat": "repeat_penalty",
    "max_new_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "logits_processor": "logits_processors",
}
# Who takes a parameter, by name: filled where the parameters are defined.
TAKEN_BY: dict[str, str] = {"path": "the first argument of Model", "max_tokens": "a parameter of generate"}


def check_names(kind: type[Any], keywords: Iterable[str]) -> None:
    """Raise `UnknownParameter` if a keyword is no field of the dataclass `kind`."""
    names = [field.name for field in dataclasses.fields(kind)]
    for name in keywords:
        if name not in names:
            raise unknown_parameter(kind.__name__, names, name)


def unknown_parameter(owner: str, names: Sequence[str], name: str) -> UnknownParameter:
    """What to say of a keyword that `owner` does not take: the nearest it has, or who takes it."""
    meant = SYNONYMS.get(name, name)
    near = difflib.get_close_matches(name, names, n=1)
    if meant in names:
        hint = f"; did you mean {meant!r}?"
    elif meant in TAKEN_BY:
        hint = f": {meant} is {TAKEN_BY[meant]}"
    elif near:
        hint = f"; did you mean {near[0]!r}?"
    else:
        hint = f" (it has {', '.join(names)})"
    return UnknownParameter(f"{owner} has no parameter {name!r}{hint}")


def signature(kind: type[Any], first: str) -> Signature:
    """What a class takes whose keywords are the fields of `kind`: for `inspect`, `help` and editors."""
    parameters = [
        Parameter(first, Parameter.POSITIONAL_OR_KEYWORD),
        Parameter("params", Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=f"{kind.__name__} | None"),
    ]
    for field in dataclasses.fields(kind):
        parameters.append(
            Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=str(field.type))
        )
    return Signature(parameters)


def plain_overrides(overrides: Mapping[str, object] | None) -> dict[str, bool | int | float | str] | None:
    """Metadata overrides as plain values; `InvalidArgument` if one does not fit llama.cpp's fixed fields."""
    if overrides is None:
        return None
    plain: dict[str, bool | int | float | str] = {}
    for key, value in overrides.items():
        if not isinstance(key, str):
            raise InvalidArgument(f"kv_overrides[{reprlib.repr(key)}]: keys are strings")
        name = str.__str__(key)
        if isinstance(value, bool):
            plain[name] = value
        elif isinstance(value, int):
            plain[name] = int.__index__(value)
        elif isinstance(value, float):
            plain[name] = float.__float__(value)
        elif isinstance(value, str):
            plain[name] = str.__str__(value)
        else:
            raise InvalidArgument(f"kv_overrides[{name!r}]={reprlib.repr(value)} must be a bool, int, float or str")
        value = plain[name]
        if "\0" in name or (isinstance(value, str) and "\0" in value):
            raise InvalidArgument(f"kv_overrides[{name!r}]={value!r}: llama.cpp would end it at the NUL")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise InvalidArgument(f"kv_overrides[{name!r}] does not fit into 64 bits")
        if not name or _n_bytes(name) > 127 or (isinstance(value, str) and _n_bytes(value) > 127):
            raise InvalidArgument(f"kv_overrides[{name!r}]: keys and strings take 1 to 127 bytes")
    return plain


def _n_bytes(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{text!r} is no valid text: {error.reason}") from None


def exact(kind: type[P], params: P) -> P:
    """`params` made again of plain values: a subclass may say one thing to a check and another afterwards."""
    if not isinstance(params, kind):
        raise TypeError(f"params={reprlib.repr(params)} must be a {kind.__name__}")
    return kind(**{field.name: getattr(params, field.name) for field in dataclasses.fields(kind)})  # type: ignore[arg-type]


# Every check stores what it has checked: a value of Python's own type, converted once.


def _store(params: object, name: str, value: object) -> None:
    object.__setattr__(params, name, value)


def _check_int(params: object, name: str, low: int, high: int = INT32_MAX) -> None:
    value = getattr(params, name)
    number = int.__index__(value) if isinstance(value, int) and not isinstance(value, bool) else None
    if number is None or not low <= number <= high:
        raise InvalidArgument(f"{name}={reprlib.repr(value)} must be an integer from {low} to {high}")
    _store(params, name, number)


def _as_number(name: str, value: object, low: float = -math.inf) -> float:
    number = math.nan
    if isinstance(value, float):
        number = float.__float__(value)
    elif isinstance(value, int) and not isinstance(value, bool) and abs(int.__index__(value)) < 2**1000:
        number = float(int.__index__(value))
    if not math.isfinite(number) or number < low:
        at_least = f" from {low:g}" if math.isfinite(low) else ""
        raise InvalidArgument(f"{name}={reprlib.repr(value)} must be a finite number{at_least}")
    return number


def _check_number(params: object, name: str, low: float = -math.inf) -> None:
    _store(params, name, _as_number(name, getattr(params, name), low))


def _check_flags(params: object) -> None:
    """Fields declared as bool take nothing else: a string would be true whatever it says."""
    for field in dataclasses.fields(params):  # type: ignore[arg-type]
        value = getattr(params, field.name)
        if field.type == "bool" and not isinstance(value, bool):
            raise InvalidArgument(f"{field.name}={reprlib.repr(value)} must be True or False")


def _check_choice(params: object, name: str, choices: Sequence[str]) -> None:
    value = getattr(params, name)
    text = str.__str__(value) if isinstance(value, str) else None
    if text not in choices:
        raise InvalidArgument(f"{name}={reprlib.repr(value)} must be one of {', '.join(map(repr, choices))}")
    _store(params, name, text)


def _check_mapping(params: object, name: str, what: str) -> None:
    value = getattr(params, name)
    if value is None:
        return
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"{name}={reprlib.repr(value)} must be a mapping of {what}")
    _store(params, name, dict(value))


def _check_list(params: object, name: str, what: str) -> None:
    value = getattr(params, name)
    if value is None:
        return
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise InvalidArgument(f"{name}={reprlib.repr(value)} must be a list of {what}")
    _store(params, name, tuple(value))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelParams:
    """How a model is loaded (`llama_model_params`).

    Attributes
    ----------
    n_gpu_layers : int
        Layers to keep on the devices; -1 means all.
    devices : sequence of Device or str, optional
        Devices to use, as objects or names from `lloyal.devices()`; None means all GPUs, an empty list the CPU only.
    split_mode : {"none", "layer", "row", "tensor"}
        How several devices share the model.
    main_gpu : int
        The device that holds everything when `split_mode` is "none".
    tensor_split : sequence of float, optional
        Share of the model for each device.
    use_mmap : bool
        Map the file instead of reading it. The file must stay as it is while anything uses the model: the system ends a
        process (SIGBUS) that reads a mapped page which was cut off. Replace a file by renaming; False reads it whole.
    use_mlock : bool
        Keep the weights from being swapped out.
    use_extra_bufts : bool or "auto"
        Repack weights for the processor's special instructions: a third faster with Q4_0 on AVX-512. Repacked weights
        are read and not mapped, and `Model.save` cannot read them back. "auto" is ours (llama.cpp: True): it repacks
        where small products of the file's types, computed while loading, agree with plain ones. Repacked for AMX, F16
        weights give wrong logits when one batch holds several sequences of a recurrent or hybrid model.
        `Model.params` has what was decided.
    vocab_only, check_tensors, no_host, load_mtp : bool
        As in `llama_model_params`.
    kv_overrides : mapping, optional
        Metadata keys to replace: bool, int, float or str (at most 127 bytes).
    tensor_buft_overrides : mapping, optional
        Where tensors go whose names a regular expression (at most 1 000 characters) finds, by device or its name:
        ``{r"ffn_.*_exps": "CPU"}`` keeps the experts of a mixture in host memory. The first that fits counts.
    progress : callable, optional
        Called with a float from 0 to 1 while loading; returning False stops the load (`Aborted`), and so does raising.
    """

    n_gpu_layers: int = -1
    devices: Sequence[Any] | None = None
    split_mode: SplitMode = "layer"
    main_gpu: int = 0
    tensor_split: Sequence[float] | None = None
    use_mmap: bool = True
    use_mlock: bool = False
    vocab_only: bool = False
    check_tensors: bool = False
    use_extra_bufts: bool | Literal["auto"] = "auto"
    no_host: bool = False
    load_mtp: bool = True
    kv_overrides: Mapping[str, bool | int | float | str] | None = None
    tensor_buft_overrides: Mapping[str, Any] | None = None
    progress: Callable[[float], bool | None] | None = None

    def __post_init__(self) -> None:
        _check_int(self, "n_gpu_layers", -1)
        _check_int(self, "main_gpu", 0)
        _check_choice(self, "split_mode", get_args(SplitMode))
        _check_flags(self)
        if not isinstance(self.use_extra_bufts, bool):
            _check_choice(self, "use_extra_bufts", ("auto",))
        _check_mapping(self, "kv_overrides", "keys to values")
        _store(self, "kv_overrides", plain_overrides(self.kv_overrides))
        _check_list(self, "devices", "devices or names")
        _check_list(self, "tensor_split", "shares")
        _check_mapping(self, "tensor_buft_overrides", "patterns to devices")
        for pattern in self.tensor_buft_overrides or {}:
            # std::regex calls itself once per parenthesis: a longer pattern can run out of stack.
            if not isinstance(pattern, str) or "\0" in pattern or len(pattern) > 1000:
                raise InvalidArgument(
                    f"tensor_buft_overrides={reprlib.repr(self.tensor_buft_overrides)} must be a mapping of patterns, "
                    "at most 1000 characters each, to devices"
                )
        if self.tensor_split is not None:
            shares = tuple(_as_number("tensor_split", share, 0) for share in self.tensor_split)
            if shares and not any(shares):
                raise InvalidArgument(f"tensor_split={list(shares)} must be finite shares from 0, not all 0")
            _store(self, "tensor_split", shares)
        if self.progress is not None and not callable(self.progress):
            raise InvalidArgument(f"progress={self.progress!r} is not callable")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ContextParams:
    """How a context is created (`llama_context_params`).

    Attributes
    ----------
    n_ctx : int
        Tokens the cache holds over all sequences; 0 means the model's training length. llama.cpp rounds it up to 256.
    n_batch, n_ubatch : int
        Tokens one decode call takes, and tokens computed at once.
    n_seq_max : int
        Sequences, at most 256. Ours is 8 (llama.cpp: 1): branching needs more than one.
    n_rs_seq : int
        Depth of the rollback ring of recurrent models that have one; 0 means none.
    n_outputs_max : int
        Most outputs of one decode call, at least n_seq_max; 0 means n_batch, or n_seq_max if that is more.
    n_outputs_max_per_seq : int
        Most outputs of one sequence per decode while samplers run on the back end; 0 means n_outputs_max. Some
        samplers run there only with 1.
    samplers : mapping of int to Sampler, optional
        Chains for the back end to run, by sequence: see `Context.set_sampler`. `Context.params` does not keep them.
    type_k, type_v : str
        Cache types, one of `CACHE_TYPES`; a quantized V needs flash attention.
    flash_attn : {"auto", "on", "off"} or bool
        Flash attention. Off stores V transposed, which makes every state copy many small ones. "auto" is off where a
        CPU computes heads whose size is no multiple of 64 (of 32 without AVX-512) and V is not quantized: llama.cpp's
        kernel takes what is left one value at a time (heads of 32 values, 2000 tokens of context: 2 to 4 times as
        long). `Context.params` has what was decided. States fit contexts with the same setting only: name it where
        they travel between machines.
    kv_unified : bool
        One buffer for all sequences (ours; llama.cpp: False): forks share cells instead of copying.
    swa_full : bool
        Keep all rows of sliding-window layers (ours: False).
    n_threads, n_threads_batch : int, optional
        Threads for single tokens and for batches; None means the CPUs this process may use (of a container the quota),
        less those that are busy when the context is made: see `Context.n_threads`. Sums may differ in their last bits
        between numbers of threads.
    embeddings : bool
        Compute embeddings besides logits.
    pooling : {"unspecified", "none", "mean", "cls", "last", "rank"}
        How embeddings of a sequence are combined.
    attention : {"unspecified", "causal", "non_causal"}
        Attention type for embeddings.
    rope_scaling : {"unspecified", "none", "linear", "yarn", "longrope"}
    rope_freq_base, rope_freq_scale, yarn_ext_factor, yarn_attn_factor, yarn_beta_fast, yarn_beta_slow : float
        0 (or negative for yarn_ext_factor) means from the model.
    yarn_orig_ctx : int
    offload_kqv, op_offload, no_perf : bool
        As in `llama_context_params`.
    type : {"default", "mtp"}
        "mtp" runs the model's multi-token-prediction head on top of `parent`.
    parent : Context, optional
        The context whose results or memory this one uses (`ctx_other`).
    """

    n_ctx: int = 4096
    n_batch: int = 2048
    n_ubatch: int = 512
    n_seq_max: int = 8
    n_rs_seq: int = 0
    n_outputs_max: int = 0
    n_outputs_max_per_seq: int = 0
    samplers: Mapping[int, Any] | None = None
    type_k: CacheType = "f16"
    type_v: CacheType = "f16"
    flash_attn: FlashAttention | bool = "auto"
    kv_unified: bool = True
    swa_full: bool = False
    n_threads: int | None = None
    n_threads_batch: int | None = None
    embeddings: bool = False
    pooling: Pooling = "unspecified"
    attention: Attention = "unspecified"
    rope_scaling: RopeScaling = "unspecified"
    rope_freq_base: float = 0.0
    rope_freq_scale: float = 0.0
    yarn_ext_factor: float = -1.0
    yarn_attn_factor: float = -1.0
    yarn_beta_fast: float = -1.0
    yarn_beta_slow: float = -1.0
    yarn_orig_ctx: int = 0
    offload_kqv: bool = True
    op_offload: bool = True
    no_perf: bool = True
    type: ContextType = "default"
    parent: Any = None

    def __post_init__(self) -> None:
        _check_flags(self)
        for name in ("rope_freq_base", "rope_freq_scale"):
            _check_number(self, name, 0)
        for name in ("yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow"):
            _check_number(self, name)
        _check_mapping(self, "samplers", "sequence ids to samplers")
        _check_int(self, "n_ctx", 0)
        _check_int(self, "n_batch", 1)
        _check_int(self, "n_ubatch", 1)
        _check_int(self, "n_seq_max", 1, 256)
        _check_int(self, "n_rs_seq", 0, 4096)
        _check_int(self, "n_outputs_max", 0)
        _check_int(self, "n_outputs_max_per_seq", 0)
        _check_int(self, "yarn_orig_ctx", 0)
        for name in ("n_threads", "n_threads_batch"):
            if getattr(self, name) is not None:
                _check_int(self, name, 1, 512)
        _check_choice(self, "type_k", CACHE_TYPES)
        _check_choice(self, "type_v", CACHE_TYPES)
        if not isinstance(self.flash_attn, bool):
            _check_choice(self, "flash_attn", get_args(FlashAttention))
        _check_choice(self, "pooling", get_args(Pooling))
        _check_choice(self, "attention", get_args(Attention))
        _check_choice(self, "rope_scaling", get_args(RopeScaling))
        _check_choice(self, "type", get_args(ContextType))
        if 0 < self.n_outputs_max < self.n_seq_max:
            raise InvalidArgument(
                f"n_outputs_max={self.n_outputs_max} must be at least n_seq_max={self.n_seq_max}, one for each sequence"
            )
        if self.n_rs_seq and self.n_ubatch <= self.n_rs_seq + 1:
            raise InvalidArgument(f"n_ubatch={self.n_ubatch} must be more than n_rs_seq + 1 = {self.n_rs_seq + 1}")
        if self.type_v not in ("f32", "f16", "bf16") and self.flash_attn in ("off", False):
            raise InvalidArgument(f"type_v={self.type_v!r} is quantized and needs flash attention: flash_attn='on'")


TAKEN_BY |= {field.name: "a parameter of Model" for field in dataclasses.fields(ModelParams)}
TAKEN_BY |= {field.name: "a parameter of Context" for field in dataclasses.fields(ContextParams)}
