#include "decode/log_probs.hpp"

#include "decode/largest.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace lloyal {

double log_sum_exp(const float * row, size_t n) {
    const Largest best = largest(row, n);
    if (!best.finite) {
        return std::numeric_limits<double>::quiet_NaN();
    }
    if (best.value == -INFINITY) {
        return -INFINITY;
    }
    const double most = best.value;
    double sum = 0.0;
    for (size_t i = 0; i < n; ++i) {
        sum += std::exp(row[i] - most);
    }
    return most + std::log(sum);
}

std::vector<LogProb> most_probable(const float * row, size_t n, size_t count) {
    std::vector<int32_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    count = std::min(count, n);
    std::partial_sort(order.begin(), order.begin() + std::ptrdiff_t(count), order.end(), [row](int32_t a, int32_t b) {
        const float x = std::isnan(row[a]) ? -INFINITY : row[a];
        const float y = std::isnan(row[b]) ? -INFINITY : row[b];
        return x != y ? x > y : a < b;
    });
    const double all = log_sum_exp(row, n);
    std::vector<LogProb> best(count);
    for (size_t i = 0; i < count; ++i) {
        best[i] = {row[order[i]] - all, order[i]};
    }
    return best;
}

} // namespace lloyal
