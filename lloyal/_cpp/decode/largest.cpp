#include "decode/largest.hpp"

#include "core/every_processor.hpp"

#include <algorithm>
#include <cmath>
#include <functional>

namespace lloyal {
namespace {

constexpr size_t LANES = 16;     // independent maxima, so that the compiler can use vector registers
constexpr size_t MOST_ROWS = 32; // values of a column
constexpr size_t FEWEST_ROWS = 2;
constexpr size_t BLOCK = 1024; // the index is searched in the block that holds the maximum only

struct BlockMax {
    float value;
    bool finite;
};

BlockMax block_max(const float * row, size_t n) {
    float top[LANES];
    int bad[LANES] = {};
    std::fill(top, top + LANES, -INFINITY);
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (size_t lane = 0; lane < LANES; ++lane) {
            const float x = row[i + lane];
            top[lane] = x > top[lane] ? x : top[lane];
            bad[lane] |= !(x < INFINITY);
        }
    }
    for (; i < n; ++i) {
        top[0] = row[i] > top[0] ? row[i] : top[0];
        bad[0] |= !(row[i] < INFINITY);
    }
    return {*std::max_element(top, top + LANES), std::none_of(bad, bad + LANES, [](int b) { return b != 0; })};
}

// The largest of every `n_columns`-th value. Whole rows at a time, so that the compiler can use vector registers.
FOR_EVERY_PROCESSOR void column_maxima(const float * row, size_t n, size_t n_columns, float * maxima) {
    std::fill(maxima, maxima + n_columns, -INFINITY);
    for (size_t begin = 0; begin < n; begin += n_columns) {
        const size_t count = std::min(n_columns, n - begin);
        const float * values = row + begin;
        for (size_t k = 0; k < count; ++k) {
            maxima[k] = values[k] > maxima[k] ? values[k] : maxima[k];
        }
    }
}

} // namespace

Largest largest(const float * row, size_t n) {
    Largest best;
    best.value = -INFINITY;
    size_t from = 0;
    for (size_t begin = 0; begin < n; begin += BLOCK) {
        const BlockMax block = block_max(row + begin, std::min(BLOCK, n - begin));
        best.finite &= block.finite;
        if (block.value > best.value) {
            best.value = block.value;
            from = begin;
        }
    }
    const size_t to = std::min(from + BLOCK, n);
    best.index = size_t(std::find(row + from, row + to, best.value) - row);
    best.index = best.index == to ? 0 : best.index; // all NaN
    return best;
}

LargestSome largest_at_least(const float * row, size_t n, size_t count) {
    LargestSome found;
    const size_t n_columns = std::max((n + MOST_ROWS - 1) / MOST_ROWS, 4 * count);
    if (count == 0 || n == 0) {
        return found;
    }
    found.threshold = -INFINITY;
    if (n_columns * FEWEST_ROWS <= n) {
        // As many columns as are asked for reach the threshold, each with one value at least.
        std::vector<float> maxima(n_columns);
        column_maxima(row, n, n_columns, maxima.data());
        std::vector<float> order = maxima;
        const auto nth = order.begin() + std::ptrdiff_t(count - 1);
        std::nth_element(order.begin(), nth, order.end(), std::greater<>());
        found.threshold = *nth;
        if (found.threshold > -INFINITY) {
            for (size_t k = 0; k < n_columns; ++k) {
                for (size_t i = k; maxima[k] >= found.threshold && i < n; i += n_columns) {
                    if (row[i] >= found.threshold) {
                        found.ids.push_back(int32_t(i));
                    }
                }
            }
            std::sort(found.ids.begin(), found.ids.end());
            return found;
        }
    }
    for (size_t i = 0; i < n; ++i) {
        if (row[i] >= found.threshold) {
            found.ids.push_back(int32_t(i));
        }
    }
    return found;
}

} // namespace lloyal
