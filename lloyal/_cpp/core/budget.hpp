// Reading text under a budget: templates, schemas, grammars and texts to tokenize may be hostile, and what reads them
// knows no limits. The counting is in vendor/guard.cpp.
#pragma once

#include "core/big_stack.hpp"
#include "core/fence.hpp"
#include "core/status.hpp"

#include "guard.h"

#include <atomic>
#include <utility>

namespace lloyal {

// What reading a text of `size` bytes may take: far more than honest ones do, and little enough to wait for.
struct TextBudget {
    const char * what; // "the template"
    size_t size;
    size_t stack = 0;   // bytes to recurse in, on a thread of its own; 0: on the caller's
    bool nested = true; // it makes values that hold values
    double least = 0.7; // seconds of processor time
    double per_byte = 5e-6;

    uint64_t steps() const { return 40'000'000 + 1'000 * uint64_t(size); }
    size_t bytes() const { return (size_t(64) << 20) + 64 * size; }
    double seconds() const { return least + per_byte * double(size); }
    // Values are dropped and hashed by recursion too, where nothing can be thrown. Each level holds a value, which takes
    // more of the memory that is counted than half of what the level takes here.
    size_t unwind_stack() const { return (nested ? 2 * bytes() : 0) + (size_t(2) << 20); }
};

// Asked every few milliseconds on the thread that called; true stops the work. Set by Python's part, for signals.
void budget_on_poll(bool (*poll)()) noexcept;
bool budget_poll() noexcept;

// Ok, or the status of the limit that was broken.
Status budget_status(const TextBudget & limits, const lloyal_budget & used, Code code);

template <typename F> Status budgeted(const TextBudget & limits, Code code, F && body) {
    lloyal_budget budget;
    budget.steps = limits.steps();
    budget.bytes = int64_t(limits.bytes());
    budget.nanoseconds = int64_t(limits.seconds() * 1e9);
    Status status;
    const auto run = [&] {
        const Fence fence(Input::text);
        const lloyal_budget_scope scope(budget);
        try {
            status = body();
        } catch (...) {
            if (budget.broken == lloyal_budget::limit::none) {
                throw;
            }
        }
    };
    if (limits.stack == 0) {
        budget.poll = budget_poll;
        run();
    } else {
        std::atomic<bool> stop{false};
        budget.stop = &stop;
        on_big_stack(
            limits.stack + limits.unwind_stack(),
            [&] {
                budget.stack_end = static_cast<const char *>(__builtin_frame_address(0)) - limits.stack;
                run();
            },
            [&] { stop.store(stop.load() || budget_poll()); });
        if (stop && budget.broken == lloyal_budget::limit::none) { // too late, but the signal must not be lost
            budget.broken = lloyal_budget::limit::interrupted;
        }
    }
    Status broken = budget_status(limits, budget, code);
    return broken.ok() ? status : broken;
}

} // namespace lloyal
