# cython: language_level=3
"""Models: weights, vocabulary and metadata, loaded once and shared by contexts."""

from libc.stdint cimport int32_t, uint8_t
from libc.string cimport memset, strncpy
from libcpp cimport bool as cbool
from libcpp.string cimport string
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core
cimport lloyal._cpp.rpc as r
cimport lloyal.libllama.ggml as g
cimport lloyal.libllama.llama as c
from lloyal.llama.backend cimport Device, drain_logs, ensure_started
from lloyal.llama.rpc cimport Connection, connect_device
from lloyal.llama.status cimport check
from lloyal.llama.vocab cimport Vocab, wrap_vocab

import os

from lloyal.errors import Aborted, Closed, InvalidArgument, LoadFailed
from lloyal.llama.params import ModelParams, from_keywords

__all__ = ["Model"]

cdef dict _SPLIT_MODES = {
    "none": c.LLAMA_SPLIT_MODE_NONE,
    "layer": c.LLAMA_SPLIT_MODE_LAYER,
    "row": c.LLAMA_SPLIT_MODE_ROW,
    "tensor": c.LLAMA_SPLIT_MODE_TENSOR,
}


cdef class _Progress:
    # Carries the user's callback and whatever it raised across the native call.
    cdef object callback
    cdef object raised


cdef cbool _on_progress(float value, void* data) noexcept with gil:
    cdef _Progress progress = <_Progress>data
    try:
        return progress.callback(value) is not False
    except BaseException as error:
        progress.raised = error
        return False


