# Written by tools/stubs.py from signals.pyx.
"""Python's signal handlers, run while a native call holds the main thread."""

__all__ = ["raise_pending"]

def raise_pending() -> None:
    """Raise what a signal handler raised during the native call that has just stopped."""
