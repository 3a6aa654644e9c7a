# From a Status of our C++ to a Python exception; the one place where that happens.

cimport lloyal._cpp.core as core

cdef inline int check_process() except -1:
    if core.forked():
        from lloyal.errors import Unsupported

        raise Unsupported("llama.cpp was started before this process was forked, and its threads and devices stayed with "
                          "the parent: start processes with the spawn method, or use lloyal in the child only")
    return 0


cdef inline bint in_main_thread() except -1:
    import threading

    return threading.current_thread() is threading.main_thread()


cdef inline int check(core.Status& status) except -1:
    # Also the one place where llama.cpp's lines are handed on, after an error has taken its reason from them.
    if status.ok():
        if core.log_pending():
            from lloyal.llama.backend import drain_logs

            drain_logs()
        return 0
    if core.exiting() and not in_main_thread():
        raise SystemExit  # a thread that nobody waits for ends without a word
    from lloyal.errors import error_from_code
    from lloyal.llama.backend import drain_logs
    from lloyal.llama.signals import raise_pending

    raise_pending()  # the call stopped for it, or it came just then
    message = status.message.decode("utf-8", "replace")
    log = core.log_last().decode("utf-8", "replace")
    drain_logs()
    raise error_from_code(status.value(), message, status.native, log)
