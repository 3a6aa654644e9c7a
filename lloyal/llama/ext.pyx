# cython: language_level=3
"""What a context computes besides logits, and where its bytes are."""

from libc.stdint cimport int32_t
from libc.string cimport memcpy
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core
cimport lloyal._cpp.decode as cdecode
cimport lloyal.libllama.llama as c
from lloyal.llama.args cimport as_int32
from lloyal.llama.backend cimport wrap_device
from lloyal.llama.outputs cimport OutputCopy, output_copy, wrap_output
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
        cdef vector[cdecode.BufferUse] rows
        handle = self.pin()
        with nogil:
            status = cdecode.context_memory(handle, rows)
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
        handle = self.pin()
        with nogil:
            status = cdecode.context_set_embeddings(handle, on)
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
        handle = self.pin()
        with nogil:
            status = cdecode.context_set_causal(handle, on)
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
        cdef vector[float] rows
        cdef float[::1] target
        cdef bint embd = embeddings
        cdef int32_t n = 0
        handle = self.pin()
        with nogil:
            status = cdecode.read_all(handle, embd, rows, n)
        check(status)
        found = numpy.empty(rows.size(), dtype=numpy.float32)
        target = found
        memcpy(&target[0], rows.data(), rows.size() * sizeof(float))
        return found.reshape(n, -1)

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
        handle = self.pin()
        with nogil:
            status = cdecode.context_set_nextn(handle, on, only_outputs)
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
        handle = self.pin()
        with nogil:
            status = cdecode.context_set_nextn_offset(handle, layer)
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
        handle = self.pin()
        with nogil:
            status = cdecode.context_set_layer_input(handle, lid, on)
        check(status)

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
        cdef cdecode.Output output
        cdef OutputCopy into
        cdef int32_t lid = as_int32(layer, "layer")
        cdef int32_t i = as_int32(index, "index")
        cdef bint from_layer = layer_input
        handle = self.pin()
        into = output_copy(cdecode.n_layer_input(handle.get()[0]) if from_layer else cdecode.n_embedding(handle.get()[0]), copy, out)
        with nogil:
            if from_layer:
                status = cdecode.read_layer_input(handle, lid, i, into.start, into.room, output)
            else:
                status = cdecode.read_nextn(handle, i, into.start, into.room, output)
        check(status)
        return wrap_output(handle, output) if into.array is None else into.array
