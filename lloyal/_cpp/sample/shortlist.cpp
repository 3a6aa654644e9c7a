#include "sample/shortlist.hpp"

#include "decode/largest.hpp"
#include "sample/sampler_types.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>

namespace lloyal {
namespace {

constexpr size_t FEWEST = 32; // tokens to begin with, beside twice as many as are kept
constexpr size_t GROWTH = 8;  // of each try by the one before

// Whether two of the `n` largest are equal.
bool any_equal(const std::vector<llama_token_data> & list, size_t n) {
    std::vector<float> logits;
    for (const llama_token_data & candidate : list) {
        if (candidate.logit > -INFINITY) {
            logits.push_back(candidate.logit);
        }
    }
    n = std::min(n, logits.size());
    std::partial_sort(logits.begin(), logits.begin() + std::ptrdiff_t(n), logits.end(), std::greater<>());
    return std::adjacent_find(logits.begin(), logits.begin() + std::ptrdiff_t(n)) != logits.begin() + std::ptrdiff_t(n);
}

} // namespace

Beginning beginning_of(const std::vector<llama_sampler *> & leaves) {
    Beginning found;
    std::vector<llama_token> raised;
    for (const llama_sampler * leaf : leaves) {
        if (const size_t kept = sampler_keeps(leaf); kept > 0) {
            if (sampler_type(leaf) == SamplerType::greedy && leaf != leaves.back()) {
                return {}; // it points at the largest and leaves the others
            }
            found.n_kept = kept;
            return found;
        }
        if (!sampler_raises(leaf, raised)) {
            return {};
        }
        ++found.n_samplers;
    }
    return {};
}

bool shortlist(const std::vector<llama_sampler *> & leaves, const Beginning & beginning, const float * row, size_t n,
               const std::vector<llama_logit_bias> & biases, std::vector<llama_token_data> & list) {
    if (beginning.n_kept == 0) {
        return false;
    }
    std::vector<llama_token> raised;
    for (size_t i = 0; i < beginning.n_samplers; ++i) {
        sampler_raises(leaves[i], raised);
    }
    for (const llama_logit_bias & bias : biases) {
        if (bias.bias > 0.0f) {
            raised.push_back(bias.token);
        }
    }
    for (size_t count = 2 * beginning.n_kept + FEWEST; count < n / GROWTH; count *= GROWTH) {
        LargestSome some = largest_at_least(row, n, count);
        if (some.ids.size() > n / 2) { // too many are equal
            return false;
        }
        if (!raised.empty()) {
            std::copy_if(raised.begin(), raised.end(), std::back_inserter(some.ids),
                         [n](llama_token token) { return token >= 0 && size_t(token) < n; });
            std::sort(some.ids.begin(), some.ids.end());
            some.ids.erase(std::unique(some.ids.begin(), some.ids.end()), some.ids.end());
        }
        list.clear();
        for (const llama_token token : some.ids) {
            list.push_back({token, row[token], 0.0f});
        }
        for (const llama_logit_bias & bias : biases) {
            const auto place =
                std::lower_bound(list.begin(), list.end(), bias.token,
                                 [](const llama_token_data & at, llama_token token) { return at.id < token; });
            if (place != list.end() && place->id == bias.token) {
                place->logit += bias.bias;
            }
        }
        llama_token_data_array array = {list.data(), list.size(), -1, false};
        for (size_t i = 0; i < beginning.n_samplers; ++i) {
            llama_sampler_apply(leaves[i], &array);
        }
        // Every token that is not here had less than the threshold and was not raised: enough that still reach it are the
        // largest of all.
        const auto enough = std::count_if(list.begin(), list.end(), [&](const llama_token_data & candidate) {
            return candidate.logit >= some.threshold;
        });
        if (size_t(enough) >= beginning.n_kept) {
            // Which of equal ones are kept, and in what order, depends on what they are sorted among.
            return beginning.n_kept == 1 || !any_equal(list, beginning.n_kept + 1);
        }
    }
    return false;
}

} // namespace lloyal
