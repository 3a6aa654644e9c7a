// Running a batch: validated before llama.cpp sees it, provenance and the output table kept after.
#pragma once

#include "batch.hpp"
#include "handles.hpp"

namespace lloyal {

Status decode(ContextBox & box, Batch & batch) noexcept;
Status encode(ContextBox & box, Batch & batch) noexcept;

// The logits row of batch index `i` (negative: from the last output), or a Status that says why there is none.
Status logits_row(ContextBox & box, int32_t i, const float *& out) noexcept;
Status embeddings_row(ContextBox & box, int32_t i, const float *& out) noexcept;
Status embeddings_seq(ContextBox & box, SeqId seq, const float *& out) noexcept;

// The index of the largest of `n` floats; the first of equals.
int32_t argmax(const float * row, int32_t n);

} // namespace lloyal
