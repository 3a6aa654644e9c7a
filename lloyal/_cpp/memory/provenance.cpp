#include "memory/provenance.hpp"

#include <algorithm>
#include <random>

namespace lloyal {
namespace {

constexpr uint64_t BLOCK = uint64_t(1) << 32;

Run cut(const Run & run, Pos begin, Pos end) {
    return Run{begin, end, run.epoch, run.first + uint64_t(begin - run.begin)};
}

} // namespace

uint64_t random_epoch() {
    std::random_device device;
    return (uint64_t(device()) << 32) | device();
}

void Runs::append(const Run & run) {
    if (run.begin >= run.end) {
        return;
    }
    if (!runs_.empty() && runs_.back().continues(run)) {
        runs_.back().end = run.end;
    } else {
        runs_.push_back(run);
    }
}

void Runs::insert(const Run & run) {
    if (runs_.empty() || runs_.back().begin <= run.begin) {
        append(run);
        return;
    }
    std::vector<Run> old;
    old.swap(runs_);
    bool placed = false;
    for (const Run & r : old) {
        if (!placed && run.begin < r.begin) {
            append(run);
            placed = true;
        }
        append(r);
    }
}

void Runs::erase(Pos begin, Pos end) {
    if (runs_.empty() || begin >= end || begin >= this->end() || end <= this->begin()) {
        return;
    }
    std::vector<Run> kept;
    kept.reserve(runs_.size() + 1);
    for (const Run & run : runs_) {
        if (run.begin < begin) {
            kept.push_back(cut(run, run.begin, std::min(run.end, begin)));
        }
        if (run.end > end) {
            kept.push_back(cut(run, std::max(run.begin, end), run.end));
        }
    }
    runs_.swap(kept);
}

Runs Runs::slice(Pos begin, Pos end) const {
    Runs out;
    for (const Run & run : runs_) {
        const Pos b = std::max(run.begin, begin);
        const Pos e = std::min(run.end, end);
        if (b < e) {
            out.append(cut(run, b, e));
        }
    }
    return out;
}

Runs Runs::without(const std::vector<Span> & spans) const {
    Runs out = *this;
    for (const Span & span : spans) {
        out.erase(span.begin, span.end);
    }
    return out;
}

void Runs::merge(const Runs & other) {
    const Runs added = other.without(spans());
    if (runs_.empty()) {
        runs_ = added.runs_;
        return;
    }
    // Both in order of position: rows at one position come from one of them only.
    std::vector<Run> mine;
    mine.swap(runs_);
    size_t i = 0;
    for (const Run & run : added.runs_) {
        while (i < mine.size() && mine[i].begin < run.begin) {
            append(mine[i++]);
        }
        append(run);
    }
    while (i < mine.size()) {
        append(mine[i++]);
    }
}

bool Runs::overlaps(Pos begin, Pos end) const {
    return std::any_of(runs_.begin(), runs_.end(), [=](const Run & r) { return r.begin < end && begin < r.end; });
}

int64_t Runs::size() const {
    int64_t n = 0;
    for (const Run & run : runs_) {
        n += run.end - run.begin;
    }
    return n;
}

std::vector<Span> Runs::spans() const {
    std::vector<Span> found;
    for (const Run & run : runs_) {
        if (!found.empty() && run.begin <= found.back().end) {
            found.back().end = std::max(found.back().end, run.end);
        } else {
            found.push_back({run.begin, run.end});
        }
    }
    return found;
}

Pos Runs::common_end(const Runs & other) const {
    if (empty() || other.empty() || begin() != other.begin()) {
        return 0;
    }
    // Both lists are walked together, as many rows at a time as both runs have left.
    const std::vector<Run> & a = runs_;
    const std::vector<Run> & b = other.runs_;
    size_t i = 0, j = 0;
    Pos at_a = begin(), at_b = at_a; // the next row of each
    Pos last = at_a - 1;             // position of the last row that agreed
    while (i < a.size() && j < b.size()) {
        const uint64_t id_a = a[i].first + uint64_t(at_a - a[i].begin);
        const uint64_t id_b = b[j].first + uint64_t(at_b - b[j].begin);
        if (at_a != at_b || a[i].epoch != b[j].epoch || id_a != id_b) {
            return std::min(at_a, at_b); // rows that share this position differ as a whole
        }
        const Pos n = std::min(a[i].end, b[j].end) - at_a;
        last = at_a + n - 1;
        at_a = last + 1;
        at_b = last + 1;
        if (at_a == a[i].end && ++i < a.size()) {
            at_a = a[i].begin;
        }
        if (at_b == b[j].end && ++j < b.size()) {
            at_b = b[j].begin;
        }
    }
    // One has ended; the other may have further rows at the last position.
    const bool more = (i < a.size() && at_a == last) || (j < b.size() && at_b == last);
    return more ? last : last + 1;
}

bool Runs::holds(const Runs & other) const {
    const std::vector<Span> theirs = other.spans();
    return std::all_of(theirs.begin(), theirs.end(), [&](const Span & span) {
        return slice(span.begin, span.end) == other.slice(span.begin, span.end);
    });
}

bool Runs::agrees(const Runs & other) const {
    const std::vector<Span> theirs = other.spans();
    return std::all_of(theirs.begin(), theirs.end(), [&](const Span & span) {
        const Runs mine = slice(span.begin, span.end);
        return other.holds(mine);
    });
}

Run Provenance::write(SeqId seq, Pos pos) {
    Writer & writer = writers_[seq];
    if (writer.next == writer.last) {
        writer.next = n_blocks_++ * BLOCK;
        writer.last = writer.next + BLOCK;
    }
    return Run{pos, pos + 1, epoch_, writer.next++};
}

Run Provenance::fresh(Pos begin, Pos end) {
    // A block of its own: the writer's ids stay consecutive for the rows that decode writes.
    return Run{begin, end, epoch_, n_blocks_++ * BLOCK};
}

Runs Provenance::fresh_at(const std::vector<Pos> & positions) {
    Runs rows;
    Run next = fresh(0, 0);
    for (const Pos pos : positions) {
        rows.append(Run{pos, pos + 1, next.epoch, next.first++});
    }
    return rows;
}

Runs Provenance::renamed(const Runs & rows) {
    Runs now;
    uint64_t next = fresh(0, 0).first;
    for (const Run & run : rows.list()) {
        now.append(Run{run.begin, run.end, epoch_, next});
        next += uint64_t(run.end - run.begin);
    }
    return now;
}

void Provenance::clear() {
    for (SeqId seq = 0; seq < n_seq_max(); ++seq) {
        edit(seq).clear();
    }
}

} // namespace lloyal
