// The largest of the logits of one output, and the largest few.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lloyal {

struct Largest {
    size_t index = 0; // of the largest value, the first of equals
    float value = 0.0f;
    bool finite = true; // false if there is a NaN or +inf
};

Largest largest(const float * row, size_t n);

// All values from a threshold on, by their indices in order; the threshold is such that they are at least `count`, and not
// many more, unless values are equal. NaN are never among them.
struct LargestSome {
    std::vector<int32_t> ids;
    float threshold = 0.0f;
};
LargestSome largest_at_least(const float * row, size_t n, size_t count);

} // namespace lloyal