cdef class Model:
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

    def __init__(self, path: StrPath | Sequence[StrPath], params: ModelParams | None = None, **keywords: Unpack[ModelParams]):
        if params is None:
            params = from_keywords(ModelParams, keywords)
        elif keywords:
            raise InvalidArgument(f"give params or keywords, not both: {', '.join(keywords)}")
        ensure_started()
        self.params = params
        paths = [path] if isinstance(path, (str, bytes, os.PathLike)) else list(path)
        if not paths:
            raise InvalidArgument("path is an empty sequence")
        for part in paths:
            check_file(part)
        self.path = os.fsdecode(paths[0])
        self._load(paths, params)

    cdef int _load(self, list paths, params) except -1:
        cdef vector[string] names
        cdef vector[g.ggml_backend_dev_t] devices
        cdef vector[float] split
        cdef vector[c.llama_model_kv_override] overrides
        cdef c.llama_model_params native = c.llama_model_default_params()
        cdef g.ggml_backend_dev_t no_device = NULL
        cdef core.ModelHandle handle
        cdef core.Status status
        cdef _Progress progress = _Progress()
        cdef Device device
        cdef Connection connection

        connections = []
        for part in paths:
            names.push_back(os.fsencode(part))
        if params.devices is not None:
            for wanted in params.devices:
                device = _find_device(wanted)
                devices.push_back(device.ptr)
                connection = connect_device(device)
                if connection is not None:
                    connections.append(connection)
            if devices.empty():
                # llama.cpp reads an empty list as "none"
                devices.push_back(no_device)
        for share in params.tensor_split or ():
            split.push_back(share)
        if split.size() > c.llama_max_devices():
            raise InvalidArgument(f"tensor_split has {split.size()} shares, there are at most {c.llama_max_devices()} devices")
        for key, value in (params.kv_overrides or {}).items():
            overrides.push_back(kv_override(key.encode(), value))
        if not overrides.empty():
            overrides.push_back(kv_override(b"", 0))
            native.kv_overrides = overrides.data()

        native.n_gpu_layers = params.n_gpu_layers
        native.split_mode = _SPLIT_MODES[params.split_mode]
        native.main_gpu = params.main_gpu
        native.load_mode = (
            (c.LLAMA_LOAD_MODE_MMAP_MLOCK if params.use_mlock else c.LLAMA_LOAD_MODE_MMAP) if params.use_mmap
            else (c.LLAMA_LOAD_MODE_MLOCK if params.use_mlock else c.LLAMA_LOAD_MODE_NONE))
        native.vocab_only = params.vocab_only
        native.check_tensors = params.check_tensors
        native.use_extra_bufts = params.use_extra_bufts
        native.no_host = params.no_host
        native.load_mtp = params.load_mtp
        if params.progress is not None:
            progress.callback = params.progress
            native.progress_callback = <c.llama_progress_callback>_on_progress
            native.progress_callback_user_data = <void*>progress
        with nogil:
            status = core.model_load(names, native, devices, split, handle)
        if not status.ok():
            if progress.raised is not None:
                drain_logs()
                raise progress.raised
            if params.progress is not None and b"cancel" in <bytes>core.log_last():
                drain_logs()
                raise Aborted(f"{self.path}: progress() returned False")
            try:
                check(status)
            except LoadFailed as error:
                raise _explain(error, self.path) from None
        for connection in connections:
            r.model_keep(handle.get()[0], connection.handle)
        drain_logs()
        self.handle = handle
        return 0

    cdef core.ModelHandle pin(self) except *:
        if not self.handle:
            raise Closed(f"model {self.path} is closed")
        return self.handle

    def close(self) -> None:
        """Drop this object's hold on the weights; they are freed when nothing else uses them. Releases the GIL."""
        cdef core.ModelHandle handle
        handle.swap(self.handle)
        self._vocab = None
        with nogil:
            handle.reset()

    @property
    def closed(self) -> bool:
        return not self.handle

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    @property
    def vocab(self) -> Vocab:
        """The vocabulary; it keeps the model alive."""
        if self._vocab is None:
            self._vocab = wrap_vocab(self.pin())
        return self._vocab

    @property
    def desc(self) -> str:
        """Architecture, size and quantization in a few words."""
        cdef core.ModelHandle handle = self.pin()
        cdef char text[256]
        c.llama_model_desc(handle.get().ptr, text, sizeof(text))
        return text.decode("utf-8", "replace")

    @property
    def arch(self) -> str:
        """``general.architecture`` of the file, such as ``"llama"`` or ``"lfm2"``."""
        return self.metadata.get("general.architecture", "unknown")

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_size(handle.get().ptr)

    @property
    def n_params(self) -> int:
        """Number of weights."""
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_n_params(handle.get().ptr)

    @property
    def ftype(self) -> str:
        """File type, such as ``"F16"`` or ``"Q4_K - Medium"``."""
        cdef core.ModelHandle handle = self.pin()
        return c.llama_ftype_name(c.llama_model_ftype(handle.get().ptr)).decode()

    @property
    def metadata(self) -> dict[str, str]:
        """The file's scalar metadata as strings; arrays are left out, as in llama.cpp's own accessor."""
        cdef core.ModelHandle handle = self.pin()
        cdef const c.llama_model* model = handle.get().ptr
        cdef int32_t i
        if self._metadata is None:
            found = {}
            for i in range(c.llama_model_meta_count(model)):
                found[_meta_text(model, i, True)] = _meta_text(model, i, False)
            self._metadata = found
        return dict(self._metadata)

    def chat_template(self, name: str | None = None) -> str | None:
        """The chat template of the file (the default one, or one by name), or None."""
        cdef core.ModelHandle handle = self.pin()
        cdef bytes encoded = (name or "").encode()
        cdef const char* wanted = NULL
        cdef const char* found
        if name is not None:
            wanted = encoded
        found = c.llama_model_chat_template(handle.get().ptr, wanted)
        return found.decode("utf-8", "replace") if found != NULL else None

    @property
    def n_ctx_train(self) -> int:
        """Context length it was trained with."""
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_n_ctx_train(handle.get().ptr)

    @property
    def n_embd(self) -> int:
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_n_embd(handle.get().ptr)

    @property
    def n_embd_inp(self) -> int:
        """Values in an input embedding row."""
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_n_embd_inp(handle.get().ptr)

    @property
    def n_embd_out(self) -> int:
        """Values in an output embedding row."""
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_n_embd_out(handle.get().ptr)

    @property
    def n_layer(self) -> int:
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_n_layer(handle.get().ptr)

    @property
    def n_layer_nextn(self) -> int:
        """Multi-token-prediction layers appended to the model."""
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_n_layer_nextn(handle.get().ptr)

    @property
    def n_head(self) -> int:
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_n_head(handle.get().ptr)

    @property
    def n_head_kv(self) -> int:
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_n_head_kv(handle.get().ptr)

    @property
    def n_swa(self) -> int:
        """Sliding-window size of the file, 0 without one. `ctx.memory.kind` says what the cache really does."""
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_n_swa(handle.get().ptr)

    @property
    def rope_type(self) -> str:
        """``"none"``, ``"norm"``, ``"neox"``, ``"mrope"``, ``"imrope"`` or ``"vision"``."""
        cdef core.ModelHandle handle = self.pin()
        return {
            c.LLAMA_ROPE_TYPE_NONE: "none", c.LLAMA_ROPE_TYPE_NORM: "norm", c.LLAMA_ROPE_TYPE_NEOX: "neox",
            c.LLAMA_ROPE_TYPE_MROPE: "mrope", c.LLAMA_ROPE_TYPE_IMROPE: "imrope", c.LLAMA_ROPE_TYPE_VISION: "vision",
        }[c.llama_model_rope_type(handle.get().ptr)]

    @property
    def rope_freq_scale_train(self) -> float:
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_rope_freq_scale_train(handle.get().ptr)

    @property
    def classifier_labels(self) -> list[str | None]:
        """Labels of a classifier's outputs; empty for other models."""
        cdef core.ModelHandle handle = self.pin()
        cdef const char* label
        labels = []
        for i in range(c.llama_model_n_cls_out(handle.get().ptr)):
            label = c.llama_model_cls_label(handle.get().ptr, i)
            labels.append(label.decode("utf-8", "replace") if label != NULL else None)
        return labels

    @property
    def has_encoder(self) -> bool:
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_has_encoder(handle.get().ptr)

    @property
    def has_decoder(self) -> bool:
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_has_decoder(handle.get().ptr)

    @property
    def decoder_start_token(self) -> int | None:
        """The token an encoder-decoder model's decoder starts from."""
        cdef core.ModelHandle handle = self.pin()
        token = c.llama_model_decoder_start_token(handle.get().ptr)
        return None if token == c.LLAMA_TOKEN_NULL else token

    @property
    def is_recurrent(self) -> bool:
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_is_recurrent(handle.get().ptr)

    @property
    def is_hybrid(self) -> bool:
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_is_hybrid(handle.get().ptr)

    @property
    def is_diffusion(self) -> bool:
        cdef core.ModelHandle handle = self.pin()
        return c.llama_model_is_diffusion(handle.get().ptr)

    def tensor_sample(self) -> bytes:
        """Names, types, shapes and a few bytes of every tensor, for telling models apart. Releases the GIL."""
        cdef core.ModelHandle handle = self.pin()
        cdef core.Status status
        cdef vector[uint8_t] out
        with nogil:
            status = core.model_tensor_sample(handle.get()[0], out)
        check(status)
        return bytes(out)

    def save(self, path: StrPath) -> None:
        """Write the model as one GGUF file (`llama_model_save_to_file`). Releases the GIL."""
        cdef core.ModelHandle handle = self.pin()
        cdef bytes name = os.fsencode(path)
        cdef const char* text = name
        with open(path, "wb"):
            pass  # llama.cpp does not report that it cannot write
        with nogil:
            c.llama_model_save_to_file(handle.get().ptr, text)
        drain_logs()

    def __repr__(self):
        return f"<Model {self.path!r} closed>" if self.closed else f"<Model {self.path!r}: {self.desc}>"


