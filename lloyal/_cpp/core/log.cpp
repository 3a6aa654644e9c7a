#include "core/log.hpp"

#include "llama.h"

#include <atomic>
#include <deque>
#include <mutex>
#include <utility>

namespace lloyal {
namespace {

constexpr size_t CAPACITY = 4096; // a model load logs a few hundred lines

std::mutex mutex;
std::deque<LogLine> ring;
LogLine partial{GGML_LOG_LEVEL_NONE, {}}; // a line that GGML_LOG_LEVEL_CONT will continue
uint64_t n_lost = 0;
std::atomic<bool> pending{false};
thread_local std::string problem;
thread_local bool problem_is_error = false;

void push(LogLine && line) {
    if (ring.size() == CAPACITY) {
        ring.pop_front();
        ++n_lost;
    }
    ring.push_back(std::move(line));
}

void on_log(ggml_log_level level, const char * text, void * /*user_data*/) {
    const std::string piece(text);
    const bool complete = !piece.empty() && piece.back() == '\n';
    std::lock_guard<std::mutex> lock(mutex);
    if (level == GGML_LOG_LEVEL_CONT) {
        partial.text += piece;
    } else {
        if (!partial.text.empty()) {
            push(std::exchange(partial, LogLine{GGML_LOG_LEVEL_NONE, {}}));
        }
        partial = LogLine{level, piece};
    }
    if (!complete) {
        return;
    }
    while (!partial.text.empty() && (partial.text.back() == '\n' || partial.text.back() == ' ')) {
        partial.text.pop_back();
    }
    if (!partial.text.empty() && partial.text != ".") {
        // The first error says what went wrong; those after it say that something did. Warnings only stand in for one.
        const bool error = partial.level == GGML_LOG_LEVEL_ERROR;
        if (!problem_is_error && (error || partial.level == GGML_LOG_LEVEL_WARN)) {
            problem = partial.text;
            problem_is_error = error;
        }
        push(std::move(partial));
        pending.store(true, std::memory_order_release);
    }
    partial = LogLine{GGML_LOG_LEVEL_NONE, {}};
}

} // namespace

void log_install() {
    llama_log_set(on_log, nullptr);
}

void log_lock() {
    mutex.lock();
}

void log_unlock() {
    mutex.unlock();
}

bool log_pending() {
    return pending.load(std::memory_order_acquire);
}

std::vector<LogLine> log_drain(uint64_t & lost) {
    std::lock_guard<std::mutex> lock(mutex);
    std::vector<LogLine> lines(std::make_move_iterator(ring.begin()), std::make_move_iterator(ring.end()));
    ring.clear();
    lost = std::exchange(n_lost, 0);
    pending.store(false, std::memory_order_release);
    return lines;
}

void log_mark() {
    problem.clear();
    problem_is_error = false;
}

std::string log_last() {
    return problem;
}

} // namespace lloyal
