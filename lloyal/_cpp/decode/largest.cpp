#include "decode/largest.hpp"

#include <algorithm>
#include <cmath>

namespace lloyal {
namespace {

constexpr size_t LANES = 16;   // independent maxima, so that the compiler can use vector registers
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

} // namespace lloyal
