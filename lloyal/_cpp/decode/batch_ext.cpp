#include "decode/batch_ext.hpp"

#include <algorithm>
#include <string_view>
#include <utility>

namespace lloyal {

void BatchExt::clear() {
    entries_.clear();
    rows_.clear();
}

void BatchExt::limit(size_t n_max, int32_t n_seq_max, size_t n_sections) {
    n_max_ = n_max;
    n_seq_max_ = n_seq_max;
    n_sections_ = n_sections;
}

Status BatchExt::check_index(int32_t i) const {
    return i >= 0 && size_t(i) < entries_.size()
               ? Status()
               : Status(Code::invalid_argument, text("idx=", i, ": the batch has ", entries_.size(), " entries"));
}

Status BatchExt::check_seq(llama_seq_id seq) const {
    return seq >= 0 && seq < n_seq_max_
               ? Status()
               : Status(Code::invalid_batch, text("sequence ", seq, ": this context has 0 to ", n_seq_max_ - 1,
                                                  " (raise n_seq_max for more)"));
}

Status BatchExt::add(llama_seq_id seq, llama_token token, const float * row, size_t n, int32_t & index) noexcept {
    return guarded(Code::invalid_batch, [&]() -> Status {
        if (Status bad = check_seq(seq); !bad.ok()) {
            return bad;
        }
        if (entries_.size() >= n_max_) {
            return Status(Code::invalid_batch,
                          text("the batch is full: this context takes ", n_max_, " tokens at once (n_batch)"));
        }
        Entry entry;
        entry.token = token;
        entry.seqs = {seq};
        entries_.reserve(entries_.size() + 1);
        if (row) {
            rows_.emplace_back(row, row + n);
            entry.row = ptrdiff_t(rows_.size() - 1);
        }
        entries_.push_back(std::move(entry));
        index = int32_t(entries_.size() - 1);
        return {};
    });
}

Status BatchExt::add_seq(int32_t i, llama_seq_id seq) noexcept {
    return guarded(Code::invalid_batch, [&]() -> Status {
        Status bad = check_index(i);
        if (bad = bad.ok() ? check_seq(seq) : bad; !bad.ok()) {
            return bad;
        }
        std::vector<llama_seq_id> & seqs = entries_[size_t(i)].seqs;
        if (std::find(seqs.begin(), seqs.end(), seq) == seqs.end()) {
            seqs.push_back(seq);
        }
        return {};
    });
}

Status BatchExt::set_embd(int32_t i, const float * row, size_t n) noexcept {
    return guarded(Code::invalid_batch, [&]() -> Status {
        if (Status bad = check_index(i); !bad.ok()) {
            return bad;
        }
        if (entries_[size_t(i)].row >= 0) {
            return Status(Code::invalid_batch, text("entry ", i, " has a row already"));
        }
        rows_.emplace_back(row, row + n);
        entries_[size_t(i)].row = ptrdiff_t(rows_.size() - 1);
        return {};
    });
}

Status BatchExt::set_pos(int32_t i, const std::vector<llama_pos> & pos) noexcept {
    return guarded(Code::invalid_batch, [&]() -> Status {
        if (Status bad = check_index(i); !bad.ok()) {
            return bad;
        }
        Entry & entry = entries_[size_t(i)];
        const size_t n_most = entry.token == LLAMA_TOKEN_NULL ? n_sections_ : 1;
        if (pos.size() != 1 && pos.size() != n_most) {
            return Status(
                Code::invalid_batch,
                text("entry ", i, " takes ", n_most == 4 ? "4 positions, or 1" : "1 position", ", not ", pos.size()));
        }
        if (pos[0] < 0) {
            return Status(Code::invalid_batch, text("position ", pos[0], " of entry ", i, " is negative"));
        }
        std::copy(pos.begin(), pos.end(), entry.pos.begin());
        entry.n_pos = pos.size();
        return {};
    });
}

Status BatchExt::set_output(int32_t i, bool value) noexcept {
    return guarded(Code::invalid_batch, [&]() -> Status {
        Status bad = check_index(i);
        if (bad.ok()) {
            entries_[size_t(i)].output = value;
        }
        return bad;
    });
}

Status BatchExt::entry(int32_t i, Entry & out) const noexcept {
    return guarded(Code::invalid_batch, [&]() -> Status {
        Status bad = check_index(i);
        if (bad.ok()) {
            out = entries_[size_t(i)];
        }
        return bad;
    });
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
