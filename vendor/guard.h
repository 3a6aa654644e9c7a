// What input may take: a budget of one thread, kept by what guard.cpp puts into libllama and llama-common.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>

struct lloyal_budget {
    enum class limit { none, steps, bytes, seconds, depth, interrupted };

    uint64_t steps = UINT64_MAX;              // allocations, and functions begun where the hooks are compiled in
    int64_t bytes = INT64_MAX;                // allocated and not freed
    int64_t nanoseconds = INT64_MAX;          // of this thread's processor time
    const char * stack_end = nullptr;         // a function that begins below is too deep; stacks grow down
    bool (*poll)() = nullptr;                 // called on this thread every few milliseconds: true ends the work
    const std::atomic<bool> * stop = nullptr; // set by another thread: the same

    limit broken = limit::none; // the first one that was
    uint64_t n_steps = 0;
    int64_t n_bytes = 0;

    // Private to guard.cpp.
    const void * base = nullptr;
    bool walked = false;
    uint32_t until_check = 0;
    int64_t began = 0;
    int64_t polled = 0;
};

// Thrown where a limit is broken, and again until the budget ends: what catches and goes on gets no further.
struct lloyal_limit : std::exception {
    const char * what() const noexcept override { return "a limit was reached"; }
};

// Budgets of one thread nest; the inner one counts alone.
class lloyal_budget_scope {
  public:
    explicit lloyal_budget_scope(lloyal_budget & budget) noexcept;
    ~lloyal_budget_scope();
    lloyal_budget_scope(const lloyal_budget_scope &) = delete;

  private:
    lloyal_budget * outer_;
};

// A function begins, whose frame is at `frame`. Throws lloyal_limit if it may: not from what must not throw.
void lloyal_budget_step(void * function, const void * frame);
