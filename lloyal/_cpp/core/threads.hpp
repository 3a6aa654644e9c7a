// Threads that cannot be started. OpenMP ends the process for one, ggml's own pool aborts, and std::thread leaves its
// siblings unjoined: whether the process may have as many is tried first, with threads that do nothing.
#pragma once

#include "core/handles.hpp"
#include "core/status.hpp"

namespace lloyal {

// That `n` threads, the caller one of them, can run at once.
Status check_threads(int32_t n) noexcept;

// The same before a graph of `box` is computed on this thread. OpenMP keeps the threads of the last graph, so the test is
// made when there are to be more of them. `single`: no graph will have more than one token.
Status threads_ready(const ContextBox & box, bool single) noexcept;

Status set_n_threads(ContextBox & box, int32_t n_threads, int32_t n_threads_batch) noexcept;

} // namespace lloyal
