// A model and a context of the twin's own, made with llama.h only, and the clock that both sides are timed with.
#pragma once

#include "llama.h"

#include <cstdint>
#include <ctime>

#define TWIN_API extern "C" __attribute__((visibility("default")))

struct Twin {
    llama_model * model = nullptr;
    llama_context * ctx = nullptr;
    bool borrowed = false; // lloyal's, see twin_borrow
};

// While one lives, a context computes as llama.cpp's own do: without asking at every node whether to stop.
class Bare {
  public:
    explicit Bare(llama_context * ctx);
    Bare(const Bare &) = delete;
    ~Bare();

  private:
    llama_context * ctx_;
    bool (*callback_)(void *);
    void * data_;
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
    void * user_data_;
};

// What both sides are timed with: the wall, or the processor time of this thread, which other processes do not disturb.
inline clockid_t clock_in_use = CLOCK_MONOTONIC;

class Clock {
  public:
    int64_t ns() const { return now() - start_; }

  private:
    static int64_t now() {
        timespec t;
        clock_gettime(clock_in_use, &t);
        return int64_t(t.tv_sec) * 1'000'000'000 + t.tv_nsec;
    }

    int64_t start_ = now();
};
