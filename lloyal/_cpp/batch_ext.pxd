# Declarations of batch_ext.hpp, and of what runs such a batch.

from libc.stdint cimport int32_t
from libcpp cimport bool
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core
cimport lloyal.libllama.llama as c

cdef extern from "batch_ext.hpp" namespace "lloyal" nogil:
    cppclass BatchExt:
        BatchExt() except +
        void clear()
        size_t size() const
        int32_t add(c.llama_seq_id seq, c.llama_token token) except +
        void add_seq(size_t i, c.llama_seq_id seq) except +
        bool set_embd(size_t i, const float* row, size_t n) except +
        void set_pos(size_t i, const c.llama_pos* pos, size_t n)
        void set_output(size_t i, bool value)
        c.llama_token token(size_t i) const
        bool has_embd(size_t i) const
        size_t n_pos(size_t i) const
        c.llama_pos pos(size_t i, size_t k) const
        bool output(size_t i) const
        const vector[c.llama_seq_id]& seqs(size_t i) const
        core.Status build(core.Batch& out)

cdef extern from "decode.hpp" namespace "lloyal" nogil:
    core.Status process_decode(core.ContextBox& box, const core.Batch& batch, bool tenant)
    core.Status process_encode(core.ContextBox& box, const core.Batch& batch)
    int32_t process_n_embd(const core.ContextBox& box, bool encoding)
