# cython: language_level=3
"""llama.cpp's own state calls on a context, same names and argument order, guarded. `Context` has them as methods.

A state holds the memory of a sequence or of the whole context: no logits, no sampler, no tokens, no model identity.
`Context.checkpoint` is the safe value on top of the same mechanism.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, uint8_t, uint32_t

cimport lloyal._cpp.core as core
cimport lloyal._cpp.state as cstate
cimport lloyal.libllama.llama as c
from lloyal.llama.args cimport as_int32, as_uint32
from lloyal.llama.base cimport ContextBase
from lloyal.llama.status cimport check

import mmap
import os
import struct

from lloyal.errors import InvalidArgument, StateMismatch
from lloyal.llama.buffers import readable, writable
from lloyal.llama.files import whole_file

__all__ = [
    "state_get_data", "state_get_size", "state_load_file", "state_save_file", "state_seq_get_data_ext", "state_seq_get_size_ext", "state_seq_load_file", "state_seq_save_file", "state_seq_set_data_ext", "state_set_data",
]


def state_seq_get_size_ext(ContextBase ctx not None, seq_id: int, flags: int) -> int:
    """`Context.state_seq_get_size_ext`."""
    cdef core.ContextHandle handle
    cdef core.Status status
    cdef size_t size = 0
    cdef int32_t seq = as_int32(seq_id, "seq_id")
    cdef uint32_t bits = as_uint32(flags, "flags")
    cdef size_t written = 0
    handle = ctx.pin()
    with nogil:
        status = cstate.state_seq_write(handle, NULL, 0, seq, bits, size, written)
    check(status)
    return size


def state_seq_get_data_ext(ContextBase ctx not None, seq_id: int, flags: int, out: BufferLike | None) -> bytes | int:
    """`Context.state_seq_get_data_ext`."""
    cdef core.ContextHandle handle
    cdef core.Status status
    cdef size_t written = 0
    cdef int32_t seq = as_int32(seq_id, "seq_id")
    cdef uint32_t bits = as_uint32(flags, "flags")
    cdef size_t need = 0
    cdef StateTarget target = StateTarget(out)
    handle = ctx.pin()
    while True:
        with nogil:
            status = cstate.state_seq_write(handle, target.start, target.size, seq, bits, need, written)
        check(status)
        if not target.grow(need):
            return target.result(written)


def state_seq_set_data_ext(ContextBase ctx not None, data: BufferLike, dest_seq_id: int, flags: int) -> int:
    """`Context.state_seq_set_data_ext`."""
    cdef core.ContextHandle handle
    cdef core.Status status
    cdef size_t read = 0
    cdef int32_t seq = as_int32(dest_seq_id, "dest_seq_id")
    cdef uint32_t bits = as_uint32(flags, "flags")
    cdef const uint8_t[::1] source = readable(data, "data")
    cdef size_t size = source.shape[0]
    cdef const uint8_t* start = &source[0] if size else NULL
    handle = ctx.pin()
    with nogil:
        status = cstate.state_seq_set_data(handle, start, size, seq, bits, read)
    check(status)
    return read


def state_get_size(ContextBase ctx not None) -> int:
    """`Context.state_get_size`."""
    cdef core.ContextHandle handle
    cdef core.Status status
    cdef size_t size = 0
    cdef size_t written = 0
    handle = ctx.pin()
    with nogil:
        status = cstate.state_write(handle, NULL, 0, size, written)
    check(status)
    return size


def state_get_data(ContextBase ctx not None, out: BufferLike | None) -> bytes | int:
    """`Context.state_get_data`."""
    cdef core.ContextHandle handle
    cdef core.Status status
    cdef size_t written = 0
    cdef size_t need = 0
    cdef StateTarget target = StateTarget(out)
    handle = ctx.pin()
    while True:
        with nogil:
            status = cstate.state_write(handle, target.start, target.size, need, written)
        check(status)
        if not target.grow(need):
            return target.result(written)


def state_set_data(ContextBase ctx not None, data: BufferLike) -> int:
    """`Context.state_set_data`."""
    return _set_whole(ctx, data, False)


cdef size_t _set_whole(ContextBase ctx, data, bint exact) except? 0:
    cdef core.ContextHandle handle
    cdef core.Status status
    cdef size_t read = 0
    cdef const uint8_t[::1] source = readable(data, "data")
    cdef size_t size = source.shape[0]
    cdef const uint8_t* start = &source[0] if size else NULL
    handle = ctx.pin()
    with nogil:
        status = cstate.state_set_data(handle, start, size, exact, read)
    check(status)
    return read


def state_seq_save_file(ContextBase ctx not None, path: StrPath, seq_id: int, tokens: Iterable[int]) -> int:
    """`Context.state_seq_save_file`."""
    state = state_seq_get_data_ext(ctx, seq_id, 0, None)
    header = _file_header(c.LLAMA_STATE_SEQ_MAGIC, c.LLAMA_STATE_SEQ_VERSION, tokens)
    # The file leaves out the magic and sequence id that a state in memory starts with.
    return _write_whole(path, header, memoryview(state)[8:])


def state_seq_load_file(ContextBase ctx not None, path: StrPath, dest_seq_id: int) -> list[int]:
    """`Context.state_seq_load_file`."""
    cdef core.ContextHandle handle
    cdef core.Status status
    cdef int32_t seq = as_int32(dest_seq_id, "dest_seq_id")
    cdef const uint8_t[::1] source
    cdef const uint8_t* start
    cdef size_t size
    with _MappedFile(path) as file:
        tokens, offset = _read_header(path, file, c.LLAMA_STATE_SEQ_MAGIC, c.LLAMA_STATE_SEQ_VERSION)
        handle = ctx.pin()
        source = file
        size = source.shape[0] - offset
        start = &source[0] + <size_t>offset
        with nogil:
            status = cstate.state_seq_read_payload(handle, start, size, seq)
        source = None
        _check_file(status, path)
    return tokens


def state_save_file(ContextBase ctx not None, path: StrPath, tokens: Iterable[int]) -> int:
    """`Context.state_save_file`."""
    state = state_get_data(ctx, None)
    return _write_whole(path, _file_header(c.LLAMA_SESSION_MAGIC, c.LLAMA_SESSION_VERSION, tokens), state)


def state_load_file(ContextBase ctx not None, path: StrPath) -> list[int]:
    """`Context.state_load_file`."""
    with _MappedFile(path) as file:
        tokens, offset = _read_header(path, file, c.LLAMA_SESSION_MAGIC, c.LLAMA_SESSION_VERSION)
        with memoryview(file) as view, view[offset:] as state:
            try:
                _set_whole(ctx, state, True)
            except StateMismatch as error:
                raise StateMismatch(f"{path}: {error}") from None
    return tokens


cdef class StateTarget:
    # Where a state is written: a buffer of the caller's, or bytes that grow until it fits.
    cdef uint8_t* start
    cdef size_t size
    cdef bytes data
    cdef bint given
    cdef uint8_t[::1] view

    def __init__(self, out):
        self.given = out is not None
        if self.given:
            self.view = writable(out, "out")
            self.size = self.view.shape[0]
            self.start = &self.view[0] if self.size else NULL

    cdef bint grow(self, size_t need) except -1:
        # True if there is more room now: the context may have changed since it was asked.
        if need <= self.size:
            return False
        if self.given:
            raise InvalidArgument(f"out has {self.size} bytes, the state takes {need}")
        self.data = PyBytes_FromStringAndSize(NULL, need)
        self.start = <uint8_t*>PyBytes_AS_STRING(self.data)
        self.size = need
        return True

    cdef object result(self, size_t written):
        if self.given:
            return written
        return self.data if written == self.size else self.data[:written]


cdef int _check_file(core.Status& status, path) except -1:
    try:
        check(status)
    except StateMismatch as error:
        raise StateMismatch(f"{path}: {error}") from None
    return 0


def _file_header(magic, version, tokens) -> bytes:
    from array import array

    try:
        ids = array("i", tokens)
    except OverflowError as error:
        raise InvalidArgument(f"tokens: {error}") from None
    return struct.pack("<III", magic, version, len(ids)) + ids.tobytes()


def _read_header(path, file, magic, version):
    from array import array

    if len(file) < 12:
        raise StateMismatch(f"{path}: {len(file)} bytes are too few for a state file")
    found_magic, found_version, n_tokens = struct.unpack_from("<III", file)
    if (found_magic, found_version) != (magic, version):
        raise StateMismatch(f"{path}: magic {found_magic:#x} version {found_version}, expected {magic:#x} version {version}")
    end = 12 + 4 * n_tokens
    if end > len(file):
        raise StateMismatch(f"{path}: it names {n_tokens} tokens and ends before them")
    ids = array("i")
    ids.frombytes(file[12:end])
    return ids.tolist(), end


def _write_whole(path, *parts) -> int:
    with whole_file(path) as name, open(name, "wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


class _MappedFile:
    """A file mapped for reading; an empty one gives empty bytes."""

    def __init__(self, path):
        self.path = os.fsdecode(path)  # a number would be taken for an open file, and closed

    def __enter__(self):
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        return self.map

    def __exit__(self, *exc_info):
        if self.map:
            self.map.close()
