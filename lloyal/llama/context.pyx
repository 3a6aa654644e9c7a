# cython: language_level=3
"""Contexts: a model at work, with its memory and its outputs."""

from libc.stdint cimport int32_t
from libcpp cimport bool as cbool

cimport lloyal._cpp.core as core
cimport lloyal._cpp.decode as cdecode
cimport lloyal.libllama.ggml as g
cimport lloyal.libllama.llama as c
from lloyal.llama.args cimport as_int32, as_integer
from lloyal.llama.batch cimport Batch
from lloyal.llama.batch_ext cimport BatchExt
from lloyal.llama.memory cimport wrap_memory
from lloyal.llama.model cimport Model
from lloyal.llama.outputs cimport OutputCopy, output_copy, wrap_output
from lloyal.llama.sampling_backend cimport ContextSampling
from lloyal.llama.signals cimport poll_signals, raise_signal
from lloyal.llama.status cimport check
from lloyal.llama.vocab cimport wrap_vocab

import dataclasses
import threading

from lloyal.errors import InvalidArgument, LoadFailed
from lloyal.llama.params import ContextParams, default_threads, exact, from_keywords

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

cdef class Context(ContextSampling):
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
        native.n_threads = threads
        native.n_threads_batch = params.n_threads_batch or threads
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
        self.params = params if params.samplers is None else dataclasses.replace(params, samplers=None)
        self.model = model
        self.n_vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(weights.get().ptr))
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
            `abort()` was called; what was finished stays in the memory, except that the sequences of the batch are
            emptied where there is a recurrent state, which cannot be taken back. A signal handler's exception (Ctrl-C)
            comes out as itself, the same way.
        DecodeFailed
            llama.cpp failed while computing; what stays is as for `Aborted`.

        Notes
        -----
        Invalidates logits and embeddings. Releases the GIL. Ctrl-C stops it between graph nodes (CPU back end).
        """
        self._run(batch, False, False, False)

    def _decode_as_tenant(self, Batch batch not None) -> None:
        # For kv.Tenancy: sequences it has leased may be written.
        self._run(batch, False, True, False)

    def encode(self, Batch batch not None) -> None:
        """Compute a batch with the encoder, without memory (``llama_encode``). Raises like `decode`."""
        self._run(batch, True, False, False)

    def process(self, type: Literal["decode", "encode"], BatchExt batch not None) -> None:
        """Compute an extended batch (``llama_process``). Raises like `decode` or `encode`."""
        if type not in ("decode", "encode"):
            raise InvalidArgument(f"type={type!r} must be 'decode' or 'encode'")
        self._run(batch.build(self), type == "encode", False, True)

    cdef int _run(self, Batch batch, bint encoding, bint tenant, bint ext) except -1:
        cdef core.ContextHandle handle
        cdef core.Status status
        handle = self.pin()
        batch.lock()
        try:
            with nogil:
                if ext:
                    if encoding:
                        status = cdecode.process_encode(handle, batch.box)
                    else:
                        status = cdecode.process_decode(handle, batch.box, tenant)
                elif encoding:
                    status = cdecode.encode(handle, batch.box)
                else:
                    status = cdecode.decode(handle, batch.box, tenant)
        finally:
            batch.unlock()
        raise_signal()
        check(status)
        return 0

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
        cdef core.ContextHandle handle
        cdef core.Status status
        cdef cdecode.Output output
        cdef int32_t i = as_int32(index, "index")
        cdef OutputCopy into = output_copy(self.n_vocab, copy, out)
        handle = self.pin()
        with nogil:  # it waits for the devices
            status = cdecode.read_logits(handle, i, into.start, into.room, output)
        check(status)
        return wrap_output(handle, output) if into.array is None else into.array

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
        cdef core.ContextHandle handle
        cdef core.Status status
        cdef cdecode.Output output
        cdef OutputCopy into
        cdef int32_t i = -1 if index is None else as_int32(index, "index")
        cdef int32_t seq = -1 if seq_id is None else as_int32(seq_id, "seq_id")
        cdef bint pooled = seq_id is not None
        if index is not None and seq_id is not None:
            raise InvalidArgument("give index or seq_id, not both")
        handle = self.pin()
        into = output_copy(cdecode.n_pooled(handle.get()[0]) if pooled else cdecode.n_embedding(handle.get()[0]), copy, out)
        with nogil:
            if pooled:
                status = cdecode.read_pooled(handle, seq, into.start, into.room, output)
            else:
                status = cdecode.read_embedding(handle, i, into.start, into.room, output)
        check(status)
        return wrap_output(handle, output) if into.array is None else into.array

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

    def __repr__(self):
        if self.closed:
            return "<Context, closed>"
        return f"<Context of {self.model.path!r}: n_ctx {self.n_ctx}, n_seq_max {self.n_seq_max}, {self.memory.kind} memory>"


cdef _differences(params):
    """The parameters that are not at their defaults, as text."""
    changed = [f"{f.name}={getattr(params, f.name)!r}" for f in dataclasses.fields(params)
               if getattr(params, f.name) != f.default and f.name != "parent"]
    return ", ".join(changed) or "default parameters"
