# cython: language_level=3
"""Native calls behind `lloyal.Checkpoint` and `lloyal.Checkpoints`. Not for direct use."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint8_t
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core
cimport lloyal._cpp.state as cstate
cimport lloyal.libllama.ggml as g
from cython.operator cimport dereference, preincrement
from libcpp.map cimport map as cppmap
from lloyal.llama.args cimport as_int32, as_integer
from lloyal.llama.base cimport ContextBase
from lloyal.llama.status cimport check, check_process

from lloyal.errors import Closed

__all__ = [
    "CheckpointBase", "abort_arm", "abort_remaining", "budget", "estimate", "fault_arm", "fault_remaining", "live_bytes", "meta_bytes",
    "pool_idle_bytes", "reserve", "set_budget", "set_reserve", "trim",
]


cdef class CheckpointBase:
    """The handle of a checkpoint. See `lloyal.Checkpoint`."""

    cdef cstate.CheckpointHandle pin(self) except *:
        if not self.handle:
            raise Closed("the checkpoint is released")
        check_process()
        return self.handle

    cdef int _take(self, ContextBase ctx, int seq, cstate.Where where, bint partial) except -1:
        cdef core.ContextHandle context
        cdef cstate.CheckpointHandle handle
        cdef core.Status status
        context = ctx.pin()
        with nogil:
            status = cstate.checkpoint_take(context, seq, where, partial, handle)
        check(status)
        self.handle = handle
        return 0

    def _take_native(self, ContextBase ctx not None, seq_id: int, str where, bint partial) -> None:
        cdef int seq = as_int32(seq_id, "seq_id")
        if where == "device":
            self._take(ctx, seq, cstate.where_device, partial)
        elif where == "host":
            self._take(ctx, seq, cstate.where_host, partial)
        else:
            self._take(ctx, seq, cstate.where_cells, partial)

    def _restore_native(self, ContextBase ctx not None, seq_id: int) -> None:
        cdef core.ContextHandle context
        cdef cstate.CheckpointHandle handle = self.pin()
        cdef core.Status status
        cdef int32_t dest = as_int32(seq_id, "seq_id")
        context = ctx.pin()
        with nogil:
            status = cstate.checkpoint_restore(handle.get()[0], context, dest)
        check(status)

    def _to_host_native(self, CheckpointBase source not None, ContextBase ctx not None) -> None:
        cdef core.ContextHandle context
        cdef cstate.CheckpointHandle handle = source.pin()
        cdef cstate.CheckpointHandle copy
        cdef core.Status status
        context = ctx.pin()
        with nogil:
            status = cstate.checkpoint_to_host(context, handle.get()[0], copy)
        check(status)
        self.handle = copy

    def _export_native(self) -> bytes:
        cdef cstate.CheckpointHandle handle = self.pin()
        cdef core.Status status
        cdef size_t size = 0
        cdef bytes data
        cdef uint8_t* out
        with nogil:
            status = cstate.checkpoint_export_size(handle.get()[0], size)
        check(status)
        data = PyBytes_FromStringAndSize(NULL, size)
        out = <uint8_t*>PyBytes_AS_STRING(data)
        with nogil:
            status = cstate.checkpoint_export(handle.get()[0], out, size)
        check(status)
        return data

    def _import_native(self, ContextBase ctx not None, const uint8_t[::1] data, bint partial, int seq_id,
                       rows: Iterable[tuple[int, int, int, int]], int window_begin, bint known) -> None:
        cdef core.ContextHandle context
        cdef cstate.CheckpointHandle handle
        cdef core.Status status
        cdef vector[core.Run] runs
        cdef core.Run run
        cdef size_t size = data.shape[0]
        cdef const uint8_t* start = NULL
        cdef int32_t seq = as_int32(seq_id, "seq_id")
        cdef int32_t begin = window_begin
        if size:
            start = &data[0]
        for run.begin, run.end, run.epoch, run.first in rows:
            runs.push_back(run)
        context = ctx.pin()
        with nogil:
            status = cstate.checkpoint_import(context, start, size, partial, seq, runs, begin, known, handle)
        check(status)
        self.handle = handle

    def _rows_native(self) -> list[tuple[int, int, int, int]]:
        cdef cstate.CheckpointHandle handle = self.pin()
        cdef vector[core.Run] runs = handle.get().rows.list()
        return [(run.begin, run.end, run.epoch, run.first) for run in runs]

    def _window_begin_native(self) -> int:
        cdef cstate.CheckpointHandle handle = self.pin()
        return handle.get().window_begin

    def _buffers_native(self) -> dict[str, int]:
        cdef cstate.CheckpointHandle handle = self.pin()
        cdef cppmap[g.ggml_backend_buffer_type_t, size_t] sizes
        with nogil:
            sizes = handle.get().buffers()
        return _by_name(sizes)

    def release(self) -> None:
        """Give up the state now; it cannot be restored afterwards. Others that share rows with it are untouched.

        May be called twice and from any thread; collection and leaving a ``with`` block do the same. Releases the GIL.
        """
        cdef cstate.CheckpointHandle handle
        handle.swap(self.handle)
        with nogil:
            handle.reset()

    @property
    def released(self) -> bool:
        return not self.handle

    @property
    def evicted(self) -> bool:
        """True if the budget took it away."""
        cdef cstate.CheckpointHandle handle = self.pin()
        return handle.get().evicted.load()

    @property
    def pinned(self) -> bool:
        """True keeps the budget from evicting it. May be set."""
        cdef cstate.CheckpointHandle handle = self.pin()
        return handle.get().pinned.load()

    @pinned.setter
    def pinned(self, bint value):
        cdef cstate.CheckpointHandle handle = self.pin()
        handle.get().pinned.store(value)

    @property
    def partial(self) -> bool:
        cdef cstate.CheckpointHandle handle = self.pin()
        return handle.get().partial

    @property
    def seq_id(self) -> int:
        """The sequence it was taken from."""
        cdef cstate.CheckpointHandle handle = self.pin()
        return handle.get().seq

    @property
    def pos_min(self) -> int:
        """Position of its first token, -1 if it is empty."""
        cdef cstate.CheckpointHandle handle = self.pin()
        return handle.get().pos_min

    @property
    def pos_max(self) -> int:
        """Position of its last token, -1 if it is empty."""
        cdef cstate.CheckpointHandle handle = self.pin()
        return handle.get().pos_max

    @property
    def nbytes(self) -> int:
        """Bytes of cache content it holds, those it shares with other checkpoints included; 0 with where="cells"."""
        cdef cstate.CheckpointHandle handle = self.pin()
        cdef size_t n
        with nogil:
            n = handle.get().nbytes()
        return n

    @property
    def n_segments(self) -> int:
        """Pieces of shared chunks its rows lie in."""
        cdef cstate.CheckpointHandle handle = self.pin()
        cdef size_t n
        with nogil:
            n = handle.get().n_segments()
        return n

    @property
    def lease(self) -> int | None:
        """The sequence that holds its cells (where="cells"), otherwise None."""
        cdef cstate.CheckpointHandle handle = self.pin()
        return handle.get().lease if handle.get().lease >= 0 else None


cdef dict _by_name(cppmap[g.ggml_backend_buffer_type_t, size_t] sizes):
    cdef cppmap[g.ggml_backend_buffer_type_t, size_t].iterator it = sizes.begin()
    found = {}
    while it != sizes.end():
        if dereference(it).second:
            name = g.ggml_backend_buft_name(dereference(it).first).decode()
            found[name] = found.get(name, 0) + dereference(it).second
        preincrement(it)
    return found


def live_bytes(ContextBase ctx not None) -> dict[str, int]:
    """Bytes that the checkpoints of a context really take, by buffer type; shared rows count once."""
    cdef core.ContextHandle handle = ctx.pin()
    return _by_name(cstate.store_of(handle.get()[0]).pool.get().live_bytes())


def meta_bytes(ContextBase ctx not None) -> int:
    """Host bytes of bookkeeping of a context's checkpoints; what they share counts once."""
    cdef core.ContextHandle handle
    cdef core.Status status
    cdef size_t n = 0
    handle = ctx.pin()
    with nogil:
        status = cstate.store_meta_bytes(handle, n)
    check(status)
    return n


