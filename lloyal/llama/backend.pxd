cimport lloyal.libllama.ggml as g

cpdef int ensure_started() except -1
cpdef drain_logs()

cdef class Device:
    cdef g.ggml_backend_dev_t ptr

cdef Device wrap_device(g.ggml_backend_dev_t ptr)
