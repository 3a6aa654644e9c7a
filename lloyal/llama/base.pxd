cimport lloyal._cpp.core as core

cdef class ContextBase:
    cdef core.ContextHandle handle
    cdef object __weakref__

    cdef core.ContextHandle pin(self) except *

# Pin the context and become its one caller; `leave` must follow. Raises Closed or Busy.
cdef int enter(ContextBase ctx, core.ContextHandle& handle) except -1
cdef void leave(core.ContextHandle& handle) noexcept nogil
