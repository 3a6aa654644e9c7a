// The largest of the logits of one output.
#pragma once

#include <cstddef>

namespace lloyal {

struct Largest {
    size_t index = 0; // of the largest value, the first of equals
    float value = 0.0f;
    bool finite = true; // false if there is a NaN or +inf
};

Largest largest(const float * row, size_t n);

} // namespace lloyal
