#include "core/fork.hpp"

#include "core/log.hpp"

#include <pthread.h>

#include <atomic>
#include <mutex>

namespace lloyal {
namespace {

std::atomic<bool> in_child{false};

} // namespace

void fork_install() {
    static std::once_flag once;
    std::call_once(once, [] {
        pthread_atfork(log_lock, log_unlock, [] {
            log_unlock();
            in_child.store(true, std::memory_order_relaxed);
        });
    });
}

bool forked() {
    return in_child.load(std::memory_order_relaxed);
}

} // namespace lloyal
