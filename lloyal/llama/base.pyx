# cython: language_level=3
"""What the classes of handles stand on: closing them, and the handle of a context."""

cimport lloyal._cpp.core as core
from lloyal.llama.status cimport check_process

from lloyal.errors import Closed

__all__ = ["Closing", "ContextBase"]


cdef class Closing:
    """What a ``with`` block closes at its end."""

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


cdef class ContextBase(Closing):
    """The handle of a context. Not for direct use: see `Context`."""

    cdef core.ContextHandle pin(self) except *:
        if not self.handle:
            raise Closed("the context is closed")
        check_process()
        return self.handle

    def close(self) -> None:
        """Drop this object's hold on the context; a call that runs in another thread finishes first.

        What keeps the context alive (a running call, a checkpoint) keeps it until it is done. May be called twice and
        from any thread. Releases the GIL.
        """
        cdef core.ContextHandle handle
        handle.swap(self.handle)
        with nogil:
            handle.reset()

    @property
    def closed(self) -> bool:
        return not self.handle
