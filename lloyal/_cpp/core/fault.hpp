// For tests: failures at a place of one's choice.
#pragma once

#include <cstdint>

namespace lloyal {

// llama.cpp asks between the nodes of a graph whether to stop: the n-th question from now gets a yes (0: the next; negative:
// none).
void abort_arm(int64_t n);
int64_t abort_remaining();
bool abort_now(); // counts one

// The n-th allocation on a device, or copy there, fails.
void fault_arm(int64_t n);
int64_t fault_remaining();
bool fault_now();   // counts one
void fault_point(); // the same, and throws

} // namespace lloyal
