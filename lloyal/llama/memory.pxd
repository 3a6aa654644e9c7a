from lloyal.llama.base cimport ContextBase

cdef class Memory:
    cdef ContextBase ctx

    cdef tuple _seq_pos(self, seq_id)

cdef Memory wrap_memory(ContextBase ctx)
