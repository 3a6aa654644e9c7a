// A batch in the form of llama_batch_ext: entries that are filled in any order, then checked as a whole.
#pragma once

#include "batch.hpp"
#include "status.hpp"

#include "llama.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace lloyal {

class BatchExt {
  public:
    void clear();
    size_t size() const { return entries_.size(); }

    // A new entry without a position; its index. LLAMA_TOKEN_NULL: no token.
    int32_t add(llama_seq_id seq, llama_token token);
    void add_seq(size_t i, llama_seq_id seq);
    // False if the entry has a row already.
    bool set_embd(size_t i, const float * row, size_t n);
    void set_pos(size_t i, const llama_pos * pos, size_t n);
    void set_output(size_t i, bool value) { entries_[i].output = value; }

    llama_token token(size_t i) const { return entries_[i].token; }
    bool has_embd(size_t i) const { return entries_[i].row >= 0; }
    size_t n_pos(size_t i) const { return entries_[i].n_pos; }
    llama_pos pos(size_t i, size_t k) const { return entries_[i].pos[k]; }
    bool output(size_t i) const { return entries_[i].output; }
    const std::vector<llama_seq_id> & seqs(size_t i) const { return entries_[i].seqs; }

    // The same entries in the order of their indices; says what is missing.
    Status build(Batch & out) const noexcept;

  private:
    struct Entry {
        llama_token token;
        std::vector<llama_seq_id> seqs;
        std::array<llama_pos, 4> pos{};
        size_t n_pos = 0;
        ptrdiff_t row = -1; // into rows_
        bool output = false;
    };
    std::vector<Entry> entries_;
    std::vector<std::vector<float>> rows_;
};

} // namespace lloyal
