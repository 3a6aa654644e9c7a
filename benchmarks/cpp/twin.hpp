// A model and a context of the twin's own, made with llama.h only, and the clock that both sides are timed with.
#pragma once

#include "llama.h"

#include <chrono>
#include <cstdint>

#define TWIN_API extern "C" __attribute__((visibility("default")))

struct Twin {
    llama_model *   model = nullptr;
    llama_context * ctx   = nullptr;
};

// While one lives, llama.cpp logs nothing: its log goes to whoever else is in the process.
class Quiet {
  public:
    Quiet() {
        llama_log_get(&callback_, &user_data_);
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    }
    Quiet(const Quiet &) = delete;
    ~Quiet() { llama_log_set(callback_, user_data_); }

  private:
    ggml_log_callback callback_;
    void *            user_data_;
};

class Clock {
  public:
    int64_t ns() const {
        return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start_).count();
    }

  private:
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};