cdef str _meta_text(const c.llama_model* model, int32_t i, bint key):
    cdef char small[256]
    cdef int32_t size
    if key:
        size = c.llama_model_meta_key_by_index(model, i, small, sizeof(small))
    else:
        size = c.llama_model_meta_val_str_by_index(model, i, small, sizeof(small))
    if size < 0:
        return ""
    if size < <int32_t>sizeof(small):
        return small[:size].decode("utf-8", "replace")
    cdef bytearray large = bytearray(size + 1)
    cdef char* buf = large
    if key:
        c.llama_model_meta_key_by_index(model, i, buf, size + 1)
    else:
        c.llama_model_meta_val_str_by_index(model, i, buf, size + 1)
    return bytes(large[:size]).decode("utf-8", "replace")


cdef c.llama_model_kv_override kv_override(bytes key, value) except *:
    cdef c.llama_model_kv_override entry
    cdef bytes text
    memset(&entry, 0, sizeof(entry))
    strncpy(entry.key, key, 127)
    if isinstance(value, bool):
        entry.tag = c.LLAMA_KV_OVERRIDE_TYPE_BOOL
        entry.val_bool = value
    elif isinstance(value, int):
        entry.tag = c.LLAMA_KV_OVERRIDE_TYPE_INT
        entry.val_i64 = value
    elif isinstance(value, float):
        entry.tag = c.LLAMA_KV_OVERRIDE_TYPE_FLOAT
        entry.val_f64 = value
    elif isinstance(value, str):
        entry.tag = c.LLAMA_KV_OVERRIDE_TYPE_STR
        text = value.encode()
        strncpy(entry.val_str, text, 127)
    else:
        raise InvalidArgument(f"kv_overrides[{key.decode()!r}]={value!r} must be a bool, int, float or str")
    return entry


def _find_device(wanted) -> Device:
    from lloyal.llama.backend import devices

    if isinstance(wanted, Device):
        return wanted
    known = devices()
    for device in known:
        if device.name == wanted:
            return device
    raise InvalidArgument(f"devices: there is no {wanted!r}; there are {', '.join(device.name for device in known)}")


def check_file(path) -> None:
    """Refuse what is not a GGUF file before llama.cpp tries, with the reason the operating system gives."""
    path = os.fsdecode(path)
    try:
        if os.path.isdir(path):
            raise LoadFailed(f"{path} is a directory: give the .gguf file in it")
        with open(path, "rb") as file:
            magic = file.read(4)
    except LoadFailed:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise LoadFailed(f"{path}: {reason}") from error
    if magic != b"GGUF":
        what = "is empty" if not magic else f"starts with {magic!r}, not b'GGUF'"
        raise LoadFailed(f"{path} is not a GGUF file: it {what}")


def _explain(error, path):
    log = error.native_log
    explained = LoadFailed(f"{path}: llama.cpp could not load it" + (f": {log}" if log else ""))
    explained.native_log = log
    return explained
