# cython: language_level=3
"""The memory of a context: what is cached for which sequence, and what can be done to it.

One interface over attention caches, sliding windows, recurrent states and their hybrids. Every operation is checked
before llama.cpp, which aborts on most mistakes, sees it.
"""

cimport cython
from libc.stdint cimport int32_t, uint64_t
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core
cimport lloyal._cpp.memory as cmemory
from lloyal.llama.args cimport as_int32
from lloyal.llama.base cimport ContextBase
from lloyal.llama.status cimport check


__all__ = ["Memory"]

cdef object _KEY = object()  # a bare __new__ would make one that points nowhere


cdef Memory wrap_memory(ContextBase ctx):
    cdef Memory memory = Memory.__new__(Memory, _KEY)
    memory.ctx = ctx
    return memory


@cython.auto_pickle(False)
cdef class Memory:
    """The memory of a context (``llama_memory_t``). Get it from `Context.memory`; it keeps the context alive.

    Positions are ranges ``[p0, p1)``; a negative end is open, as in llama.h. Every method takes the context like
    decode does: a second thread gets `Busy`. Operations release the GIL.
    """

    def __cinit__(self, key=None):
        if key is not _KEY:
            raise TypeError("Memory cannot be made directly: use Context.memory")

    @property
    def kind(self) -> str:
        """What the memory is made of, from its dynamic type.

        ``"attention"``, ``"sliding_window"``, ``"recurrent"``, ``"hybrid"``, ``"hybrid_sliding_window"``,
        ``"sparse_attention"``, ``"compressed"``, ``"hybrid_indexed"``, or ``"none"`` (encoders).
        """
        cdef core.ContextHandle handle = self.ctx.pin()
        return core.memory_kind_name(handle.get().map.kind).decode()

    @property
    def unified(self) -> bool:
        """True if all sequences share one buffer, so that a fork moves no bytes."""
        cdef core.ContextHandle handle = self.ctx.pin()
        return handle.get().map.unified

    @property
    def can_shift(self) -> bool:
        """True if positions can be changed by `seq_add` and `seq_div`."""
        cdef core.ContextHandle handle = self.ctx.pin()
        return cmemory.memory_can_shift(handle.get()[0])

    def can_rollback(self, seq_id: int, n_tokens: int) -> Literal["trim", "ring"] | None:
        """How the last `n_tokens` of a sequence can be taken back right now, with right logits afterwards.

        Returns
        -------
        {"trim", "ring", None}
            "trim": `seq_rm` drops rows. "ring": `seq_rm` goes back in the recurrent rollback ring, once until the next
            decode. None: neither; restore a checkpoint.
        """
        cdef core.ContextHandle handle
        cdef core.Status status
        cdef int32_t seq = as_int32(seq_id, "seq_id")
        cdef int32_t n = as_int32(n_tokens, "n_tokens")
        cdef int how = 0
        handle = self.ctx.pin()
        with nogil:
            status = cmemory.rollback_kind(handle, seq, n, how)
        check(status)
        return (None, "trim", "ring")[how]

    def seq_rm(self, seq_id: int, p0: int = -1, p1: int = -1) -> None:
        """Remove positions [p0, p1) of a sequence (``llama_memory_seq_rm``).

        With -1 of every sequence, or of none if one of them cannot; what checkpoints hold in cells stays.

        Raises
        ------
        Unsupported
            The rest could not be decoded on correctly (recurrent state, window rows gone); nothing was changed.
            llama.cpp accepts some of these and gives wrong logits.
        """
        cdef core.ContextHandle handle
        cdef core.Status status
        cdef int32_t seq = as_int32(seq_id, "seq_id")
        cdef int32_t begin = as_int32(p0, "p0")
        cdef int32_t end = as_int32(p1, "p1")
        handle = self.ctx.pin()
        with nogil:
            status = cmemory.memory_seq_rm(handle, seq, begin, end)
        check(status)

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
        cdef core.ContextHandle handle
        cdef core.Status status
        cdef int32_t src = as_int32(seq_id_src, "seq_id_src")
        cdef int32_t dst = as_int32(seq_id_dst, "seq_id_dst")
        cdef int32_t begin = as_int32(p0, "p0")
        cdef int32_t end = as_int32(p1, "p1")
        handle = self.ctx.pin()
        with nogil:
            status = cmemory.memory_seq_cp(handle, src, dst, begin, end)
        check(status)

    def seq_keep(self, seq_id: int) -> None:
        """Remove every other sequence (``llama_memory_seq_keep``); what checkpoints hold in cells stays."""
        cdef core.ContextHandle handle
        cdef core.Status status
        cdef int32_t seq = as_int32(seq_id, "seq_id")
        handle = self.ctx.pin()
        with nogil:
            status = cmemory.memory_seq_keep(handle, seq)
        check(status)

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
        cdef core.ContextHandle handle
        cdef core.Status status
        cdef int32_t seq = as_int32(seq_id, "seq_id")
        cdef int32_t begin = as_int32(p0, "p0")
        cdef int32_t end = as_int32(p1, "p1")
        cdef int32_t by = as_int32(delta, "delta")
        handle = self.ctx.pin()
        with nogil:
            status = cmemory.memory_seq_add(handle, seq, begin, end, by)
        check(status)

    def seq_div(self, seq_id: int, p0: int, p1: int, d: int) -> None:
        """Divide positions [p0, p1) by `d` (1 or more), at once (``llama_memory_seq_div``). Raises like `seq_add`."""
        cdef core.ContextHandle handle
        cdef core.Status status
        cdef int32_t seq = as_int32(seq_id, "seq_id")
        cdef int32_t begin = as_int32(p0, "p0")
        cdef int32_t end = as_int32(p1, "p1")
        cdef int by = as_int32(d, "d")
        handle = self.ctx.pin()
        with nogil:
            status = cmemory.memory_seq_div(handle, seq, begin, end, by)
        check(status)

    def seq_pos_min(self, seq_id: int) -> int:
        """The smallest cached position of a sequence, -1 if it is empty (of the window layers, where there are any)."""
        return self._seq_pos(seq_id)[0]

    def seq_pos_max(self, seq_id: int) -> int:
        """The largest cached position of a sequence, -1 if it is empty."""
        return self._seq_pos(seq_id)[1]

    cdef tuple _seq_pos(self, seq_id):
        cdef core.ContextHandle handle
        cdef core.Status status
        cdef int32_t seq = as_int32(seq_id, "seq_id")
        cdef int32_t low = -1
        cdef int32_t high = -1
        handle = self.ctx.pin()
        with nogil:
            status = cmemory.memory_seq_pos(handle, seq, low, high)
        check(status)
        return low, high

    def window_begin(self, pos: int) -> int:
        """The first position that a token at `pos` attends to in sliding-window layers; 0 without a window."""
        cdef core.ContextHandle handle = self.ctx.pin()
        return handle.get().map.window_begin(max(0, as_int32(pos, "pos")))

    def clear(self, data: bool = True) -> None:
        """Forget every sequence; with `data` the buffers are zeroed too (``llama_memory_clear``)."""
        cdef core.ContextHandle handle
        cdef core.Status status
        cdef bint zero = data
        handle = self.ctx.pin()
        with nogil:
            status = cmemory.memory_clear(handle, zero)
        check(status)

    def provenance(self, seq_id: int) -> list[tuple[int, int, int, int]]:
        """Which content each row of a sequence holds, as runs ``(begin, end, epoch, first_id)``.

        Row ``p`` of a run has the id ``(epoch, first_id + p - begin)``. Equal ids mean equal content, also across
        sequences and checkpoints.
        """
        cdef core.ContextHandle handle
        cdef core.Status status
        cdef int32_t seq = as_int32(seq_id, "seq_id")
        cdef vector[core.Run] runs
        handle = self.ctx.pin()
        with nogil:
            status = cmemory.known_rows(handle, seq, runs)
        check(status)
        return [(run.begin, run.end, run.epoch, run.first) for run in runs]

    def version(self, seq_id: int) -> int:
        """A number that changes whenever the sequence does; a copy of all of one has the version of its source."""
        cdef core.ContextHandle handle
        cdef core.Status status
        cdef int32_t seq = as_int32(seq_id, "seq_id")
        cdef uint64_t version = 0
        handle = self.ctx.pin()
        with nogil:
            status = cmemory.known_version(handle, seq, version)
        check(status)
        return version

    def __repr__(self):
        return "<Memory, closed>" if self.ctx.closed else f"<Memory {self.kind}>"