def estimate(ContextBase ctx not None, seq_id: int, bint partial) -> dict[str, Any]:
    """What a checkpoint of a sequence would cost: bytes, rows, cells, and seconds by what earlier ones took."""
    cdef core.ContextHandle handle
    cdef core.Status status
    cdef cstate.Estimate found
    cdef int32_t seq = as_int32(seq_id, "seq_id")
    handle = ctx.pin()
    with nogil:
        status = cstate.checkpoint_estimate(handle, seq, partial, found)
    check(status)
    return found


def pool_idle_bytes(ContextBase ctx not None) -> int:
    """Bytes of freed buffers kept for the next checkpoint."""
    cdef core.ContextHandle handle = ctx.pin()
    return cstate.store_of(handle.get()[0]).pool.get().idle_bytes()


def trim(ContextBase ctx not None) -> None:
    """Give back what no checkpoint needs. Releases the GIL."""
    cdef core.ContextHandle handle
    cdef core.Status status
    handle = ctx.pin()
    with nogil:
        status = cstate.checkpoint_trim(handle)
    check(status)


def set_budget(ContextBase ctx not None, budget: int | None, bint evict) -> None:
    """Limit the bytes of a context's checkpoints (None: no limit), refusing or evicting beyond it."""
    cdef core.ContextHandle handle
    cdef core.Status status
    cdef int64_t limit = -1 if budget is None else as_integer(budget, "budget", 0, INT64_MAX)
    handle = ctx.pin()
    status = cstate.store_set_budget(handle, limit, evict)
    check(status)


def budget(ContextBase ctx not None) -> tuple[int | None, bool]:
    """``(bytes or None, evict)``."""
    cdef core.ContextHandle handle = ctx.pin()
    cdef int64_t n = cstate.store_of(handle.get()[0]).budget_bytes
    return None if n < 0 else n, cstate.store_of(handle.get()[0]).evict


def set_reserve(ContextBase ctx not None, reserve: int | None) -> None:
    """Bytes of every device that checkpoints leave to the computation; None: the default."""
    cdef core.ContextHandle handle
    cdef int64_t limit = -1 if reserve is None else as_integer(reserve, "reserve", 0, INT64_MAX)
    handle = ctx.pin()
    cstate.store_of(handle.get()[0]).pool.get().set_reserve(limit)


def reserve(ContextBase ctx not None) -> int | None:
    """What `set_reserve` set."""
    cdef core.ContextHandle handle = ctx.pin()
    cdef int64_t n = cstate.store_of(handle.get()[0]).pool.get().reserve()
    return None if n < 0 else n


def fault_arm(int64_t n) -> None:
    """For tests: the n-th allocation or device copy from now fails (0: the next; negative: none)."""
    core.fault_arm(n)


def fault_remaining() -> int:
    """For tests: what is left of `fault_arm`'s count; negative after it fired or when unarmed."""
    return core.fault_remaining()


def abort_arm(int64_t n) -> None:
    """For tests: the n-th question of llama.cpp whether to stop, from now, gets a yes (0: the next; negative: none)."""
    core.abort_arm(n)


def abort_remaining() -> int:
    """For tests: what is left of `abort_arm`'s count; negative after it fired or when unarmed."""
    return core.abort_remaining()
