# cython: language_level=3
"""What is laid over a model's weights: low-rank adapters (LoRA) and control vectors, set per context."""

from libc.stdint cimport INT32_MAX, int32_t
from libcpp.string cimport string
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core
cimport lloyal._cpp.model as cmodel
from lloyal.llama.args cimport as_double, as_int32, as_integer
cimport lloyal.libllama.llama as c
from lloyal.llama.ext cimport ContextExt
from lloyal.llama.model cimport Model
from lloyal.llama.status cimport check, check_process

import os

from lloyal.errors import Closed, InvalidArgument
from lloyal.llama.model import check_file

__all__ = ["ContextAdapters", "LoraAdapter"]


cdef class LoraAdapter:
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

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

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


cdef class ContextAdapters(ContextExt):
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
        handle = self.pin()
        with nogil:
            status = cmodel.adapters_set(handle, handles, factors)
        check(status)
        self._adapters = tuple([(item, number) for item, number in zip(adapters, numbers) if number != 0])

    @property
    def adapters_lora(self) -> tuple[tuple[LoraAdapter, float], ...]:
        """The adapters in use, as pairs of `LoraAdapter` and scale."""
        return self._adapters or ()

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
        handle = self.pin()
        last = c.llama_model_n_layer(handle.get().model.get().ptr) - 1 if il_end is None else as_int32(il_end, "il_end")
        with nogil:
            status = cmodel.control_vector_set(handle, values, size, width, first, last)
        check(status)
