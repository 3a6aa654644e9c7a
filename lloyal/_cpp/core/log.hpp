// Native log lines on their way to Python's `logging`: any thread writes, whoever holds the GIL drains.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace lloyal {

struct LogLine {
    int level; // ggml_log_level
    std::string text;
};

// Route llama.cpp's and ggml's log into the ring. Idempotent.
void log_install();

// Around fork(): no thread of the parent may hold the ring's lock in the child.
void log_lock();
void log_unlock();

// Lines waiting to be drained; cheap enough to ask after every native call.
bool log_pending();

// Take all waiting lines; `lost` counts those that did not fit since the last drain.
std::vector<LogLine> log_drain(uint64_t & lost);

// The first error this thread logged since `log_mark()`, else its last warning, or an empty string.
void log_mark();
std::string log_last();

} // namespace lloyal
