#include "batch_ext.hpp"

#include <algorithm>
#include <string_view>

namespace lloyal {

void BatchExt::clear() {
    entries_.clear();
    rows_.clear();
}

int32_t BatchExt::add(llama_seq_id seq, llama_token token) {
    entries_.push_back({});
    entries_.back().token = token;
    entries_.back().seqs = {seq};
    return int32_t(entries_.size() - 1);
}

void BatchExt::add_seq(size_t i, llama_seq_id seq) {
    std::vector<llama_seq_id> & seqs = entries_[i].seqs;
    if (std::find(seqs.begin(), seqs.end(), seq) == seqs.end()) {
        seqs.push_back(seq);
    }
}

bool BatchExt::set_embd(size_t i, const float * row, size_t n) {
    if (has_embd(i)) {
        return false;
    }
    rows_.emplace_back(row, row + n);
    entries_[i].row = ptrdiff_t(rows_.size() - 1);
    return true;
}

void BatchExt::set_pos(size_t i, const llama_pos * pos, size_t n) {
    std::copy(pos, pos + n, entries_[i].pos.begin());
    entries_[i].n_pos = n;
}

Status BatchExt::build(Batch & out) const noexcept {
    return guarded(Code::invalid_batch, [&]() -> Status {
        const auto kind = [](const Entry & entry) {
            const bool token = entry.token != LLAMA_TOKEN_NULL;
            return token && entry.row >= 0 ? "a token and a row"
                   : token                 ? "a token"
                   : entry.row >= 0        ? "a row"
                                           : "nothing";
        };
        for (size_t i = 0; i < entries_.size(); ++i) {
            const Entry & entry = entries_[i];
            if (std::string_view(kind(entry)) != kind(entries_[0]) ||
                (entry.row < 0 && entry.token == LLAMA_TOKEN_NULL)) {
                return Status(Code::invalid_batch,
                              text("entry ", i, " has ", kind(entry), ", entry 0 has ", kind(entries_[0]),
                                   ": all need the same, and a token or a row at least"));
            }
            if (entry.row >= 0 && rows_[size_t(entry.row)].size() != rows_[size_t(entries_[0].row)].size()) {
                return Status(Code::invalid_batch,
                              text("the row of entry ", i, " has ", rows_[size_t(entry.row)].size(),
                                   " values, the one of entry 0 ", rows_[size_t(entries_[0].row)].size()));
            }
            if (entry.n_pos == 0) {
                return Status(Code::invalid_batch, text("entry ", i, " has no position: use set_pos"));
            }
        }
        out.clear();
        for (const Entry & entry : entries_) {
            const llama_pos first = entry.pos[0];
            const int32_t n_seqs = int32_t(entry.seqs.size());
            if (entry.row < 0) {
                out.add(entry.token, first, entry.seqs.data(), n_seqs, entry.output);
                continue;
            }
            const std::vector<float> & row = rows_[size_t(entry.row)];
            const std::array<llama_pos, 4> text_pos{first, first, first, 0};
            out.add_row(entry.token, row.data(), int32_t(row.size()), entry.n_pos == 1 ? text_pos : entry.pos,
                        entry.seqs.data(), n_seqs, entry.output);
        }
        return {};
    });
}

} // namespace lloyal
