// A failed assertion of llama.cpp ends the process, and so do a division by zero and a tensor that is not there. Where none
// of its threads wait for each other they need not: inside a fence they become an exception on the thread that made them,
// which llama.cpp itself or `guarded` turns into an error.
#pragma once

#include "core/status.hpp"

namespace lloyal {

// What nobody has checked: a file can also make llama.cpp divide by zero or follow a null pointer.
enum class Input { text, file };

class Fence {
  public:
    explicit Fence(Input input) noexcept;
    ~Fence();
    Fence(const Fence &) = delete;

  private:
    const Input input_;
};

// Out of every fence for a while: a callback of the caller's runs code that exceptions must not pass through.
class FencePause {
  public:
    FencePause() noexcept;
    ~FencePause();
    FencePause(const FencePause &) = delete;

  private:
    int fences_;
    int files_;
};

// Route ggml's failed assertions here. Idempotent.
void fence_install();

// `guarded` for calls that read input nobody has checked (model files, text) and run no graph: a graph's threads would
// wait for the one that has left.
template <typename F> Status fenced(Input input, Code on_error, F && body) noexcept {
    const Fence fence(input);
    return guarded(on_error, std::forward<F>(body));
}

} // namespace lloyal
