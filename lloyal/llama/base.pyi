# Written by tools/stubs.py from base.pyx.
"""What the classes of handles stand on: closing them, and the handle of a context."""

from typing import Self

__all__ = ["Closing", "ContextBase"]

class Closing:
    """What a ``with`` block closes at its end."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc_info: object) -> None: ...

class ContextBase(Closing):
    """The handle of a context. Not for direct use: see `Context`."""

    def close(self) -> None:
        """Drop this object's hold on the context; a call that runs in another thread finishes first.

        What keeps the context alive (a running call, a checkpoint) keeps it until it is done. May be called twice and
        from any thread. Releases the GIL.
        """
    @property
    def closed(self) -> bool: ...
