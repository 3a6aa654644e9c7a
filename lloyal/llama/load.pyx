# cython: language_level=3
"""Loading a model: what parameters mean to llama.cpp, and what is said where it fails."""

from libc.string cimport memset, strncpy
from libcpp cimport bool as cbool
from libcpp.string cimport string
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core
cimport lloyal._cpp.model as cmodel
cimport lloyal.libllama.ggml as g
cimport lloyal.libllama.llama as c
from lloyal.llama.backend cimport Device, drain_logs
from lloyal.llama.rpc cimport Connection, connect_device
from lloyal.llama.status cimport check

import os
import stat

from lloyal import models
from lloyal.errors import Aborted, InvalidArgument, LoadFailed

__all__ = ["check_file"]

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
    cdef bint stopped


cdef cbool _on_progress(float value, void* data) noexcept with gil:
    cdef _Progress progress = <_Progress>data
    try:
        progress.stopped = progress.callback(value) is False
        return not progress.stopped
    except BaseException as error:
        progress.raised = error
        return False


cdef core.ModelHandle load(list paths, params) except *:
    cdef vector[string] names
    cdef vector[g.ggml_backend_dev_t] devices
    cdef vector[float] split
    cdef vector[string] patterns
    cdef vector[g.ggml_backend_dev_t] places
    cdef vector[c.llama_model_kv_override] overrides
    cdef c.llama_model_params native = c.llama_model_default_params()
    cdef g.ggml_backend_dev_t no_device = NULL
    cdef core.ModelHandle handle
    cdef core.Status status
    cdef cbool choose_extra_bufts = params.use_extra_bufts == "auto"
    cdef _Progress progress = _Progress()
    cdef Device device
    cdef Connection connection

    connections = []
    for part in paths:
        names.push_back(os.fsencode(part))
    if params.devices is not None:
        for wanted in params.devices:
            device = _find_device(wanted, "devices", connections)
            devices.push_back(device.ptr)
        if devices.empty():
            # llama.cpp reads an empty list as "none"
            devices.push_back(no_device)
    for share in params.tensor_split or ():
        split.push_back(share)
    if split.size() > c.llama_max_devices():
        raise InvalidArgument(f"tensor_split has {split.size()} shares, there are at most {c.llama_max_devices()} devices")
    for pattern, wanted in (params.tensor_buft_overrides or {}).items():
        device = _find_device(wanted, "tensor_buft_overrides", connections)
        patterns.push_back(pattern.encode())
        places.push_back(device.ptr)
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
    native.use_extra_bufts = params.use_extra_bufts is True
    native.no_host = params.no_host
    native.load_mtp = params.load_mtp
    if params.progress is not None:
        progress.callback = params.progress
        native.progress_callback = <c.llama_progress_callback>_on_progress
        native.progress_callback_user_data = <void*>progress
    with nogil:
        status = core.model_load(names, native, devices, split, patterns, places, choose_extra_bufts, handle)
    if not status.ok():
        if progress.raised is not None:
            drain_logs()
            raise progress.raised
        if progress.stopped:
            drain_logs()
            raise Aborted(f"{paths[0]}: progress() returned False")
        try:
            check(status)
        except LoadFailed as error:
            raise _explain(error, paths[0]) from None
    check(status)
    for kept in connections:
        connection = <Connection?>kept
        cmodel.model_keep(handle.get()[0], connection.handle)
    return handle


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


def _find_device(wanted, parameter, list connections) -> Device:
    """The device of a name; the connection to its server, if it is on one, goes to `connections`."""
    from lloyal.llama.backend import devices

    known = [wanted] if isinstance(wanted, Device) else devices()
    for device in known:
        if device is wanted or device.name == wanted:
            connection = connect_device(device)
            if connection is not None:
                connections.append(connection)
            return device
    raise InvalidArgument(f"{parameter}: there is no {wanted!r}; there are {', '.join(device.name for device in known)}")


def check_file(path: StrPath) -> None:
    """Refuse what is not a GGUF file before llama.cpp tries, with the reason the operating system gives."""
    path = os.fsdecode(path)
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise LoadFailed(f"{path} is a directory: give the .gguf file in it")
        if not stat.S_ISREG(mode):
            raise LoadFailed(f"{path} is no regular file: a model is read from several places at once")
        with open(path, "rb") as file:
            magic = file.read(4)
    except LoadFailed:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        hint = f" (the embedded model is lloyal.models.path({path!r}))" if path in models.NAMES else ""
        raise LoadFailed(f"{path}: {reason}{hint}") from error
    if magic != b"GGUF":
        what = "is empty" if not magic else f"starts with {magic!r}, not b'GGUF'"
        raise LoadFailed(f"{path} is not a GGUF file: it {what}")


def _explain(error, path):
    log = error.native_log
    explained = LoadFailed(f"{path}: {error}" + (f": {log}" if log else ""))
    explained.native_log = log
    return explained
