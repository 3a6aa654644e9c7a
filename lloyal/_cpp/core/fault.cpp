#include "core/fault.hpp"

#include <atomic>
#include <stdexcept>

namespace lloyal {
namespace {

class Countdown {
  public:
    void arm(int64_t n) { left_.store(n, std::memory_order_relaxed); }
    int64_t left() const { return left_.load(std::memory_order_relaxed); }
    // True once.
    bool count() { return left() >= 0 && left_.fetch_sub(1, std::memory_order_relaxed) == 0; }

  private:
    std::atomic<int64_t> left_{-1};
};

Countdown to_abort, to_fault;

} // namespace

void abort_arm(int64_t n) {
    to_abort.arm(n);
}
int64_t abort_remaining() {
    return to_abort.left();
}
bool abort_now() {
    return to_abort.count();
}

void fault_arm(int64_t n) {
    to_fault.arm(n);
}
int64_t fault_remaining() {
    return to_fault.left();
}
bool fault_now() {
    return to_fault.count();
}
void fault_point() {
    if (fault_now()) {
        throw std::runtime_error("a device copy failed (injected)");
    }
}

} // namespace lloyal
