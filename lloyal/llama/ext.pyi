# Written by tools/stubs.py from ext.pyx.
"""What a context computes besides logits, and where its bytes are."""

from lloyal.llama.buffers import BufferUse
from lloyal.llama.outputs import Logits
from lloyal.llama.state import ContextState
from numpy import float32
from numpy.typing import NDArray
from typing import Any, Literal, TypeVar, overload
from typing_extensions import Buffer

BufferT = TypeVar("BufferT", bound=Buffer | NDArray[Any])

__all__ = ["ContextExt"]

class ContextExt(ContextState):
    """The outputs of a context that are not logits. Not for direct use: see `Context`."""

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
