#include "decode/batch.hpp"

#include <algorithm>

namespace lloyal {

void Batch::clear() {
    token_.clear();
    embd_.clear();
    pos_.clear();
    sections_.clear();
    n_seq_.clear();
    seq_begin_.clear();
    seq_.clear();
    logits_.clear();
    n_embd_ = 0;
}

BatchEntry Batch::entry(size_t i) const {
    const auto first = seq_.begin() + ptrdiff_t(seq_begin_.at(i));
    return {has_token(), has_token() ? token_[i] : 0, pos_[i], {first, first + n_seq_[i]}, logits_[i] != 0};
}

void Batch::add_entry(llama_pos pos, const llama_seq_id * seqs, int32_t n_seqs, bool logits) {
    pos_.push_back(pos);
    n_seq_.push_back(n_seqs);
    seq_begin_.push_back(seq_.size());
    seq_.insert(seq_.end(), seqs, seqs + n_seqs);
    logits_.push_back(logits);
}

void Batch::add(llama_token token, llama_pos pos, const llama_seq_id * seqs, int32_t n_seqs, bool logits) {
    token_.push_back(token);
    add_entry(pos, seqs, n_seqs, logits);
}

void Batch::extend(const llama_token * tokens, size_t n, llama_pos pos0, llama_seq_id seq, bool logits_all,
                   bool logits_last) {
    token_.insert(token_.end(), tokens, tokens + n);
    for (size_t i = 0; i < n; ++i) {
        add_entry(pos0 + llama_pos(i), &seq, 1, logits_all || (logits_last && i + 1 == n));
    }
}

void Batch::extend_embd(const float * rows, size_t n, int32_t n_embd, llama_pos pos0, llama_seq_id seq, bool logits_all,
                        bool logits_last) {
    n_embd_ = n_embd;
    embd_.insert(embd_.end(), rows, rows + n * size_t(n_embd));
    for (size_t i = 0; i < n; ++i) {
        add_entry(pos0 + llama_pos(i), &seq, 1, logits_all || (logits_last && i + 1 == n));
    }
}

void Batch::add_row(llama_token token, const float * row, int32_t n_embd, const std::array<llama_pos, 4> & sections,
                    const llama_seq_id * seqs, int32_t n_seqs, bool logits) {
    if (token != LLAMA_TOKEN_NULL) {
        token_.push_back(token);
    }
    n_embd_ = n_embd;
    embd_.insert(embd_.end(), row, row + n_embd);
    sections_.push_back(sections);
    add_entry(sections[0], seqs, n_seqs, logits);
}

std::array<llama_pos, 4> Batch::sections(size_t i) const {
    return sections_.empty() ? std::array<llama_pos, 4>{pos_[i], pos_[i], pos_[i], 0} : sections_[i];
}

llama_batch Batch::view(uint32_t n_pos) {
    seq_ptr_.resize(size() + 1);
    for (size_t i = 0; i < size(); ++i) {
        seq_ptr_[i] = seq_.data() + seq_begin_[i];
    }
    seq_ptr_[size()] = nullptr;
    const bool by_section = n_pos > 1 && !has_token();
    if (by_section) {
        section_pos_.resize(size() * n_pos);
        for (size_t i = 0; i < size(); ++i) {
            const std::array<llama_pos, 4> all = sections(i);
            for (size_t k = 0; k < n_pos; ++k) {
                section_pos_[k * size() + i] = all[k];
            }
        }
    }
    return llama_batch{
        /*.n_tokens =*/int32_t(size()),
        /*.token    =*/has_token() ? token_.data() : nullptr,
        /*.embd     =*/has_embd() ? embd_.data() : nullptr,
        /*.pos      =*/by_section ? section_pos_.data() : pos_.data(),
        /*.n_seq_id =*/n_seq_.data(),
        /*.seq_id   =*/seq_ptr_.data(),
        /*.logits   =*/logits_.data(),
    };
}

} // namespace lloyal
