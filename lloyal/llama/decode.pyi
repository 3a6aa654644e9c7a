# Written by tools/stubs.py from decode.pyx.
"""Computing a batch. `Context` has these as methods."""

__all__ = []
