from libcpp cimport bool as cbool

# On any thread: true if a signal handler raised, on the main thread, which is then what `raise_signal` raises there.
cdef cbool poll_signals() noexcept nogil
cdef int raise_signal() except -1
