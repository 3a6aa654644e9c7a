#include "core/exit.hpp"

#include "core/fork.hpp"

#include <atomic>
#include <chrono>
#include <thread>

namespace lloyal {
namespace {

std::atomic<int> n_calls{0};
std::atomic<bool> ending{false};

} // namespace

NativeCall::NativeCall() noexcept {
    // Counted before it asks: exit_begin sets the flag before it counts, so one of the two sees the other.
    n_calls.fetch_add(1);
    allowed_ = !ending.load();
}

NativeCall::~NativeCall() {
    n_calls.fetch_sub(1);
}

bool exiting() noexcept {
    return ending.load(std::memory_order_relaxed);
}

void exit_begin() noexcept {
    ending.store(true);
    // In a forked child the calls that were counted are the parent's.
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (!forked() && n_calls.load() > 0 && std::chrono::steady_clock::now() < until) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
}

} // namespace lloyal
