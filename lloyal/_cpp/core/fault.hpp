// For tests: a computation that is stopped at a place of one's choice.
#pragma once

#include <atomic>
#include <cstdint>

namespace lloyal {

// llama.cpp asks between the nodes of a graph whether to stop: the n-th question from now gets a yes (0: the next; negative:
// none).
inline std::atomic<int64_t> abort_countdown{-1};
void abort_arm(int64_t n);
int64_t abort_remaining();

// True once.
inline bool abort_now() {
    return abort_countdown.load(std::memory_order_relaxed) >= 0 &&
           abort_countdown.fetch_sub(1, std::memory_order_relaxed) == 0;
}

} // namespace lloyal
