#include "provenance.hpp"

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
    if (runs_.empty() || runs_.back().end <= run.begin) {
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
    if (!placed) {
        append(run);
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

Pos Runs::common_end(const Runs & other) const {
    // Both lists are walked together; they agree up to `pos`.
    size_t i = 0, j = 0;
    Pos pos = 0;
    if (empty() || other.empty() || begin() != other.begin()) {
        return 0;
    }
    pos = begin();
    while (i < runs_.size() && j < other.runs_.size()) {
        const Run & a = runs_[i];
        const Run & b = other.runs_[j];
        if (a.begin > pos || b.begin > pos) {
            // A hole here must be a hole there.
            if (a.begin != b.begin) {
                return pos;
            }
            pos = a.begin;
        }
        if (a.epoch != b.epoch || a.first + uint64_t(pos - a.begin) != b.first + uint64_t(pos - b.begin)) {
            return pos;
        }
        pos = std::min(a.end, b.end);
        i += a.end == pos;
        j += b.end == pos;
    }
    return pos;
}

bool Runs::holds(const Runs & other) const {
    size_t i = 0;
    for (const Run & want : other.runs_) {
        Pos pos = want.begin;
        while (pos < want.end) {
            while (i < runs_.size() && runs_[i].end <= pos) {
                ++i;
            }
            if (i == runs_.size() || runs_[i].begin > pos) {
                return false;
            }
            const Run & have = runs_[i];
            if (have.epoch != want.epoch ||
                have.first + uint64_t(pos - have.begin) != want.first + uint64_t(pos - want.begin)) {
                return false;
            }
            pos = std::min(have.end, want.end);
        }
    }
    return true;
}

Run Provenance::write(SeqId seq, Pos pos) {
    Writer & writer = writers_[seq];
    if (writer.next == writer.last) {
        writer.next = n_blocks_++ * BLOCK;
        writer.last = writer.next + BLOCK;
    }
    return Run{pos, pos + 1, epoch_, writer.next++};
}

void Provenance::rewrite(SeqId seq, Pos begin, Pos end) {
    seqs_[seq].erase(begin, end);
    if (begin >= end) {
        return;
    }
    // A block of its own: the writer's ids stay consecutive for the rows that decode writes.
    seqs_[seq].insert(Run{begin, end, epoch_, n_blocks_++ * BLOCK});
}

void Provenance::copy(SeqId src, SeqId dst, Pos begin, Pos end) {
    if (src == dst) {
        return;
    }
    const Runs taken = seqs_[src].slice(begin, end);
    seqs_[dst].erase(begin, end);
    for (const Run & run : taken.list()) {
        seqs_[dst].insert(run);
    }
}

void Provenance::assign(SeqId seq, const Runs & runs) {
    seqs_[seq] = runs;
}

void Provenance::clear() {
    for (Runs & runs : seqs_) {
        runs.clear();
    }
}

} // namespace lloyal
