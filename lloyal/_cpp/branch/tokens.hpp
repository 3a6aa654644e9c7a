// The tokens of a branch: long blocks that forks share and nobody changes, and the last ones, which each copies.
#pragma once

#include "llama.h"

#include <algorithm>
#include <memory>
#include <vector>

namespace lloyal {

struct Token {
    llama_token id = 0;
    bool accepted = false;    // it went through the sampler: generated, not only read
    float probability = 1.0f; // among what the sampler left to choose from; 1 if it was not picked by it
    double log_prob = 0.0;    // by the model, before biases and samplers; NaN if there were no logits
};

class Tokens {
  public:
    size_t size() const { return n_shared() + own_.size(); }
    bool empty() const { return size() == 0; }

    // `visit` for each from `begin` on.
    template <typename F> void each(size_t begin, F && visit) const {
        size_t at = 0;
        for (const Shared & shared : shared_) {
            for (size_t i = std::max(begin, at); i < shared.end; ++i) {
                visit((*shared.block)[i - at]);
            }
            at = shared.end;
        }
        for (size_t i = std::max(begin, at); i < size(); ++i) {
            visit(own_[i - at]);
        }
    }

    std::vector<llama_token> ids(size_t begin, size_t end) const {
        std::vector<llama_token> found;
        each(begin, [&](const Token & token) {
            if (begin + found.size() < end) {
                found.push_back(token.id);
            }
        });
        return found;
    }

    Tokens first(size_t n) const {
        Tokens some;
        for (const Shared & shared : shared_) {
            if (shared.end > n) {
                break;
            }
            some.shared_.push_back(shared);
        }
        some.own_.reserve(n - some.n_shared());
        each(some.n_shared(), [&](const Token & token) {
            if (some.size() < n) {
                some.own_.push_back(token);
            }
        });
        return some;
    }

    // Allocates for `n` more: adding so many, and settling them, cannot fail then.
    void make_room(size_t n) {
        own_.reserve(std::max(BLOCK, own_.size() + n));
        if (own_.size() + n >= BLOCK) {
            next_ = std::make_shared<Block>();
            shared_.reserve(shared_.size() + 1);
        }
    }
    void add(const Token & token) noexcept { own_.push_back(token); }
    void settle() noexcept {
        if (own_.size() >= BLOCK && next_) {
            const size_t end = size();
            next_->swap(own_);
            shared_.push_back({std::move(next_), end});
        }
    }

  private:
    static constexpr size_t BLOCK = 256;
    using Block = std::vector<Token>;
    struct Shared {
        std::shared_ptr<const Block> block;
        size_t end; // of it among all
    };

    size_t n_shared() const { return shared_.empty() ? 0 : shared_.back().end; }

    std::vector<Shared> shared_;
    Block own_;
    std::shared_ptr<Block> next_; // to become the next shared one
};

} // namespace lloyal
