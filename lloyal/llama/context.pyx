# cython: language_level=3
"""Contexts: a model at work, with its memory and its outputs."""

from libc.stdint cimport int32_t

cimport lloyal._cpp.core as core
cimport lloyal.libllama.ggml as g
cimport lloyal.libllama.llama as c
cimport lloyal.llama.decode as decode
cimport lloyal.llama.outputs as outputs
from lloyal.llama.args cimport as_integer
from lloyal.llama.base cimport ContextBase
from lloyal.llama.batch cimport Batch
from lloyal.llama.batch_ext cimport BatchExt
from lloyal.llama.memory cimport wrap_memory
from lloyal.llama.model cimport Model
from lloyal.llama.sampler cimport Sampler
from lloyal.llama.signals cimport poll_signals
from lloyal.llama.status cimport check
from lloyal.llama.vocab cimport wrap_vocab

import dataclasses

from lloyal.errors import InvalidArgument, LoadFailed
from lloyal.llama import adapter, ext, sampler_backend, state
from lloyal.llama.params import ContextParams, default_threads, exact, from_keywords, signature

__all__ = ["Context"]

cdef dict _TYPES = {
    "f32": g.GGML_TYPE_F32, "f16": g.GGML_TYPE_F16, "bf16": g.GGML_TYPE_BF16, "q8_0": g.GGML_TYPE_Q8_0,
    "q4_0": g.GGML_TYPE_Q4_0, "q4_1": g.GGML_TYPE_Q4_1, "iq4_nl": g.GGML_TYPE_IQ4_NL, "q5_0": g.GGML_TYPE_Q5_0,
    "q5_1": g.GGML_TYPE_Q5_1,
}
cdef dict _FLASH = {
    "auto": c.LLAMA_FLASH_ATTN_TYPE_AUTO, "on": c.LLAMA_FLASH_ATTN_TYPE_ENABLED, "off": c.LLAMA_FLASH_ATTN_TYPE_DISABLED,
    True: c.LLAMA_FLASH_ATTN_TYPE_ENABLED, False: c.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
cdef dict _POOLING = {
    "unspecified": c.LLAMA_POOLING_TYPE_UNSPECIFIED, "none": c.LLAMA_POOLING_TYPE_NONE, "mean": c.LLAMA_POOLING_TYPE_MEAN,
    "cls": c.LLAMA_POOLING_TYPE_CLS, "last": c.LLAMA_POOLING_TYPE_LAST, "rank": c.LLAMA_POOLING_TYPE_RANK,
}
cdef dict _ATTENTION = {
    "unspecified": c.LLAMA_ATTENTION_TYPE_UNSPECIFIED, "causal": c.LLAMA_ATTENTION_TYPE_CAUSAL,
    "non_causal": c.LLAMA_ATTENTION_TYPE_NON_CAUSAL,
}
cdef dict _ROPE_SCALING = {
    "unspecified": c.LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED, "none": c.LLAMA_ROPE_SCALING_TYPE_NONE,
    "linear": c.LLAMA_ROPE_SCALING_TYPE_LINEAR, "yarn": c.LLAMA_ROPE_SCALING_TYPE_YARN,
    "longrope": c.LLAMA_ROPE_SCALING_TYPE_LONGROPE,
}

cdef class Context(ContextBase):
    """A model at work (``llama_context``): it decodes batches into its memory and holds the outputs of the last one.

    It keeps the model's weights alive. One caller at a time: a second thread inside gets `Busy`.

    Parameters
    ----------
    model : Model
    params : ContextParams, optional
        All parameters at once; or
    **keywords
        the fields of `ContextParams`: n_ctx, n_batch, n_seq_max, type_k, kv_unified, ...

    Raises
    ------
    LoadFailed
        llama.cpp could not create it; the message carries its reason.
    UnknownParameter, InvalidArgument
        A keyword is unknown or its value impossible.

    Notes
    -----
    Creation releases the GIL.
    """

    __signature__ = signature(ContextParams, "model")

    def __init__(self, Model model not None, params: ContextParams | None = None, **keywords: Unpack[ContextParams]):
        cdef c.llama_context_params native = c.llama_context_default_params()
        cdef core.ModelHandle weights = model.pin()
        cdef core.ContextHandle handle
        cdef core.Status status
        cdef core.ContextHandle parent
        if params is None:
            params = from_keywords(ContextParams, keywords)
        elif keywords:
            raise InvalidArgument(f"give params or keywords, not both: {', '.join(keywords)}")
        else:
            params = exact(ContextParams, params)
        if model.params.vocab_only:
            raise InvalidArgument("the model was loaded with vocab_only=True: it has no weights to compute with")
        threads = params.n_threads or default_threads()
        # As llama.cpp rounds it, but before it limits the batch to it: with a batch smaller than n_seq_max it aborts.
        native.n_ctx = -(-(params.n_ctx or model.n_ctx_train) // 256) * 256
        native.n_batch = params.n_batch
        native.n_ubatch = params.n_ubatch
        native.n_seq_max = params.n_seq_max
        native.n_rs_seq = params.n_rs_seq
        native.n_outputs_max = params.n_outputs_max
        native.n_outputs_max_per_seq = params.n_outputs_max_per_seq
        native.n_threads, native.n_threads_batch = threads, params.n_threads_batch or threads
        native.ctx_type = c.LLAMA_CONTEXT_TYPE_MTP if params.type == "mtp" else c.LLAMA_CONTEXT_TYPE_DEFAULT
        native.rope_scaling_type = _ROPE_SCALING[params.rope_scaling]
        native.pooling_type = _POOLING[params.pooling]
        native.attention_type = _ATTENTION[params.attention]
        native.flash_attn_type = _FLASH[params.flash_attn]
        native.rope_freq_base = params.rope_freq_base
        native.rope_freq_scale = params.rope_freq_scale
        native.yarn_ext_factor = params.yarn_ext_factor
        native.yarn_attn_factor = params.yarn_attn_factor
        native.yarn_beta_fast = params.yarn_beta_fast
        native.yarn_beta_slow = params.yarn_beta_slow
        native.yarn_orig_ctx = params.yarn_orig_ctx
        native.type_k = _TYPES[params.type_k]
        native.type_v = _TYPES[params.type_v]
        native.embeddings = params.embeddings
        native.offload_kqv = params.offload_kqv
        native.no_perf = params.no_perf
        native.op_offload = params.op_offload
        native.swa_full = params.swa_full
        native.kv_unified = params.kv_unified
        if params.parent is not None:
            parent = (<Context?>params.parent).pin()
        with nogil:
            status = core.check_threads(max(native.n_threads, native.n_threads_batch))
        check(status)
        with nogil:
            status = core.context_create(weights, native, parent, poll_signals, handle)
        try:
            check(status)
        except LoadFailed as error:
            log = error.native_log
            reasons = [reason for reason in (str(error), log) if reason]
            explained = LoadFailed(f"cannot create a context with {_differences(params)}: {': '.join(reasons)}")
            explained.native_log = log
            raise explained from None
        self.handle = handle
        # The native context keeps the samplers, for as long as it runs them.
        self.params = dataclasses.replace(
            params, samplers=None,
            flash_attn=("on" if self.flash_attn else "off") if params.flash_attn == "auto" else params.flash_attn)
        self.model = model
        for seq_id, sampler in (params.samplers or {}).items():
            self.set_sampler(seq_id, sampler)

    @property
    def vocab(self) -> Vocab:
        """The model's vocabulary; it is there even if the model was closed."""
        cdef core.ContextHandle handle = self.pin()
        return wrap_vocab(handle.get().model)

    @property
    def memory(self) -> Memory:
        """The memory: sequences, positions, rollback."""
        return wrap_memory(self)  # not kept: it holds this object, and a cycle would delay freeing the context

    def decode(self, Batch batch not None) -> None:
        """Compute a batch (``llama_decode``): its tokens go into the memory, its outputs are kept until the next call.

        Raises
        ------
        InvalidBatch
            Empty, too large, out of range, positions with a gap, a token of several sequences that hold different rows,
            or a sliding window that loses rows which an earlier output needs. Nothing was changed.
        CacheFull
            No room for the batch. Nothing was changed.
        Aborted
            `abort()` was called; what was finished stays in the memory, except that sequences it was computing are
            emptied where there is a recurrent state, which cannot be taken back. A signal handler's exception (Ctrl-C)
            comes out as itself, the same way.
        DecodeFailed
            llama.cpp failed while computing; what stays is as for `Aborted`.

        Notes
        -----
        Invalidates logits and embeddings. Releases the GIL. Ctrl-C stops it between graph nodes (CPU back end).
        """
        decode.run(self, batch, False, False, False)

    def encode(self, Batch batch not None) -> None:
        """Compute a batch with the encoder, without memory (``llama_encode``). Raises like `decode`."""
        decode.run(self, batch, True, False, False)

    def process(self, type: Literal["decode", "encode"], BatchExt batch not None) -> None:
        """Compute an extended batch (``llama_process``). Raises like `decode` or `encode`."""
        decode.process(self, type, batch)

    def abort(self) -> None:
        """Stop the decode that runs now, from any thread; it raises `Aborted` there. Without one nothing happens."""
        cdef core.ContextHandle handle = self.pin()
        core.context_request_abort(handle.get()[0])

    # @overload (self, index: int = -1, *, copy: Literal[False] = False, out: None = None) -> Logits
    # @overload (self, index: int = -1, *, copy: Literal[True], out: None = None) -> NDArray[float32]
    # @overload (self, index: int = -1, *, copy: bool = False, out: BufferT) -> BufferT
    def logits(self, index: int = -1, *, copy: bool = False, out: BufferLike | None = None):
        """The logits of one entry of the last batch (``llama_get_logits_ith``).

        Parameters
        ----------
        index : int
            Index in the batch; negative counts back from the last entry with an output.
        copy : bool
            Return a NumPy array of its own instead of a view.
        out : writable float32 buffer, optional
            Copy into this, shape (n_vocab,), and return it.

        Returns
        -------
        Logits, or numpy.ndarray
            float32, shape (n_vocab,).

        Raises
        ------
        NoLogits
            Nothing was decoded, or the entry has no output.
        """
        return outputs.logits(self, index, copy, out)

    # @overload (self, index: int | None = None, *, seq_id: int | None = None, copy: Literal[False] = False, out: None = None) -> Logits
    # @overload (self, index: int | None = None, *, seq_id: int | None = None, copy: Literal[True], out: None = None) -> NDArray[float32]
    # @overload (self, index: int | None = None, *, seq_id: int | None = None, copy: bool = False, out: BufferT) -> BufferT
    def embeddings(self, index: int | None = None, *, seq_id: int | None = None, copy: bool = False,
                   out: BufferLike | None = None):
        """An embedding of the last batch: of one entry, or the pooled one of a sequence.

        Parameters
        ----------
        index : int, optional
            As for `logits` (``llama_get_embeddings_ith``).
        seq_id : int, optional
            The sequence, if the context pools (``llama_get_embeddings_seq``).
        copy, out
            As for `logits`.

        Returns
        -------
        Logits, or numpy.ndarray
            float32, shape (n_embd_out,); with pooling="rank" shape (number of classes,).
        """
        return outputs.embeddings(self, index, seq_id, copy, out)

    # ext.pyx: outputs that are not logits

    def memory_breakdown(self) -> list[BufferUse]:
        """Bytes of the model, of this context's memory and of its working buffers, by kind of buffer.

        What llama.cpp keeps for its own ON_DEVICE states is not in it, and neither are checkpoints.

        Notes
        -----
        Releases the GIL.
        """
        return ext.memory_breakdown(self)

    def set_embeddings(self, value: bool) -> None:
        """Compute embeddings for every token, or only what the batch asks for (``llama_set_embeddings``).

        Invalidates logits and embeddings.
        """
        ext.set_embeddings(self, value)

    @property
    def causal_attn(self) -> bool:
        """True if tokens see only those before them (``llama_get_causal_attn``)."""
        return ext.get_causal_attn(self)

    def set_causal_attn(self, value: bool) -> None:
        """Let tokens see only those before them, or all of their batch (``llama_set_causal_attn``).

        Without it a batch takes at most `n_ubatch` tokens.
        """
        ext.set_causal_attn(self, value)

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
        return ext.get_logits(self)

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
        return ext.get_embeddings(self)

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
        ext.set_embeddings_nextn(self, value, masked)

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
        return ext.embeddings_nextn(self, index, copy, out)

    def set_nextn_layer_offset(self, offset: int) -> None:
        """Choose the prediction layer that an MTP context runs, from 0 (``llama_set_nextn_layer_offset``)."""
        ext.set_nextn_layer_offset(self, offset)

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
        ext.set_embeddings_layer_inp(self, layer, value)

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
        return ext.embeddings_layer_inp(self, layer, index, copy, out)

    def synchronize(self) -> None:
        """Wait until everything asked of the devices is done (``llama_synchronize``). Releases the GIL."""
        cdef core.ContextHandle handle
        cdef core.Status status
        handle = self.pin()
        with nogil:
            status = core.synchronize(handle)
        check(status)

    @property
    def n_ctx(self) -> int:
        """Cells of the cache over all sequences, as llama.cpp rounded it."""
        cdef core.ContextHandle handle = self.pin()
        return c.llama_n_ctx(handle.get().ptr)

    @property
    def n_ctx_seq(self) -> int:
        """Cells one sequence can use."""
        cdef core.ContextHandle handle = self.pin()
        return c.llama_n_ctx_seq(handle.get().ptr)

    @property
    def n_batch(self) -> int:
        cdef core.ContextHandle handle = self.pin()
        return c.llama_n_batch(handle.get().ptr)

    @property
    def n_ubatch(self) -> int:
        cdef core.ContextHandle handle = self.pin()
        return c.llama_n_ubatch(handle.get().ptr)

    @property
    def n_seq_max(self) -> int:
        cdef core.ContextHandle handle = self.pin()
        return c.llama_n_seq_max(handle.get().ptr)

    @property
    def n_rs_seq(self) -> int:
        """Depth of the recurrent rollback ring; 0 where the architecture has none."""
        cdef core.ContextHandle handle = self.pin()
        return c.llama_n_rs_seq(handle.get().ptr)

    @property
    def n_threads(self) -> int:
        cdef core.ContextHandle handle = self.pin()
        return c.llama_n_threads(handle.get().ptr)

    @property
    def n_threads_batch(self) -> int:
        cdef core.ContextHandle handle = self.pin()
        return c.llama_n_threads_batch(handle.get().ptr)

    def set_n_threads(self, n_threads: int, n_threads_batch: int) -> None:
        """Threads for single tokens and for batches, each from 1 to 512 (``llama_set_n_threads``)."""
        cdef core.ContextHandle handle
        cdef int32_t single = as_integer(n_threads, "n_threads", 1, 512)
        cdef int32_t batch = as_integer(n_threads_batch, "n_threads_batch", 1, 512)
        cdef core.Status status
        handle = self.pin()
        with nogil:
            status = core.check_threads(max(single, batch))
        check(status)
        with nogil:
            status = core.set_n_threads(handle, single, batch)
        check(status)

    @property
    def flash_attn(self) -> bool:
        """True if flash attention is in use, however it was decided."""
        cdef core.ContextHandle handle = self.pin()
        return not handle.get().map.v_trans

    @property
    def pooling(self) -> str:
        """How embeddings are pooled."""
        cdef core.ContextHandle handle = self.pin()
        kind = c.llama_pooling_type(handle.get().ptr)
        return next(name for name, value in _POOLING.items() if value == kind)

    def perf(self) -> dict[str, float]:
        """llama.cpp's own timings, in milliseconds, and counts (``llama_perf_context``; needs no_perf=False)."""
        cdef core.ContextHandle handle = self.pin()
        cdef c.llama_perf_context_data data = c.llama_perf_context(handle.get().ptr)
        return {
            "t_start_ms": data.t_start_ms, "t_load_ms": data.t_load_ms, "t_p_eval_ms": data.t_p_eval_ms,
            "t_eval_ms": data.t_eval_ms, "n_p_eval": data.n_p_eval, "n_eval": data.n_eval, "n_reused": data.n_reused,
        }

    def perf_reset(self) -> None:
        cdef core.ContextHandle handle = self.pin()
        c.llama_perf_context_reset(handle.get().ptr)

    # state.pyx: llama.cpp's own states

    def state_seq_get_size_ext(self, seq_id: int, flags: int = 0) -> int:
        """Bytes that `state_seq_get_data_ext` will write (``llama_state_seq_get_size_ext``).

        Parameters
        ----------
        seq_id : int
        flags : StateSeqFlags
            With ON_DEVICE the count includes our trailer of 16 bytes.

        Raises
        ------
        Unsupported
            ON_DEVICE on a quantized cache, which llama.cpp corrupts, or on tensor-split models.

        Notes
        -----
        Releases the GIL.
        """
        return state.state_seq_get_size_ext(self, seq_id, flags)

    # @overload (self, seq_id: int, flags: int = 0, out: None = None) -> bytes
    # @overload (self, seq_id: int, flags: int, out: BufferLike) -> int
    # @overload (self, seq_id: int, flags: int = 0, *, out: BufferLike) -> int
    def state_seq_get_data_ext(self, seq_id: int, flags: int = 0, out: BufferLike | None = None):
        """Write the state of a sequence (``llama_state_seq_get_data_ext``).

        With ON_DEVICE the tensors stay in device buffers inside the context, one slot per sequence: the next ON_DEVICE
        save of `seq_id` replaces them, and restoring the older blob raises `StaleCheckpoint`.

        Parameters
        ----------
        seq_id : int
        flags : StateSeqFlags
        out : writable bytes-like, optional
            Where to write; it may be larger than needed.

        Returns
        -------
        bytes, or int with `out`
            The state, or the number of bytes written.

        Notes
        -----
        Releases the GIL.
        """
        return state.state_seq_get_data_ext(self, seq_id, flags, out)

    def state_seq_set_data_ext(self, data: BufferLike, dest_seq_id: int, flags: int = 0) -> int:
        """Restore a state into a sequence (``llama_state_seq_set_data_ext``).

        Parameters
        ----------
        data : bytes-like
            What `state_seq_get_data_ext` gave, with the same flags.
        dest_seq_id : int
            The sequence to replace; it need not be the one that was saved.
        flags : StateSeqFlags

        Returns
        -------
        int
            Bytes read.

        Raises
        ------
        StaleCheckpoint
            ON_DEVICE: the sequence was saved again since, or `encode` has run since. Nothing was changed.
        NoLease
            The destination holds the cells of a checkpoint. Nothing was changed.
        StateMismatch
            Another layout, other flags, or damaged bytes. For host states the destination is empty afterwards,
            as llama.cpp leaves it.

        Notes
        -----
        Invalidates logits. Releases the GIL. A PARTIAL_ONLY state of hybrid or sliding-window memory takes the sequence
        back to its position: later rows of the full-size layers go too (llama.cpp leaves them, and they would be
        attended to). With ON_DEVICE the rows before it are known to be the ones it continues; with a host state that is
        for the caller to know.
        """
        return state.state_seq_set_data_ext(self, data, dest_seq_id, flags)

    def state_seq_get_size(self, seq_id: int) -> int:
        """`state_seq_get_size_ext` without flags."""
        return state.state_seq_get_size_ext(self, seq_id, 0)

    # @overload (self, seq_id: int, out: None = None) -> bytes
    # @overload (self, seq_id: int, out: BufferLike) -> int
    def state_seq_get_data(self, seq_id: int, out: BufferLike | None = None):
        """`state_seq_get_data_ext` without flags."""
        return state.state_seq_get_data_ext(self, seq_id, 0, out)

    def state_seq_set_data(self, data: BufferLike, dest_seq_id: int) -> int:
        """`state_seq_set_data_ext` without flags."""
        return state.state_seq_set_data_ext(self, data, dest_seq_id, 0)

    def state_get_size(self) -> int:
        """Bytes of the whole context's state (``llama_state_get_size``). Releases the GIL."""
        return state.state_get_size(self)

    # @overload (self, out: None = None) -> bytes
    # @overload (self, out: BufferLike) -> int
    def state_get_data(self, out: BufferLike | None = None):
        """The whole context's state, all sequences (``llama_state_get_data``); see `state_seq_get_data_ext`."""
        return state.state_get_data(self, out)

    def state_set_data(self, data: BufferLike) -> int:
        """Restore the whole context (``llama_state_set_data``). A refused state leaves it empty. Releases the GIL."""
        return state.state_set_data(self, data)

    def state_seq_save_file(self, path: StrPath, seq_id: int, tokens: Iterable[int] = ()) -> int:
        """Write a sequence's state and its tokens in llama.cpp's file format ("ggsq").

        The file appears whole or not at all. Returns its size in bytes.
        """
        return state.state_seq_save_file(self, path, seq_id, tokens)

    def state_seq_load_file(self, path: StrPath, dest_seq_id: int) -> list[int]:
        """Restore a sequence from llama.cpp's file format and return the tokens stored with it.

        Raises
        ------
        StateMismatch
            Not such a file, truncated, or of another model or layout. The header is checked before anything is
            touched; after that the destination is empty, and the message says so.
        """
        return state.state_seq_load_file(self, path, dest_seq_id)

    def state_save_file(self, path: StrPath, tokens: Iterable[int] = ()) -> int:
        """Write the whole context and tokens in llama.cpp's session format ("ggsn"); see `state_seq_save_file`."""
        return state.state_save_file(self, path, tokens)

    def state_load_file(self, path: StrPath) -> list[int]:
        """Restore the whole context from llama.cpp's session format and return the tokens stored with it."""
        return state.state_load_file(self, path)

    # adapter.pyx: what is laid over the weights

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
        self._adapters = adapter.set_adapters_lora(self, adapters, scales)

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
        adapter.set_adapter_cvec(self, data, il_start, il_end)

    # sampler_backend.pyx: samplers in the graph

    def set_sampler(self, seq_id: int, Sampler sampler or None) -> None:
        """Let a chain run on the back end for the outputs of a sequence (``llama_set_sampler``), or none any more.

        The first samplers of the chain that llama.cpp can put into the graph run there: greedy, llama_dist, top_k,
        top_p, min_p, temp, temp_ext, logit_bias, penalties (with at most one output per sequence and decode,
        ``n_outputs_max_per_seq=1``). From the first other one on the rest runs in `Sampler.sample`, on what is left of
        the candidates. Go on as without: ``sampler.sample(ctx, i)``.

        Parameters
        ----------
        seq_id : int
        sampler : Sampler or None
            A chain, which belongs to the sequence until another is set or the context is freed; the context keeps it
            alive. None goes back to logits.

        Raises
        ------
        InvalidArgument
            It is no chain, runs in a context already, or llama.cpp would abort or sample something else on it.
        Unsupported
            This model's back end cannot sample.

        Notes
        -----
        Invalidates logits: outputs of the sequence have none from the next decode on. Releases the GIL.
        """
        sampler_backend.set_sampler(self, seq_id, sampler)

    def sampled_token(self, index: int = -1) -> int | None:
        """The token that the back end picked for one output (``llama_get_sampled_token_ith``), or None.

        `Sampler.sample` returns the same one and accepts it. Raises `NoLogits` for an entry without output.
        """
        return sampler_backend.sampled_token(self, index)

    def sampled_probs(self, index: int = -1) -> Logits | None:
        """The probabilities of the candidates, if the back end computed them (``llama_get_sampled_probs_ith``).

        Returns
        -------
        Logits or None
            A view as of `Context.logits`, float32, shape (n,), in the order of `sampled_candidates`.
        """
        return sampler_backend.sampled_probs(self, index)

    def sampled_logits(self, index: int = -1) -> Logits | None:
        """The logits of the candidates as the back end left them (``llama_get_sampled_logits_ith``).

        Returns
        -------
        Logits or None
            A view as of `Context.logits`, float32, shape (n,), in the order of `sampled_candidates`.
        """
        return sampler_backend.sampled_logits(self, index)

    def sampled_candidates(self, index: int = -1) -> NDArray[int32] | None:
        """The tokens that were left on the back end (``llama_get_sampled_candidates_ith``).

        Returns
        -------
        ndarray of int32, shape (n,), or None
            An array of its own.
        """
        return sampler_backend.sampled_candidates(self, index)

    def __repr__(self):
        if self.closed:
            return "<Context, closed>"
        return f"<Context of {self.model.path!r}: n_ctx {self.n_ctx}, n_seq_max {self.n_seq_max}, {self.memory.kind} memory>"


cdef _differences(params):
    """The parameters that are not at their defaults, as text."""
    changed = [f"{f.name}={getattr(params, f.name)!r}" for f in dataclasses.fields(params)
               if getattr(params, f.name) != f.default and f.name != "parent"]
    return ", ".join(changed) or "default parameters"
