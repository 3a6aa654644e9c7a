# Written by tools/stubs.py from memory.pyx.
"""The memory of a context: what is cached for which sequence, and what can be done to it.

One interface over attention caches, sliding windows, recurrent states and their hybrids. Every operation is checked
before llama.cpp, which aborts on most mistakes, sees it.
"""

from typing import Literal

__all__ = ["Memory"]

class Memory:
    """The memory of a context (``llama_memory_t``). Get it from `Context.memory`; it keeps the context alive.

    Positions are ranges ``[p0, p1)``; a negative end is open, as in llama.h. Every method takes the context like
    decode does: a second thread gets `Busy`. Operations release the GIL.
    """

    @property
    def kind(self) -> str:
        """What the memory is made of, from its dynamic type.

        ``"attention"``, ``"sliding_window"``, ``"recurrent"``, ``"hybrid"``, ``"hybrid_sliding_window"``,
        ``"sparse_attention"``, ``"compressed"``, ``"hybrid_indexed"``, or ``"none"`` (encoders).
        """
    @property
    def unified(self) -> bool:
        """True if all sequences share one buffer, so that a fork moves no bytes."""
    @property
    def can_shift(self) -> bool:
        """True if positions can be changed by `seq_add` and `seq_div`."""
    def can_rollback(self, seq_id: int, n_tokens: int) -> Literal["trim", "ring"] | None:
        """How the last `n_tokens` of a sequence can be taken back right now, with right logits afterwards.

        Returns
        -------
        {"trim", "ring", None}
            "trim": `seq_rm` drops rows. "ring": `seq_rm` goes back in the recurrent rollback ring, once until the next
            decode. None: neither; restore a checkpoint.
        """
    def seq_rm(self, seq_id: int, p0: int = -1, p1: int = -1) -> None:
        """Remove positions [p0, p1) of a sequence (``llama_memory_seq_rm``).

        With -1 of every sequence, or of none if one of them cannot; what checkpoints hold in cells stays.

        Raises
        ------
        Unsupported
            The rest could not be decoded on correctly (recurrent state, window rows gone); nothing was changed.
            llama.cpp accepts some of these and gives wrong logits.
        """
    def seq_cp(self, seq_id_src: int, seq_id_dst: int, p0: int = -1, p1: int = -1) -> None:
        """Copy positions [p0, p1) to another sequence (``llama_memory_seq_cp``): what it does not hold yet.

        On a unified attention cache both share the cells and no bytes move; recurrent states are copied when one of
        them next decodes; with kv_unified=False the rows are copied at once.

        Raises
        ------
        InvalidArgument
            The destination holds other rows in that range; where a copy replaces all it holds (recurrent states,
            kv_unified=False), any that the source has not. Nothing was changed.
        Unsupported
            Part of a recurrent state, or of a sequence with kv_unified=False; rows whose sliding window the source has
            passed and lost. Nothing was changed.
        """
    def seq_keep(self, seq_id: int) -> None:
        """Remove every other sequence (``llama_memory_seq_keep``); what checkpoints hold in cells stays."""
    def seq_add(self, seq_id: int, p0: int, p1: int, delta: int) -> None:
        """Add `delta` to positions [p0, p1) and rotate their keys, at once (``llama_memory_seq_add``).

        Raises
        ------
        Unsupported
            `can_shift` is False, another sequence shares the rows (their positions would change too), or rows would
            come back into a sliding window that has lost them.
        InvalidArgument
            Positions would collide or become negative.
        """
    def seq_div(self, seq_id: int, p0: int, p1: int, d: int) -> None:
        """Divide positions [p0, p1) by `d` (1 or more), at once (``llama_memory_seq_div``). Raises like `seq_add`."""
    def seq_pos_min(self, seq_id: int) -> int:
        """The smallest cached position of a sequence, -1 if it is empty (of the window layers, where there are any)."""
    def seq_pos_max(self, seq_id: int) -> int:
        """The largest cached position of a sequence, -1 if it is empty."""
    def window_begin(self, pos: int) -> int:
        """The first position that a token at `pos` attends to in sliding-window layers; 0 without a window."""
    def clear(self, data: bool = True) -> None:
        """Forget every sequence; with `data` the buffers are zeroed too (``llama_memory_clear``)."""
    def provenance(self, seq_id: int) -> list[tuple[int, int, int, int]]:
        """Which content each row of a sequence holds, as runs ``(begin, end, epoch, first_id)``.

        Row ``p`` of a run has the id ``(epoch, first_id + p - begin)``. Equal ids mean equal content, also across
        sequences and checkpoints.
        """
    def version(self, seq_id: int) -> int:
        """A number that changes whenever the sequence does; a copy of all of one has the version of its source."""
    def __repr__(self) -> str: ...
