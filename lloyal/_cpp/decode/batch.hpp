// A growable batch in llama_batch's layout. It owns every array, so there is no capacity to overrun. Every entry holds a
// token, a row of an embedding, or both (`has_token`, `has_embd`); all entries the same.
#pragma once

#include "core/status.hpp"

#include "llama.h"

#include <array>
#include <cstdint>
#include <vector>

namespace lloyal {

// One entry, copied.
struct BatchEntry {
    bool has_token = false;
    llama_token token = 0;
    llama_pos pos = 0;
    std::vector<llama_seq_id> seqs;
    bool logits = false;
};

class Batch {
  public:
    void clear();
    void reserve(size_t n) {
        token_.reserve(n);
        pos_.reserve(n);
        n_seq_.reserve(n);
        seq_.reserve(n);
        logits_.reserve(n);
    }
    void add(llama_token token, llama_pos pos, const llama_seq_id * seqs, int32_t n_seqs, bool logits);
    // `n` tokens of one sequence at consecutive positions from `pos0`.
    void extend(const llama_token * tokens, size_t n, llama_pos pos0, llama_seq_id seq, bool logits_all,
                bool logits_last);
    // Rows of `n_embd` floats instead of tokens.
    void extend_embd(const float * rows, size_t n, int32_t n_embd, llama_pos pos0, llama_seq_id seq, bool logits_all,
                     bool logits_last);
    // One entry with a row, and a token unless it is LLAMA_TOKEN_NULL. `sections` are the positions of a row without a
    // token in models that use four.
    void add_row(llama_token token, const float * row, int32_t n_embd, const std::array<llama_pos, 4> & sections,
                 const llama_seq_id * seqs, int32_t n_seqs, bool logits);
    void set_logits(size_t i, bool value) { logits_[i] = value; }

    size_t size() const { return pos_.size(); }
    bool has_token() const { return !token_.empty(); }
    bool has_embd() const { return n_embd_ > 0; }
    int32_t n_embd() const { return n_embd_; }
    llama_token token(size_t i) const { return token_[i]; }
    llama_pos pos(size_t i) const { return pos_[i]; }
    bool logits(size_t i) const { return logits_[i] != 0; }
    int32_t n_seq(size_t i) const { return n_seq_[i]; }
    llama_seq_id seq(size_t i, size_t k) const { return seq_[seq_begin_[i] + k]; }
    BatchEntry entry(size_t i) const; // throws std::out_of_range

    const float * embd(size_t i) const { return embd_.data() + i * size_t(n_embd_); }
    // The positions of a row without a token, for models that use four (M-RoPE); text repeats its one.
    std::array<llama_pos, 4> sections(size_t i) const;

    // Pointers into this batch, valid until it changes. `n_pos`: positions that the model takes for a row without a
    // token, 1 or 4.
    llama_batch view(uint32_t n_pos);

  private:
    void add_entry(llama_pos pos, const llama_seq_id * seqs, int32_t n_seqs, bool logits);

    std::vector<llama_token> token_;
    std::vector<float> embd_;
    std::vector<llama_pos> pos_;
    std::vector<std::array<llama_pos, 4>> sections_; // empty, or one per entry
    std::vector<llama_pos> section_pos_;             // of the view: all first positions, then all second ones, ...
    std::vector<int32_t> n_seq_;
    std::vector<size_t> seq_begin_;
    std::vector<llama_seq_id> seq_;
    std::vector<int8_t> logits_;
    std::vector<llama_seq_id *> seq_ptr_;
    int32_t n_embd_ = 0;
};

} // namespace lloyal
