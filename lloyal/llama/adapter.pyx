# cython: language_level=3
"""What is laid over a model's weights: low-rank adapters (LoRA) and control vectors, set per context."""

from libc.stdint cimport INT32_MAX, int32_t
from libcpp.string cimport string
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core
cimport lloyal._cpp.model as cmodel
from lloyal.llama.args cimport as_double, as_int32, as_integer
cimport lloyal.libllama.llama as c
from lloyal.llama.base cimport Closing, ContextBase
from lloyal.llama.model cimport Model
from lloyal.llama.status cimport check, check_process

import os

from lloyal.errors import Closed, InvalidArgument
from lloyal.llama.load import check_file

__all__ = ["LoraAdapter", "set_adapter_cvec", "set_adapters_lora"]


cdef class LoraAdapter(Closing):
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

    def __init__(self, Model model not None, path: StrPath):
        cdef core.ModelHandle weights = model.pin()
        cdef cmodel.AdapterHandle handle
        cdef core.Status status
        cdef string name
        if model.params.vocab_only:
            raise InvalidArgument("the model was loaded with vocab_only=True: it has no weights to adapt")
        path = os.fsdecode(path)
        check_file(path)
        name = os.fsencode(path)
        with nogil:
            status = cmodel.adapter_load(weights, name, handle)
        check(status)
        self.handle = handle
        self.path = path

    cdef cmodel.AdapterHandle pin(self) except *:
        if not self.handle:
            raise Closed(f"adapter {self.path} is closed")
        check_process()
        return self.handle

    def close(self) -> None:
        """Drop this object's hold on the adapter; it is freed when no context uses it. Releases the GIL."""
        cdef cmodel.AdapterHandle handle
        handle.swap(self.handle)
        with nogil:
            handle.reset()

    @property
    def closed(self) -> bool:
        return not self.handle

    @property
    def metadata(self) -> dict[str, str]:
        """The file's scalar metadata as strings; arrays are left out, as in llama.cpp's own accessor."""
        cdef cmodel.AdapterHandle handle = self.pin()
        cdef const c.llama_adapter_lora* adapter = handle.get().ptr
        cdef int32_t i
        found = {}
        for i in range(c.llama_adapter_meta_count(adapter)):
            key = _text(adapter, i, None, c.llama_adapter_meta_key_by_index(adapter, i, NULL, 0))
            size = c.llama_adapter_meta_val_str_by_index(adapter, i, NULL, 0)
            found[key] = _text(adapter, i, True, size)
        return found

    def meta_val_str(self, key: str) -> str | None:
        """One value of `metadata`, or None (``llama_adapter_meta_val_str``)."""
        cdef cmodel.AdapterHandle handle = self.pin()
        cdef bytes name = key.encode()
        cdef int32_t size = c.llama_adapter_meta_val_str(handle.get().ptr, name, NULL, 0)
        if size < 0:
            return None
        cdef bytearray text = bytearray(size + 1)
        c.llama_adapter_meta_val_str(handle.get().ptr, name, text, size + 1)
        return bytes(text[:size]).decode("utf-8", "replace")

    @property
    def alora_invocation_tokens(self) -> list[int]:
        """Tokens after which an activated LoRA (aLoRA) is to be switched on; empty for other adapters."""
        cdef cmodel.AdapterHandle handle = self.pin()
        cdef const c.llama_token* tokens = c.llama_adapter_get_alora_invocation_tokens(handle.get().ptr)
        return [tokens[i] for i in range(c.llama_adapter_get_alora_n_invocation_tokens(handle.get().ptr))]

    def __repr__(self):
        return f"<LoraAdapter {self.path!r}{' closed' if self.closed else ''}>"


cdef str _text(const c.llama_adapter_lora* adapter, int32_t i, value, int32_t size):
    cdef bytearray text = bytearray(size + 1)
    if value:
        c.llama_adapter_meta_val_str_by_index(adapter, i, text, size + 1)
    else:
        c.llama_adapter_meta_key_by_index(adapter, i, text, size + 1)
    return bytes(text[:size]).decode("utf-8", "replace")


def set_adapters_lora(ContextBase ctx not None, adapters: Iterable[LoraAdapter],
                      scales: Iterable[float] | None) -> tuple[tuple[LoraAdapter, float], ...]:
    """`Context.set_adapters_lora`; returns those in use."""
    cdef core.ContextHandle handle
    cdef core.Status status
    cdef vector[cmodel.AdapterHandle] handles
    cdef vector[float] factors
    cdef LoraAdapter adapter
    numbers = []
    adapters = list(adapters)
    scales = [1.0] * len(adapters) if scales is None else list(scales)
    if len(scales) != len(adapters):
        raise InvalidArgument(f"{len(adapters)} adapters, but {len(scales)} scales")
    for item, scale in zip(adapters, scales):
        if not isinstance(item, LoraAdapter):
            raise TypeError(f"adapters must be LoraAdapter objects, not {type(item).__name__}")
        adapter = item
        handles.push_back(adapter.pin())
        numbers.append(as_double(scale, "a scale"))
        factors.push_back(<float>numbers[-1])
    handle = ctx.pin()
    with nogil:
        status = cmodel.adapters_set(handle, handles, factors)
    check(status)
    return tuple([(item, number) for item, number in zip(adapters, numbers) if number != 0])


def set_adapter_cvec(ContextBase ctx not None, data: BufferLike | None, il_start: int, il_end: int | None) -> None:
    """`Context.set_adapter_cvec`."""
    cdef core.ContextHandle handle
    cdef core.Status status
    cdef const float[:, ::1] rows
    cdef const float* values = NULL
    cdef size_t size = 0
    cdef int32_t width = 0
    cdef int32_t first = as_int32(il_start, "il_start")
    cdef int32_t last
    if data is not None:
        rows = data
        if rows.shape[0] == 0 or rows.shape[1] == 0:
            raise InvalidArgument("the control vector is empty: None turns it off")
        values = &rows[0, 0]
        size = rows.shape[0] * rows.shape[1]
        width = <int32_t>as_integer(rows.shape[1], "the width of the control vector", 1, INT32_MAX)
    handle = ctx.pin()
    last = c.llama_model_n_layer(handle.get().model.get().ptr) - 1 if il_end is None else as_int32(il_end, "il_end")
    with nogil:
        status = cmodel.control_vector_set(handle, values, size, width, first, last)
    check(status)
