# Written by tools/stubs.py from context.pyx.
"""Contexts: a model at work, with its memory and its outputs."""

from collections.abc import Mapping
from lloyal.llama.batch import Batch
from lloyal.llama.batch_ext import BatchExt
from lloyal.llama.memory import Memory
from lloyal.llama.model import Model
from lloyal.llama.outputs import Logits
from lloyal.llama.params import ContextParams
from lloyal.llama.sampling_backend import ContextSampling
from lloyal.llama.vocab import Vocab
from numpy import float32
from numpy.typing import NDArray
from typing import Any, Literal, TypeVar, overload
from typing_extensions import Buffer

BufferT = TypeVar("BufferT", bound=Buffer | NDArray[Any])

__all__ = ["Context"]

class Context(ContextSampling):
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
    def __init__(self, model: Model, params: ContextParams | None = None, *, n_ctx: int = ..., n_batch: int = ..., n_ubatch: int = ..., n_seq_max: int = ..., n_rs_seq: int = ..., n_outputs_max: int = ..., n_outputs_max_per_seq: int = ..., samplers: Mapping[int, Any] | None = ..., type_k: str = ..., type_v: str = ..., flash_attn: str | bool = ..., kv_unified: bool = ..., swa_full: bool = ..., n_threads: int | None = ..., n_threads_batch: int | None = ..., embeddings: bool = ..., pooling: str = ..., attention: str = ..., rope_scaling: str = ..., rope_freq_base: float = ..., rope_freq_scale: float = ..., yarn_ext_factor: float = ..., yarn_attn_factor: float = ..., yarn_beta_fast: float = ..., yarn_beta_slow: float = ..., yarn_orig_ctx: int = ..., offload_kqv: bool = ..., op_offload: bool = ..., no_perf: bool = ..., type: str = ..., parent: Any = ...) -> None: ...
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
            `abort()` was called; what was finished stays in the memory, except that the sequences of the batch are
            emptied where there is a recurrent state, which cannot be taken back. A signal handler's exception (Ctrl-C)
            comes out as itself, the same way.
        DecodeFailed
            llama.cpp failed while computing; what stays is as for `Aborted`.

        Notes
        -----
        Invalidates logits and embeddings. Releases the GIL. Ctrl-C stops it between graph nodes (CPU back end).
        """
    def _decode_as_tenant(self, batch: Batch) -> None: ...
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
    def __repr__(self) -> str: ...
