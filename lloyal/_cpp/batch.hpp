// A growable batch in llama_batch's layout. It owns every array, so there is no capacity to overrun.
#pragma once

#include "status.hpp"

#include "llama.h"

#include <cstdint>
#include <vector>

namespace lloyal {

class Batch {
  public:
    void clear();
    void reserve(size_t n) { token_.reserve(n); pos_.reserve(n); n_seq_.reserve(n); seq_.reserve(n); logits_.reserve(n); }
    void add(llama_token token, llama_pos pos, const llama_seq_id * seqs, int32_t n_seqs, bool logits);
    // `n` tokens of one sequence at consecutive positions from `pos0`.
    void extend(const llama_token * tokens, size_t n, llama_pos pos0, llama_seq_id seq, bool logits_all, bool logits_last);
    // Rows of `n_embd` floats instead of tokens; a batch holds one or the other.
    void extend_embd(const float * rows, size_t n, int32_t n_embd, llama_pos pos0, llama_seq_id seq, bool logits_all,
                     bool logits_last);
    void set_logits(size_t i, bool value) { logits_[i] = value; }

    size_t size() const { return pos_.size(); }
    bool   has_embd() const { return n_embd_ > 0; }
    int32_t n_embd() const { return n_embd_; }
    llama_token  token(size_t i) const { return token_[i]; }
    llama_pos    pos(size_t i) const { return pos_[i]; }
    bool         logits(size_t i) const { return logits_[i] != 0; }
    int32_t      n_seq(size_t i) const { return n_seq_[i]; }
    llama_seq_id seq(size_t i, size_t k) const { return seq_[seq_begin_[i] + k]; }
    bool         wants_output() const;

    // Pointers into this batch, valid until it changes.
    llama_batch view();

  private:
    void add_row(llama_pos pos, const llama_seq_id * seqs, int32_t n_seqs, bool logits);

    std::vector<llama_token>    token_;
    std::vector<float>          embd_;
    std::vector<llama_pos>      pos_;
    std::vector<int32_t>        n_seq_;
    std::vector<size_t>         seq_begin_;
    std::vector<llama_seq_id>   seq_;
    std::vector<int8_t>         logits_;
    std::vector<llama_seq_id *> seq_ptr_;
    int32_t                     n_embd_ = 0;
};

} // namespace lloyal
