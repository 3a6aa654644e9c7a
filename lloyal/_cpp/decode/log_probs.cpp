#include "decode/log_probs.hpp"

#include "core/every_processor.hpp"
#include "decode/largest.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

namespace lloyal {
namespace {

constexpr size_t LANES = 16;  // independent sums, so that the compiler can use vector registers
constexpr size_t BLOCK = 256; // summed in float32, and the blocks in float64

// exp(x) for x <= 0, within a few 2**-24 of it: 2**n by the exponent's bits, the rest by its series to the seventh power, on
// [-ln 2 / 2, ln 2 / 2]. Without calls or branches, so that many are computed at once.
inline __attribute__((always_inline)) float exp_of(float x) {
    const float inside = x > -87.0f ? x : -87.0f;
    const float whole = (inside * 1.44269504f + 12582912.0f) - 12582912.0f; // 1.5 * 2**23 rounds to an integer
    const float r = (inside - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return x > -87.0f ? p * std::bit_cast<float>((int32_t(whole) + 127) << 23) : 0.0f;
}

FOR_EVERY_PROCESSOR double sum_of_exp(const float * row, size_t n, float most) {
    double total = 0.0;
    const size_t whole = n - n % LANES;
    size_t i = 0;
    while (i < whole) {
        float sums[LANES] = {};
        for (const size_t end = std::min(whole, i + BLOCK); i < end; i += LANES) {
            for (size_t lane = 0; lane < LANES; ++lane) {
                sums[lane] += exp_of(row[i + lane] - most);
            }
        }
        total = std::accumulate(sums, sums + LANES, total);
    }
    for (; i < n; ++i) {
        total += exp_of(row[i] - most);
    }
    return total;
}

} // namespace

double log_sum_exp(const float * row, size_t n) {
    const Largest best = largest(row, n);
    if (!best.finite) {
        return std::numeric_limits<double>::quiet_NaN();
    }
    return log_sum_exp(row, n, best.value);
}

double log_sum_exp(const float * row, size_t n, float largest) {
    return largest == -INFINITY ? -INFINITY : double(largest) + std::log(sum_of_exp(row, n, largest));
}

std::vector<LogProb> most_probable(const float * row, size_t n, size_t count) {
    count = std::min(count, n);
    std::vector<int32_t> order = largest_at_least(row, n, count).ids;
    if (order.size() < count) { // NaN come last
        order.resize(n);
        std::iota(order.begin(), order.end(), 0);
    }
    std::partial_sort(order.begin(), order.begin() + std::ptrdiff_t(count), order.end(), [row](int32_t a, int32_t b) {
        const float x = std::isnan(row[a]) ? -INFINITY : row[a];
        const float y = std::isnan(row[b]) ? -INFINITY : row[b];
        return x != y ? x > y : a < b;
    });
    const double all = log_sum_exp(row, n);
    std::vector<LogProb> best(count);
    for (size_t i = 0; i < count; ++i) {
        const float logit = row[order[i]];
        best[i] = {all == -INFINITY ? all : logit - all, order[i]};
    }
    return best;
}

} // namespace lloyal
