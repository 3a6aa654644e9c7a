# cython: language_level=3
"""What a context computes besides logits, and where its bytes are."""

from libc.stdint cimport int32_t
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core
cimport lloyal._cpp.ext as e
cimport lloyal.libllama.llama as c
from lloyal.llama.args cimport as_int32
from lloyal.llama.backend cimport drain_logs, wrap_device
from lloyal.llama.base cimport enter, leave
from lloyal.llama.outputs cimport copy_row, wrap_row
from lloyal.llama.state cimport ContextState
from lloyal.llama.status cimport check

from lloyal.llama.buffers import BufferUse

__all__ = ["ContextExt"]


cdef class ContextExt(ContextState):
    """The outputs of a context that are not logits. Not for direct use: see `Context`."""

    def memory_breakdown(self) -> list[BufferUse]:
        """Bytes of the model, of this context's memory and of its working buffers, by kind of buffer.

        What llama.cpp keeps for its own ON_DEVICE states is not in it, and neither are checkpoints.

        Notes
        -----
        Releases the GIL.
        """
        cdef core.ContextHandle handle
        cdef core.Status status
        cdef vector[e.BufferUse] rows
        enter(self, handle)
        with nogil:
            status = e.context_memory(handle.get()[0], rows)
            leave(handle)
        check(status)
        return [
            BufferUse(buffer=rows[i].buffer.decode(), device=wrap_device(rows[i].device) if rows[i].device != NULL else None,
                      is_host=rows[i].is_host, model=rows[i].model, context=rows[i].context, compute=rows[i].compute)
            for i in range(rows.size())
        ]

    def set_embeddings(self, value: bool) -> None:
        """Compute embeddings for every token, or only what the batch asks for (``llama_set_embeddings``).

        Invalidates logits and embeddings.
        """
        cdef core.ContextHandle handle
        cdef core.Status status
        cdef bint on = value
        enter(self, handle)
        with nogil:
            status = e.context_set_embeddings(handle.get()[0], on)
            leave(handle)
        check(status)

    @property
    def causal_attn(self) -> bool:
        """True if tokens see only those before them (``llama_get_causal_attn``)."""
        cdef core.ContextHandle handle = self.pin()
        return c.llama_get_causal_attn(handle.get().ptr)

    def set_causal_attn(self, value: bool) -> None:
        """Let tokens see only those before them, or all of their batch (``llama_set_causal_attn``).

        Without it a batch takes at most `n_ubatch` tokens.
        """
        cdef core.ContextHandle handle
        cdef core.Status status
        cdef bint on = value
        enter(self, handle)
        with nogil:
            status = e.context_set_causal(handle.get()[0], on)
            leave(handle)
        check(status)

    def get_logits(self) -> NDArray[float32]:
        """The logits of all outputs of the last batch, in its order (``llama_get_logits``).

        Returns
        -------
        numpy.ndarray
            float32, shape (outputs, n_vocab), a copy.

        Raises
        ------
        NoLogits
            There are none.
        """
        return self._rows(False)

    def get_embeddings(self) -> NDArray[float32]:
        """The embeddings of all outputs of the last batch, in its order (``llama_get_embeddings``).

        Returns
        -------
        numpy.ndarray
            float32, shape (outputs, n_embd_out), a copy.

        Raises
        ------
        NoLogits
            There are none, or they are pooled.
        """
        return self._rows(True)

    def _rows(self, embeddings):
        import numpy

        cdef core.ContextHandle handle
        cdef core.Status status
        cdef const float* rows = NULL
        cdef bint embd = embeddings
        cdef int32_t n = 0
        cdef int32_t width
        enter(self, handle)
        try:
            with nogil:
                if embd:
                    status = e.embeddings_rows(handle.get()[0], rows, n)
                else:
                    status = e.logits_rows(handle.get()[0], rows, n)
            check(status)
            width = (c.llama_model_n_embd_out(handle.get().model.get().ptr) if embd
                     else c.llama_vocab_n_tokens(c.llama_model_get_vocab(handle.get().model.get().ptr)))
            flat = copy_row(rows, <Py_ssize_t>n * width, None)
            return numpy.reshape(flat, (n, width))
        finally:
            leave(handle)

    def set_embeddings_nextn(self, value: bool, masked: bool = True) -> None:
        """Keep the hidden states that a multi-token-prediction head starts from.

        Parameters
        ----------
        value : bool
        masked : bool
            Only for entries with an output; otherwise for all tokens of a batch.

        Raises
        ------
        Unsupported
            The model has none, or the context pools.

        Notes
        -----
        Invalidates logits and embeddings.
        """
        cdef core.ContextHandle handle
        cdef core.Status status
        cdef bint on = value
        cdef bint only_outputs = masked
        enter(self, handle)
        with nogil:
            status = e.context_set_nextn(handle.get()[0], on, only_outputs)
            leave(handle)
        check(status)

    # @overload (self, index: int = -1, *, copy: Literal[False] = False, out: None = None) -> Logits
    # @overload (self, index: int = -1, *, copy: Literal[True], out: None = None) -> NDArray[float32]
    # @overload (self, index: int = -1, *, copy: bool = False, out: BufferT) -> BufferT
    def embeddings_nextn(self, index: int = -1, *, copy: bool = False, out: BufferLike | None = None):
        """The hidden state of one entry of the last batch (``llama_get_embeddings_nextn_ith``).

        Parameters
        ----------
        index : int
            As for `Context.logits` if masked; otherwise the index of the token in the batch, from 0.
        copy, out
            As for `Context.logits`.

        Returns
        -------
        Logits, or numpy.ndarray
            float32, shape (n_embd_out,).

        Raises
        ------
        NoLogits
            There is none.
        """
        return self._row(0, index, copy, out, False)

    def set_nextn_layer_offset(self, offset: int) -> None:
        """Choose the prediction layer that an MTP context runs, from 0 (``llama_set_nextn_layer_offset``)."""
        cdef core.ContextHandle handle
        cdef core.Status status
        cdef int32_t layer = as_int32(offset, "offset")
        enter(self, handle)
        with nogil:
            status = e.context_set_nextn_offset(handle.get()[0], layer)
            leave(handle)
        check(status)

    def set_embeddings_layer_inp(self, layer: int, value: bool) -> None:
        """Keep the input of a layer for every token of a batch (``llama_set_embeddings_layer_inp``).

        Parameters
        ----------
        layer : int
            From 0; `n_layer` stands for the input of the head.
        value : bool

        Raises
        ------
        InvalidArgument
            There is no such layer.
        Unsupported
            The model's graph does not give it.

        Notes
        -----
        Invalidates logits and embeddings; plans the memory for computing again. Releases the GIL.
        """
        cdef core.ContextHandle handle
        cdef core.Status status
        cdef int32_t lid = as_int32(layer, "layer")
        cdef bint on = value
        enter(self, handle)
        with nogil:
            status = e.context_set_layer_input(handle.get()[0], lid, on)
            leave(handle)
        check(status)
        drain_logs()

    # @overload (self, layer: int, index: int, *, copy: Literal[False] = False, out: None = None) -> Logits
    # @overload (self, layer: int, index: int, *, copy: Literal[True], out: None = None) -> NDArray[float32]
    # @overload (self, layer: int, index: int, *, copy: bool = False, out: BufferT) -> BufferT
    def embeddings_layer_inp(self, layer: int, index: int, *, copy: bool = False, out: BufferLike | None = None):
        """The input of a layer for one token of the last batch (``llama_get_embeddings_layer_inp``).

        Parameters
        ----------
        layer : int
            One that `set_embeddings_layer_inp` turned on.
        index : int
            Index of the token in the batch, from 0.
        copy, out
            As for `Context.logits`.

        Returns
        -------
        Logits, or numpy.ndarray
            float32, shape (n_embd,).

        Raises
        ------
        NoLogits
            There is none.
        """
        return self._row(layer, index, copy, out, True)

    def _row(self, layer, index, copy, out, layer_input):
        cdef core.ContextHandle handle
        cdef core.Status status
        cdef const float* row = NULL
        cdef int32_t lid = as_int32(layer, "layer")
        cdef int32_t i = as_int32(index, "index")
        cdef bint from_layer = layer_input
        cdef Py_ssize_t n
        enter(self, handle)
        try:
            with nogil:
                if from_layer:
                    status = e.layer_input_row(handle.get()[0], lid, i, row)
                else:
                    status = e.nextn_row(handle.get()[0], i, row)
            check(status)
            n = (c.llama_model_n_embd(handle.get().model.get().ptr) if from_layer
                 else c.llama_model_n_embd_out(handle.get().model.get().ptr))
            if copy or out is not None:
                return copy_row(row, n, out)
            return wrap_row(handle, row, n)
        finally:
            leave(handle)
