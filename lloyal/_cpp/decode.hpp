// Running a batch: validated before llama.cpp sees it, provenance and the output table kept after.
#pragma once

#include "batch.hpp"
#include "handles.hpp"

namespace lloyal {

// `tenant`: the caller may write sequences leased from kv.Tenancy.
Status decode(ContextBox & box, Batch & batch, bool tenant = false) noexcept;
Status encode(ContextBox & box, Batch & batch) noexcept;

// The same by way of llama_process and llama_batch_ext.
Status process_decode(ContextBox & box, Batch & batch, bool tenant = false) noexcept;
Status process_encode(ContextBox & box, const Batch & batch) noexcept;
// Values in an embedding row of a batch for this context.
int32_t process_n_embd(const ContextBox & box, bool encoding);

// The output row of batch index `i` (negative: from the last output), or a Status that says why there is none; the
// sequence of a row, -1 while no samplers run on the back end.
Status output_row(const ContextBox & box, int32_t i, int32_t & row);
SeqId output_seq(const ContextBox & box, int32_t row);

// The logits row of batch index `i` (negative: from the last output), or a Status that says why there is none.
Status logits_row(ContextBox & box, int32_t i, const float *& out) noexcept;
Status embeddings_row(ContextBox & box, int32_t i, const float *& out) noexcept;
Status embeddings_seq(ContextBox & box, SeqId seq, const float *& out) noexcept;

// The index of the largest of `n` floats; the first of equals.
int32_t argmax(const float * row, int32_t n);

} // namespace lloyal
