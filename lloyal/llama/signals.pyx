# cython: language_level=3
"""Python's signal handlers, run while a native call holds the main thread."""

from cpython.exc cimport PyErr_CheckSignals
from libcpp cimport bool as cbool

cimport lloyal._cpp.core as core

import threading

__all__ = ["raise_pending"]

cdef extern from "pythread.h" nogil:
    unsigned long PyThread_get_thread_ident()

# What a signal handler raised while a native call ran on the main thread; raised again when the call has stopped.
cdef object _signal_error = None
cdef unsigned long _main_thread = threading.main_thread().ident


cdef cbool poll_signals() noexcept nogil:
    # On the thread that made the call; only the main thread runs Python's signal handlers, others need not wait.
    if PyThread_get_thread_ident() != _main_thread:
        return False
    with gil:
        return _run_signal_handlers()


cdef cbool _run_signal_handlers() noexcept:
    global _signal_error
    try:
        PyErr_CheckSignals()
    except BaseException as error:
        _signal_error = error
        return True
    return False


cdef int raise_signal() except -1:
    global _signal_error
    if _signal_error is not None and PyThread_get_thread_ident() == _main_thread:
        error, _signal_error = _signal_error, None
        raise error
    return 0


def raise_pending() -> None:
    """Raise what a signal handler raised during the native call that has just stopped."""
    raise_signal()


core.budget_on_poll(poll_signals)
