#include "core/threads.hpp"

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

namespace lloyal {
namespace {

// Threads that OpenMP has for this one: it starts them for the first graph, and ends those that a smaller one leaves over.
thread_local int32_t n_kept = 1;

} // namespace

Status check_threads(int32_t n) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        std::atomic<bool> done{false};
        std::vector<std::thread> threads;
        threads.reserve(size_t(std::max(n, 1)));
        std::string reason;
        try {
            while (int32_t(threads.size()) + 1 < n) {
                threads.emplace_back([&done] { done.wait(false); });
            }
        } catch (const std::system_error & error) {
            reason = error.code().message();
        }
        done.store(true);
        done.notify_all();
        for (std::thread & thread : threads) {
            thread.join();
        }
        return reason.empty() ? Status()
                              : Status(Code::invalid_argument,
                                       text("n_threads=", n, ": the system lets this process have ", threads.size() + 1,
                                            " (", reason, "): use fewer, or raise the limit on memory or processes"));
    });
}

Status threads_ready(const ContextBox & box, bool single) noexcept {
    const int32_t one = llama_n_threads(box.ptr);
    const int32_t many = llama_n_threads_batch(box.ptr);
    const int32_t most = single ? one : std::max(one, many);
    Status status;
    if (most > n_kept) {
        status = check_threads(most);
    }
    n_kept = single ? one : std::min(one, many);
    return status;
}

Status set_n_threads(ContextBox & box, int32_t n_threads, int32_t n_threads_batch) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        llama_set_n_threads(box.ptr, n_threads, n_threads_batch);
        return {};
    });
}

} // namespace lloyal
