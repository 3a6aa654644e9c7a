cimport lloyal._cpp.core as core
cimport lloyal.libllama.llama as c

cdef class Vocab:
    cdef core.ModelHandle handle
    cdef const c.llama_vocab* ptr
    cdef readonly int n_tokens

    cdef int check_token(self, object token) except -1
    cdef int check_type(self) except -1

cdef Vocab wrap_vocab(core.ModelHandle handle)
