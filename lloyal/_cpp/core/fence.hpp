// A failed assertion of llama.cpp ends the process. Where none of its threads wait for each other it need not: inside a
// fence it becomes an exception on the thread that asserted, which llama.cpp itself or `guarded` turns into an error.
#pragma once

#include "core/status.hpp"

namespace lloyal {

class AssertFence {
  public:
    AssertFence() noexcept;
    ~AssertFence();
    AssertFence(const AssertFence &) = delete;
};

// Route ggml's failed assertions here. Idempotent.
void fence_install();

// `guarded` for calls that read input nobody has checked (model files, text) and run no graph: a graph's threads would
// wait for the one that has left.
template <typename F> Status fenced(Code on_error, F && body) noexcept {
    const AssertFence fence;
    return guarded(on_error, std::forward<F>(body));
}

} // namespace lloyal
