// Natural logarithms of the probabilities that one output's logits stand for, in float64.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lloyal {

struct LogProb {
    double value = 0.0;
    int32_t index = 0;
};

// The logarithm of the sum of exp(row[i]): subtracted from a logit it gives the log-probability. NaN for a row that holds
// one or +inf, -inf for a row of nothing but -inf.
double log_sum_exp(const float * row, size_t n);
// The same of a row without NaN and +inf whose largest value is known.
double log_sum_exp(const float * row, size_t n, float largest);

// The `count` most probable, the best first, the first of equals before the others.
std::vector<LogProb> most_probable(const float * row, size_t n, size_t count);

} // namespace lloyal
