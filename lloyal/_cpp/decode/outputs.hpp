// The outputs of the last batch: finding and reading them. They belong to the context, until its next decode.
#pragma once

#include "core/handles.hpp"
#include "core/status.hpp"
#include "decode/log_probs.hpp"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lloyal {

// Which output batch index `i` has (negative: from the last one back), or a Status that says why there is none; the
// sequence of an output, -1 while no samplers run on the back end.
Status output_index(const ContextBox & box, int32_t i, int32_t & index);
SeqId output_seq(const ContextBox & box, int32_t index);

// The logits of batch index `i` (negative: from the last output), or a Status that says why there is none.
Status find_logits(ContextBox & box, int32_t i, const float *& out) noexcept;
Status find_embedding(ContextBox & box, int32_t i, const float *& out) noexcept;
Status find_pooled(ContextBox & box, SeqId seq, const float *& out) noexcept;
// All at once: `n` of them from `out`.
Status all_logits(ContextBox & box, const float *& out, int32_t & n) noexcept;
Status all_embeddings(ContextBox & box, const float *& out, int32_t & n) noexcept;

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
// All of them, copied.
Status read_all(ContextBox & box, bool embeddings, std::vector<float> & out, int32_t & n_rows) noexcept;

// An output again, refused once it has gone.
Status output_value(ContextBox & box, const Output & output, size_t i, float & out) noexcept;
Status output_argmax(ContextBox & box, const Output & output, int32_t & out) noexcept;
Status output_log_prob(ContextBox & box, const Output & output, size_t i, double & out) noexcept;
Status output_most_probable(ContextBox & box, const Output & output, size_t count, std::vector<LogProb> & out) noexcept;
Status output_stale(ContextBox & box, const Output & output, bool & stale) noexcept;
Status output_copy(ContextBox & box, const Output & output, float * out) noexcept;

// Values in one output: logits, an embedding, a pooled one, the input of a layer.
size_t n_logits(const ContextBox & box);
size_t n_embedding(const ContextBox & box);
size_t n_pooled(const ContextBox & box);
size_t n_layer_input(const ContextBox & box);

} // namespace lloyal
