# cython: language_level=3
"""llama.cpp's own state calls as methods of a context, same names and argument order, guarded.

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

__all__ = ["ContextState"]


cdef class ContextState(ContextBase):
    """The state calls of a context. Not for direct use: see `Context`."""

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
        cdef core.ContextHandle handle
        cdef core.Status status
        cdef size_t size = 0
        cdef int32_t seq = as_int32(seq_id, "seq_id")
        cdef uint32_t bits = as_uint32(flags, "flags")
        cdef size_t written = 0
        handle = self.pin()
        with nogil:
            status = cstate.state_seq_write(handle, NULL, 0, seq, bits, size, written)
        check(status)
        return size

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
        cdef core.ContextHandle handle
        cdef core.Status status
        cdef size_t written = 0
        cdef int32_t seq = as_int32(seq_id, "seq_id")
        cdef uint32_t bits = as_uint32(flags, "flags")
        cdef size_t need = 0
        cdef StateTarget target = StateTarget(out)
        handle = self.pin()
        while True:
            with nogil:
                status = cstate.state_seq_write(handle, target.start, target.size, seq, bits, need, written)
            check(status)
            if not target.grow(need):
                return target.result(written)

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
        cdef core.ContextHandle handle
        cdef core.Status status
        cdef size_t read = 0
        cdef int32_t seq = as_int32(dest_seq_id, "dest_seq_id")
        cdef uint32_t bits = as_uint32(flags, "flags")
        cdef const uint8_t[::1] source = readable(data, "data")
        cdef size_t size = source.shape[0]
        cdef const uint8_t* start = &source[0] if size else NULL
        handle = self.pin()
        with nogil:
            status = cstate.state_seq_set_data(handle, start, size, seq, bits, read)
        check(status)
        return read

    def state_seq_get_size(self, seq_id: int) -> int:
        """`state_seq_get_size_ext` without flags."""
        return self.state_seq_get_size_ext(seq_id, 0)

    # @overload (self, seq_id: int, out: None = None) -> bytes
    # @overload (self, seq_id: int, out: BufferLike) -> int
    def state_seq_get_data(self, seq_id: int, out: BufferLike | None = None):
        """`state_seq_get_data_ext` without flags."""
        return self.state_seq_get_data_ext(seq_id, 0, out)

    def state_seq_set_data(self, data: BufferLike, dest_seq_id: int) -> int:
        """`state_seq_set_data_ext` without flags."""
        return self.state_seq_set_data_ext(data, dest_seq_id, 0)

    def state_get_size(self) -> int:
        """Bytes of the whole context's state (``llama_state_get_size``). Releases the GIL."""
        cdef core.ContextHandle handle
        cdef core.Status status
        cdef size_t size = 0
        cdef size_t written = 0
        handle = self.pin()
        with nogil:
            status = cstate.state_write(handle, NULL, 0, size, written)
        check(status)
        return size

    # @overload (self, out: None = None) -> bytes
    # @overload (self, out: BufferLike) -> int
    def state_get_data(self, out: BufferLike | None = None):
        """The whole context's state, all sequences (``llama_state_get_data``); see `state_seq_get_data_ext`."""
        cdef core.ContextHandle handle
        cdef core.Status status
        cdef size_t written = 0
        cdef size_t need = 0
        cdef StateTarget target = StateTarget(out)
        handle = self.pin()
        while True:
            with nogil:
                status = cstate.state_write(handle, target.start, target.size, need, written)
            check(status)
            if not target.grow(need):
                return target.result(written)

    def state_set_data(self, data: BufferLike) -> int:
        """Restore the whole context (``llama_state_set_data``). A refused state leaves it empty. Releases the GIL."""
        return self._set_whole(data, False)

    cdef size_t _set_whole(self, data, bint exact) except? 0:
        cdef core.ContextHandle handle
        cdef core.Status status
        cdef size_t read = 0
        cdef const uint8_t[::1] source = readable(data, "data")
        cdef size_t size = source.shape[0]
        cdef const uint8_t* start = &source[0] if size else NULL
        handle = self.pin()
        with nogil:
            status = cstate.state_set_data(handle, start, size, exact, read)
        check(status)
        return read

    def state_seq_save_file(self, path: StrPath, seq_id: int, tokens: Iterable[int] = ()) -> int:
        """Write a sequence's state and its tokens in llama.cpp's file format ("ggsq").

        The file appears whole or not at all. Returns its size in bytes.
        """
        state = self.state_seq_get_data_ext(seq_id, 0)
        header = _file_header(c.LLAMA_STATE_SEQ_MAGIC, c.LLAMA_STATE_SEQ_VERSION, tokens)
        # The file leaves out the magic and sequence id that a state in memory starts with.
        return _write_whole(path, header, memoryview(state)[8:])

    def state_seq_load_file(self, path: StrPath, dest_seq_id: int) -> list[int]:
        """Restore a sequence from llama.cpp's file format and return the tokens stored with it.

        Raises
        ------
        StateMismatch
            Not such a file, truncated, or of another model or layout. The header is checked before anything is
            touched; after that the destination is empty, and the message says so.
        """
        cdef core.ContextHandle handle
        cdef core.Status status
        cdef int32_t seq = as_int32(dest_seq_id, "dest_seq_id")
        cdef const uint8_t[::1] source
        cdef const uint8_t* start
        cdef size_t size
        with _MappedFile(path) as file:
            tokens, offset = _read_header(path, file, c.LLAMA_STATE_SEQ_MAGIC, c.LLAMA_STATE_SEQ_VERSION)
            handle = self.pin()
            source = file
            size = source.shape[0] - offset
            start = &source[0] + <size_t>offset
            with nogil:
                status = cstate.state_seq_read_payload(handle, start, size, seq)
            source = None
            _check_file(status, path)
        return tokens

    def state_save_file(self, path: StrPath, tokens: Iterable[int] = ()) -> int:
        """Write the whole context and tokens in llama.cpp's session format ("ggsn"); see `state_seq_save_file`."""
        state = self.state_get_data()
        return _write_whole(path, _file_header(c.LLAMA_SESSION_MAGIC, c.LLAMA_SESSION_VERSION, tokens), state)

    def state_load_file(self, path: StrPath) -> list[int]:
        """Restore the whole context from llama.cpp's session format and return the tokens stored with it."""
        with _MappedFile(path) as file:
            tokens, offset = _read_header(path, file, c.LLAMA_SESSION_MAGIC, c.LLAMA_SESSION_VERSION)
            with memoryview(file) as view, view[offset:] as state:
                try:
                    self._set_whole(state, True)
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
