#include "batch.hpp"

#include <algorithm>

namespace lloyal {

void Batch::clear() {
    token_.clear();
    embd_.clear();
    pos_.clear();
    n_seq_.clear();
    seq_begin_.clear();
    seq_.clear();
    logits_.clear();
    n_embd_ = 0;
}

void Batch::add_row(llama_pos pos, const llama_seq_id * seqs, int32_t n_seqs, bool logits) {
    pos_.push_back(pos);
    n_seq_.push_back(n_seqs);
    seq_begin_.push_back(seq_.size());
    seq_.insert(seq_.end(), seqs, seqs + n_seqs);
    logits_.push_back(logits);
}

void Batch::add(llama_token token, llama_pos pos, const llama_seq_id * seqs, int32_t n_seqs, bool logits) {
    token_.push_back(token);
    add_row(pos, seqs, n_seqs, logits);
}

void Batch::extend(const llama_token * tokens, size_t n, llama_pos pos0, llama_seq_id seq, bool logits_all,
                   bool logits_last) {
    token_.insert(token_.end(), tokens, tokens + n);
    for (size_t i = 0; i < n; ++i) {
        add_row(pos0 + llama_pos(i), &seq, 1, logits_all || (logits_last && i + 1 == n));
    }
}

void Batch::extend_embd(const float * rows, size_t n, int32_t n_embd, llama_pos pos0, llama_seq_id seq,
                        bool logits_all, bool logits_last) {
    n_embd_ = n_embd;
    embd_.insert(embd_.end(), rows, rows + n * size_t(n_embd));
    for (size_t i = 0; i < n; ++i) {
        add_row(pos0 + llama_pos(i), &seq, 1, logits_all || (logits_last && i + 1 == n));
    }
}

bool Batch::wants_output() const {
    return std::any_of(logits_.begin(), logits_.end(), [](int8_t flag) { return flag != 0; });
}

llama_batch Batch::view() {
    seq_ptr_.resize(size() + 1);
    for (size_t i = 0; i < size(); ++i) {
        seq_ptr_[i] = seq_.data() + seq_begin_[i];
    }
    seq_ptr_[size()] = nullptr;
    return llama_batch{
        /*.n_tokens =*/ int32_t(size()),
        /*.token    =*/ has_embd() ? nullptr : token_.data(),
        /*.embd     =*/ has_embd() ? embd_.data() : nullptr,
        /*.pos      =*/ pos_.data(),
        /*.n_seq_id =*/ n_seq_.data(),
        /*.seq_id   =*/ seq_ptr_.data(),
        /*.logits   =*/ logits_.data(),
    };
}

} // namespace lloyal
