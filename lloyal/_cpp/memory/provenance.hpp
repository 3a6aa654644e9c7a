// Which content each row of each sequence holds. The cell table cannot tell (trim 256 tokens and decode 256 others: it
// is identical), so every row carries an id that is made when it is computed and travels with forks, trims and restores.
#pragma once

#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

namespace lloyal {

using Pos = int32_t;
using SeqId = int32_t;
constexpr Pos POS_END = std::numeric_limits<Pos>::max();

// The rows at positions [begin, end); the row at `p` has the id (epoch, first + (p - begin)).
struct Run {
    Pos begin;
    Pos end;
    uint64_t epoch; // random per context, so that ids read from a file never clash with fresh ones
    uint64_t first;

    bool continues(const Run & next) const {
        return end == next.begin && epoch == next.epoch && first + uint64_t(end - begin) == next.first;
    }
    bool operator==(const Run &) const = default;
};

// Positions [begin, end).
struct Span {
    Pos begin;
    Pos end;
};

// Rows in order of position, as runs; neighbours that continue each other are merged. Rows may share a position (the patches
// of an image do, and positions that were divided): they follow each other, and are only ever taken together.
class Runs {
  public:
    void append(const Run & run); // at or after the last position
    void insert(const Run & run); // where there are no rows; a single one also behind those at its position
    void erase(Pos begin, Pos end);
    // Add the rows of `other` at positions where there are none.
    void merge(const Runs & other);
    Runs slice(Pos begin, Pos end) const;
    Runs without(const std::vector<Span> & spans) const;
    void clear() { runs_.clear(); }

    bool empty() const { return runs_.empty(); }
    Pos begin() const { return runs_.empty() ? 0 : runs_.front().begin; }
    Pos end() const { return runs_.empty() ? 0 : runs_.back().end; }
    bool overlaps(Pos begin, Pos end) const;
    int64_t size() const;            // rows
    std::vector<Span> spans() const; // the positions they are at, disjoint and in order

    // Rows from the start of both that are the same content: the position where they first differ.
    Pos common_end(const Runs & other) const;
    // True if at every position of `other` the same rows are here.
    bool holds(const Runs & other) const;
    // True if at every position that both have, both have the same rows.
    bool agrees(const Runs & other) const;

    const std::vector<Run> & list() const { return runs_; }
    bool operator==(const Runs &) const = default;

  private:
    std::vector<Run> runs_;
};

class Provenance {
  public:
    Provenance(uint64_t epoch, int32_t n_seq_max)
        : epoch_(epoch), seqs_(n_seq_max), versions_(n_seq_max), writers_(n_seq_max) {}

    const Runs & of(SeqId seq) const { return seqs_[seq]; }
    // Changes with every change of the sequence; a copy of all of it has its version.
    uint64_t version(SeqId seq) const { return versions_[seq]; }
    // To change them.
    Runs & edit(SeqId seq) {
        versions_[seq] = ++n_versions_;
        return seqs_[seq];
    }
    uint64_t epoch() const { return epoch_; }
    int32_t n_seq_max() const { return int32_t(seqs_.size()); }

    // A fresh row of `seq` at `pos`; rows that one sequence writes one after another get consecutive ids.
    Run write(SeqId seq, Pos pos);
    // Fresh ids for rows at [begin, end) that nobody has written through us.
    Run fresh(Pos begin, Pos end);
    // Fresh ids for rows at these positions, which are in order and may repeat.
    Runs fresh_at(const std::vector<Pos> & positions);
    // Fresh ids for the same rows: they are other content now, or were not written by us.
    Runs renamed(const Runs & rows);
    void assign(SeqId seq, Runs rows) { edit(seq) = std::move(rows); }
    // `dst` holds what `src` holds, and nothing else.
    void assign_copy(SeqId dst, SeqId src) {
        seqs_[dst] = seqs_[src];
        versions_[dst] = versions_[src];
    }
    void clear();

  private:
    // A block of ids that one sequence draws from. A fork does not copy it: its next rows are other content.
    struct Writer {
        uint64_t next = 0;
        uint64_t last = 0;
    };

    uint64_t epoch_;
    std::vector<Runs> seqs_;
    std::vector<uint64_t> versions_;
    uint64_t n_versions_ = 0;
    std::vector<Writer> writers_;
    uint64_t n_blocks_ = 0;
};

uint64_t random_epoch();

} // namespace lloyal
