// A batch in the form of llama_batch_ext: entries that are filled in any order, then checked as a whole.
#pragma once

#include "core/status.hpp"
#include "decode/batch.hpp"

#include "llama.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace lloyal {

class BatchExt {
  public:
    struct Entry {
        llama_token token;
        std::vector<llama_seq_id> seqs;
        std::array<llama_pos, 4> pos{};
        size_t n_pos = 0;
        ptrdiff_t row = -1; // into rows_
        bool output = false;
    };

    // What the context it is for takes. `n_sections`: positions of an entry without a token, 1 or 4.
    void limit(size_t n_max, int32_t n_seq_max, size_t n_sections);
    void clear();
    size_t size() const { return entries_.size(); }

    // Every call checks what it is given before it changes anything.
    // A new entry without a position; its index. LLAMA_TOKEN_NULL: no token; `row` null: no row.
    Status add(llama_seq_id seq, llama_token token, const float * row, size_t n, int32_t & index) noexcept;
    Status add_seq(int32_t i, llama_seq_id seq) noexcept;
    Status set_embd(int32_t i, const float * row, size_t n) noexcept;
    Status set_pos(int32_t i, const std::vector<llama_pos> & pos) noexcept;
    Status set_output(int32_t i, bool value) noexcept;
    Status entry(int32_t i, Entry & out) const noexcept;

    // The same entries in the order of their indices; says what is missing.
    Status build(Batch & out) const noexcept;

  private:
    Status check_index(int32_t i) const;
    Status check_seq(llama_seq_id seq) const;

    size_t n_max_ = 0;
    int32_t n_seq_max_ = 0;
    size_t n_sections_ = 1;
    std::vector<Entry> entries_;
    std::vector<std::vector<float>> rows_;
};

} // namespace lloyal
