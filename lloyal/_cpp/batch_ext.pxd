# Declarations of batch_ext.hpp, and of what runs such a batch.

from libc.stdint cimport int32_t
from libcpp cimport bool
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core
cimport lloyal.libllama.llama as c

cdef extern from "batch_ext.hpp" namespace "lloyal" nogil:
    cppclass BatchExtEntry "lloyal::BatchExt::Entry":
        c.llama_token token
        vector[c.llama_seq_id] seqs
        c.llama_pos pos[4]
        size_t n_pos
        bool output
    cppclass BatchExt:
        BatchExt() except +
        void clear()
        size_t size() const
        void limit(size_t n_max, int32_t n_seq_max, size_t n_sections)
        core.Status add(c.llama_seq_id seq, c.llama_token token, const float* row, size_t n, int32_t& index)
        core.Status add_seq(int32_t i, c.llama_seq_id seq)
        core.Status set_embd(int32_t i, const float* row, size_t n)
        core.Status set_pos(int32_t i, const vector[c.llama_pos]& pos)
        core.Status set_output(int32_t i, bool value)
        core.Status entry(int32_t i, BatchExtEntry& out)
        core.Status build(core.Batch& out)

cdef extern from "decode.hpp" namespace "lloyal" nogil:
    core.Status process_decode "lloyal::computing<lloyal::process_decode>"(
        const core.ContextHandle& ctx, const core.Batch& batch, bool tenant)
    core.Status process_encode "lloyal::computing<lloyal::process_encode>"(
        const core.ContextHandle& ctx, const core.Batch& batch)
    int32_t process_n_embd(const core.ContextBox& box, bool encoding)
