// Running something that recurses deeper than the caller's stack allows.
#pragma once

#include <pthread.h>

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

namespace lloyal {

// Calls `body` on a thread with a stack of `bytes`, and waits, calling `wait` every few milliseconds; on the caller's own
// where a few hundred kB will do. The memory is taken only as far as it is used.
template <typename F, typename W> void on_big_stack(size_t bytes, F && body, W && wait) {
    if (bytes <= 256 * 1024) {
        return body();
    }
    struct Call {
        F & body;
        std::exception_ptr raised;
        std::mutex mutex;
        std::condition_variable changed;
        bool done = false;
    } call{body, nullptr, {}, {}};
    const auto run = [](void * data) -> void * {
        auto & todo = *static_cast<Call *>(data);
        try {
            todo.body();
        } catch (...) {
            todo.raised = std::current_exception();
        }
        const std::lock_guard lock(todo.mutex);
        todo.done = true;
        todo.changed.notify_one();
        return nullptr;
    };
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_t thread;
    const bool started =
        pthread_attr_setstacksize(&attributes, bytes) == 0 && pthread_create(&thread, &attributes, run, &call) == 0;
    pthread_attr_destroy(&attributes);
    if (!started) {
        throw std::runtime_error("no thread with a stack of " + std::to_string(bytes) + " bytes could be started");
    }
    {
        std::unique_lock lock(call.mutex);
        while (!call.changed.wait_for(lock, std::chrono::milliseconds(10), [&] { return call.done; })) {
            lock.unlock();
            wait();
            lock.lock();
        }
    }
    pthread_join(thread, nullptr);
    if (call.raised) {
        std::rethrow_exception(call.raised);
    }
}

template <typename F> void on_big_stack(size_t bytes, F && body) {
    on_big_stack(bytes, std::forward<F>(body), [] {});
}

} // namespace lloyal
