// The outputs of the last batch: which row each is, and reading them. They belong to the context, until its next decode.
#pragma once

#include "core/handles.hpp"
#include "core/status.hpp"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lloyal {

// The output row of batch index `i` (negative: from the last output), or a Status that says why there is none; the
// sequence of a row, -1 while no samplers run on the back end.
Status output_row(const ContextBox & box, int32_t i, int32_t & row);
SeqId output_seq(const ContextBox & box, int32_t row);

// The logits of batch index `i` (negative: from the last output), or a Status that says why there is none.
Status logits_row(ContextBox & box, int32_t i, const float *& out) noexcept;
Status embeddings_row(ContextBox & box, int32_t i, const float *& out) noexcept;
Status embeddings_seq(ContextBox & box, SeqId seq, const float *& out) noexcept;
// All at once: `n` rows from `out`.
Status logits_rows(ContextBox & box, const float *& out, int32_t & n) noexcept;
Status embeddings_rows(ContextBox & box, const float *& out, int32_t & n) noexcept;

// One output, as it was at `generation` of its context.
struct Output {
    const float * data = nullptr;
    size_t n = 0;
    uint64_t generation = 0;
};
// Index `i` or sequence `seq` of the last batch. `out`, unless it is null, takes a copy of at most `room` values.
Status read_logits(ContextBox & box, int32_t i, float * out, size_t room, Output & output) noexcept;
Status read_embedding(ContextBox & box, int32_t i, float * out, size_t room, Output & output) noexcept;
Status read_pooled(ContextBox & box, SeqId seq, float * out, size_t room, Output & output) noexcept;
Status read_nextn(ContextBox & box, int32_t i, float * out, size_t room, Output & output) noexcept;
Status read_layer_input(ContextBox & box, int32_t layer, int32_t i, float * out, size_t room, Output & output) noexcept;
// All rows, copied.
Status read_all(ContextBox & box, bool embeddings, std::vector<float> & out, int32_t & n_rows) noexcept;

// An output again, refused once it has gone.
Status output_value(ContextBox & box, const Output & output, size_t i, float & out) noexcept;
Status output_argmax(ContextBox & box, const Output & output, int32_t & out) noexcept;
Status output_stale(ContextBox & box, const Output & output, bool & stale) noexcept;
Status output_copy(ContextBox & box, const Output & output, float * out) noexcept;

// Values in a row of logits, of embeddings, in a pooled one, and in the input of a layer.
size_t n_logits(const ContextBox & box);
size_t n_embedding(const ContextBox & box);
size_t n_pooled(const ContextBox & box);
size_t n_layer_input(const ContextBox & box);

} // namespace lloyal
