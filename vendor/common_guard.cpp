// Compiled into llama-common, which has no hooks for the two things a library needs of it: that it does not write to
// stderr, and that a template, a schema or an answer without end is an error.

#include "common_guard.h"

#include "guard.h"

#include "ggml.h"

#include <cstdarg>
#include <cstdio>

extern "C" void ggml_log_internal(ggml_log_level level, const char * format, ...); // exported by ggml-base

int lloyal_common_warning(FILE *, const char * format, ...) {
    char    message[1024];
    va_list arguments;
    va_start(arguments, format);
    const int n = std::vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    ggml_log_internal(GGML_LOG_LEVEL_WARN, "%s", message);
    return n;
}

// What reads text is compiled with -finstrument-functions: every function of it, destructors aside, begins here.
extern "C" __attribute__((no_instrument_function)) void __cyg_profile_func_enter(void * function, void *) {
    lloyal_budget_step(function, __builtin_frame_address(0));
}

extern "C" __attribute__((no_instrument_function)) void __cyg_profile_func_exit(void *, void *) {}
