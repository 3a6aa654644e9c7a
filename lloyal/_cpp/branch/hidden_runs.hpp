// The hidden rows of the last tokens of a branch, until somebody has asked for them. Forks share what they have.
#pragma once

#include "core/handles.hpp"

#include <algorithm>
#include <memory>
#include <vector>

namespace lloyal {

class Hidden {
  public:
    // Rows of tokens that were read together. Filled before it is added to a branch.
    struct Block {
        std::shared_ptr<const HiddenSources> sources;
        std::vector<float> values;
    };

    // Allocates for one more: adding it cannot fail then.
    void make_room() { runs_.reserve(runs_.size() + 1); }

    // The first `n` rows of a block, of the tokens from `begin` on. Null, or too few: they are not known.
    void add(std::shared_ptr<const Block> block, Pos begin, Pos n) noexcept {
        if (!block || block->values.size() < size_t(n) * block->sources->width) {
            runs_.clear(); // what is in front of a gap is of no use
            return;
        }
        if (!runs_.empty() && (runs_.back().end != begin || runs_.back().block->sources != block->sources)) {
            runs_.clear();
        }
        const Pos most = block->sources->most;
        runs_.push_back({std::move(block), begin, begin + n}); // there is room for it
        drop(begin + n - most);
    }

    // What lies wholly in front of token `begin` away.
    void drop(Pos begin) noexcept {
        const auto keep = std::find_if(runs_.begin(), runs_.end(), [&](const Run & run) { return run.end > begin; });
        runs_.erase(runs_.begin(), keep);
    }

    // The rows of the first `n` tokens.
    void cut(Pos n) noexcept {
        while (!runs_.empty() && runs_.back().end > n) {
            if (runs_.back().begin < n) {
                runs_.back().end = n;
                break;
            }
            runs_.pop_back();
        }
    }

    bool empty() const { return runs_.empty(); }
    Pos begin() const { return runs_.empty() ? 0 : runs_.front().begin; }
    Pos end() const { return runs_.empty() ? 0 : runs_.back().end; }
    const HiddenSources * sources() const { return runs_.empty() ? nullptr : runs_.back().block->sources.get(); }

    // From token `from` on, appended.
    void copy(Pos from, std::vector<float> & out) const {
        for (const Run & run : runs_) {
            const size_t width = run.block->sources->width;
            const Pos first = std::max(from, run.begin);
            if (first < run.end) {
                const float * values = run.block->values.data();
                out.insert(out.end(), values + size_t(first - run.begin) * width,
                           values + size_t(run.end - run.begin) * width);
            }
        }
    }

  private:
    struct Run {
        std::shared_ptr<const Block> block;
        Pos begin;
        Pos end;
    };
    std::vector<Run> runs_;
};

} // namespace lloyal
