// Work over one row of logits.
#pragma once

#include <cstddef>

namespace lloyal {

struct RowMax {
    size_t index = 0; // of the largest value, the first of equals
    float value = 0.0f;
    bool finite = true; // false if there is a NaN or +inf
};

RowMax row_max(const float * row, size_t n);

} // namespace lloyal
