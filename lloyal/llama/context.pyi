# Written by tools/stubs.py from context.pyx.
"""Contexts: a model at work, with its memory and its outputs."""

from collections.abc import Iterable, Mapping
from lloyal.llama.adapter import LoraAdapter
from lloyal.llama.base import ContextBase
from lloyal.llama.batch import Batch
from lloyal.llama.batch_ext import BatchExt
from lloyal.llama.buffers import BufferUse
from lloyal.llama.memory import Memory
from lloyal.llama.model import Model
from lloyal.llama.outputs import Logits
from lloyal.llama.params import ContextParams
from lloyal.llama.sampler import Sampler
from lloyal.llama.vocab import Vocab
from numpy import float32, int32
from numpy.typing import NDArray
from os import PathLike
from typing import Any, Literal, TypeVar, overload
from typing_extensions import Buffer

StrPath = str | PathLike[str]
BufferLike = Buffer | NDArray[Any]
BufferT = TypeVar("BufferT", bound=Buffer | NDArray[Any])

__all__ = ["Context"]

class Context(ContextBase):
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

    @property
    def params(self) -> ContextParams: ...
    @property
    def model(self) -> Model: ...
    def __init__(self, model: Model, params: ContextParams | None = None, *, n_ctx: int = ..., n_batch: int = ..., n_ubatch: int = ..., n_seq_max: int = ..., n_rs_seq: int = ..., n_outputs_max: int = ..., n_outputs_max_per_seq: int = ..., samplers: Mapping[int, Any] | None = ..., type_k: Literal['f32', 'f16', 'bf16', 'q8_0', 'q4_0', 'q4_1', 'iq4_nl', 'q5_0', 'q5_1'] = ..., type_v: Literal['f32', 'f16', 'bf16', 'q8_0', 'q4_0', 'q4_1', 'iq4_nl', 'q5_0', 'q5_1'] = ..., flash_attn: Literal['auto', 'on', 'off'] | bool = ..., kv_unified: bool = ..., swa_full: bool = ..., n_threads: int | None = ..., n_threads_batch: int | None = ..., embeddings: bool = ..., pooling: Literal['unspecified', 'none', 'mean', 'cls', 'last', 'rank'] = ..., attention: Literal['unspecified', 'causal', 'non_causal'] = ..., rope_scaling: Literal['unspecified', 'none', 'linear', 'yarn', 'longrope'] = ..., rope_freq_base: float = ..., rope_freq_scale: float = ..., yarn_ext_factor: float = ..., yarn_attn_factor: float = ..., yarn_beta_fast: float = ..., yarn_beta_slow: float = ..., yarn_orig_ctx: int = ..., offload_kqv: bool = ..., op_offload: bool = ..., no_perf: bool = ..., type: Literal['default', 'mtp'] = ..., parent: Any = ...) -> None: ...
    @property
    def vocab(self) -> Vocab:
        """The model's vocabulary; it is there even if the model was closed."""
    @property
    def memory(self) -> Memory:
        """The memory: sequences, positions, rollback."""
    def decode(self, batch: Batch) -> None:
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
    def encode(self, batch: Batch) -> None:
        """Compute a batch with the encoder, without memory (``llama_encode``). Raises like `decode`."""
    def process(self, type: Literal["decode", "encode"], batch: BatchExt) -> None:
        """Compute an extended batch (``llama_process``). Raises like `decode` or `encode`."""
    def abort(self) -> None:
        """Stop the decode that runs now, from any thread; it raises `Aborted` there. Without one nothing happens."""
    @overload
    def logits(self, index: int = -1, *, copy: Literal[False] = False, out: None = None) -> Logits: ...
    @overload
    def logits(self, index: int = -1, *, copy: Literal[True], out: None = None) -> NDArray[float32]: ...
    @overload
    def logits(self, index: int = -1, *, copy: bool = False, out: BufferT) -> BufferT:
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
    @overload
    def embeddings(self, index: int | None = None, *, seq_id: int | None = None, copy: Literal[False] = False, out: None = None) -> Logits: ...
    @overload
    def embeddings(self, index: int | None = None, *, seq_id: int | None = None, copy: Literal[True], out: None = None) -> NDArray[float32]: ...
    @overload
    def embeddings(self, index: int | None = None, *, seq_id: int | None = None, copy: bool = False, out: BufferT) -> BufferT:
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
    def memory_breakdown(self) -> list[BufferUse]:
        """Bytes of the model, of this context's memory and of its working buffers, by kind of buffer.

        What llama.cpp keeps for its own ON_DEVICE states is not in it, and neither are checkpoints.

        Notes
        -----
        Releases the GIL.
        """
    def set_embeddings(self, value: bool) -> None:
        """Compute embeddings for every token, or only what the batch asks for (``llama_set_embeddings``).

        Invalidates logits and embeddings.
        """
    @property
    def causal_attn(self) -> bool:
        """True if tokens see only those before them (``llama_get_causal_attn``)."""
    def set_causal_attn(self, value: bool) -> None:
        """Let tokens see only those before them, or all of their batch (``llama_set_causal_attn``).

        Without it a batch takes at most `n_ubatch` tokens.
        """
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
    @overload
    def embeddings_nextn(self, index: int = -1, *, copy: Literal[False] = False, out: None = None) -> Logits: ...
    @overload
    def embeddings_nextn(self, index: int = -1, *, copy: Literal[True], out: None = None) -> NDArray[float32]: ...
    @overload
    def embeddings_nextn(self, index: int = -1, *, copy: bool = False, out: BufferT) -> BufferT:
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
    def set_nextn_layer_offset(self, offset: int) -> None:
        """Choose the prediction layer that an MTP context runs, from 0 (``llama_set_nextn_layer_offset``)."""
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
    @overload
    def embeddings_layer_inp(self, layer: int, index: int, *, copy: Literal[False] = False, out: None = None) -> Logits: ...
    @overload
    def embeddings_layer_inp(self, layer: int, index: int, *, copy: Literal[True], out: None = None) -> NDArray[float32]: ...
    @overload
    def embeddings_layer_inp(self, layer: int, index: int, *, copy: bool = False, out: BufferT) -> BufferT:
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
    def synchronize(self) -> None:
        """Wait until everything asked of the devices is done (``llama_synchronize``). Releases the GIL."""
    @property
    def n_ctx(self) -> int:
        """Cells of the cache over all sequences, as llama.cpp rounded it."""
    @property
    def n_ctx_seq(self) -> int:
        """Cells one sequence can use."""
    @property
    def n_batch(self) -> int: ...
    @property
    def n_ubatch(self) -> int: ...
    @property
    def n_seq_max(self) -> int: ...
    @property
    def n_rs_seq(self) -> int:
        """Depth of the recurrent rollback ring; 0 where the architecture has none."""
    @property
    def n_threads(self) -> int: ...
    @property
    def n_threads_batch(self) -> int: ...
    def set_n_threads(self, n_threads: int, n_threads_batch: int) -> None:
        """Threads for single tokens and for batches, each from 1 to 512 (``llama_set_n_threads``)."""
    @property
    def flash_attn(self) -> bool:
        """True if flash attention is in use, however it was decided."""
    @property
    def pooling(self) -> str:
        """How embeddings are pooled."""
    def perf(self) -> dict[str, float]:
        """llama.cpp's own timings, in milliseconds, and counts (``llama_perf_context``; needs no_perf=False)."""
    def perf_reset(self) -> None: ...
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
    @overload
    def state_seq_get_data_ext(self, seq_id: int, flags: int = 0, out: None = None) -> bytes: ...
    @overload
    def state_seq_get_data_ext(self, seq_id: int, flags: int, out: BufferLike) -> int: ...
    @overload
    def state_seq_get_data_ext(self, seq_id: int, flags: int = 0, *, out: BufferLike) -> int:
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
    def state_seq_get_size(self, seq_id: int) -> int:
        """`state_seq_get_size_ext` without flags."""
    @overload
    def state_seq_get_data(self, seq_id: int, out: None = None) -> bytes: ...
    @overload
    def state_seq_get_data(self, seq_id: int, out: BufferLike) -> int:
        """`state_seq_get_data_ext` without flags."""
    def state_seq_set_data(self, data: BufferLike, dest_seq_id: int) -> int:
        """`state_seq_set_data_ext` without flags."""
    def state_get_size(self) -> int:
        """Bytes of the whole context's state (``llama_state_get_size``). Releases the GIL."""
    @overload
    def state_get_data(self, out: None = None) -> bytes: ...
    @overload
    def state_get_data(self, out: BufferLike) -> int:
        """The whole context's state, all sequences (``llama_state_get_data``); see `state_seq_get_data_ext`."""
    def state_set_data(self, data: BufferLike) -> int:
        """Restore the whole context (``llama_state_set_data``). A refused state leaves it empty. Releases the GIL."""
    def state_seq_save_file(self, path: StrPath, seq_id: int, tokens: Iterable[int] = ()) -> int:
        """Write a sequence's state and its tokens in llama.cpp's file format ("ggsq").

        The file appears whole or not at all. Returns its size in bytes.
        """
    def state_seq_load_file(self, path: StrPath, dest_seq_id: int) -> list[int]:
        """Restore a sequence from llama.cpp's file format and return the tokens stored with it.

        Raises
        ------
        StateMismatch
            Not such a file, truncated, or of another model or layout. The header is checked before anything is
            touched; after that the destination is empty, and the message says so.
        """
    def state_save_file(self, path: StrPath, tokens: Iterable[int] = ()) -> int:
        """Write the whole context and tokens in llama.cpp's session format ("ggsn"); see `state_seq_save_file`."""
    def state_load_file(self, path: StrPath) -> list[int]:
        """Restore the whole context from llama.cpp's session format and return the tokens stored with it."""
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
    @property
    def adapters_lora(self) -> tuple[tuple[LoraAdapter, float], ...]:
        """The adapters in use, as pairs of `LoraAdapter` and scale."""
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
    def set_sampler(self, seq_id: int, sampler: Sampler | None) -> None:
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
    def sampled_token(self, index: int = -1) -> int | None:
        """The token that the back end picked for one output (``llama_get_sampled_token_ith``), or None.

        `Sampler.sample` returns the same one and accepts it. Raises `NoLogits` for an entry without output.
        """
    def sampled_probs(self, index: int = -1) -> Logits | None:
        """The probabilities of the candidates, if the back end computed them (``llama_get_sampled_probs_ith``).

        Returns
        -------
        Logits or None
            A view as of `Context.logits`, float32, shape (n,), in the order of `sampled_candidates`.
        """
    def sampled_logits(self, index: int = -1) -> Logits | None:
        """The logits of the candidates as the back end left them (``llama_get_sampled_logits_ith``).

        Returns
        -------
        Logits or None
            A view as of `Context.logits`, float32, shape (n,), in the order of `sampled_candidates`.
        """
    def sampled_candidates(self, index: int = -1) -> NDArray[int32] | None:
        """The tokens that were left on the back end (``llama_get_sampled_candidates_ith``).

        Returns
        -------
        ndarray of int32, shape (n,), or None
            An array of its own.
        """
    def __repr__(self) -> str: ...
