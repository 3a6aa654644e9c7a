// Compiled into llama-common, which has no hooks for the two things a library needs of it: that it does not write to
// stderr, and that a template which calls itself without end is an error instead of a stack overflow.

#include "common_guard.h"

#include "ggml.h"

#include <cstdarg>
#include <cstdio>
#include <stdexcept>

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

namespace {

thread_local const char * stack_end = nullptr;

} // namespace

void lloyal_template_stack(const void * lowest) {
    stack_end = static_cast<const char *>(lowest);
}

// The template engine is compiled with -finstrument-functions: every function of it, destructors aside, begins here.
extern "C" __attribute__((no_instrument_function)) void __cyg_profile_func_enter(void *, void *) {
    if (stack_end && static_cast<const char *>(__builtin_frame_address(0)) < stack_end) {
        throw std::runtime_error("the template is nested too deeply, or calls itself without end");
    }
}

extern "C" __attribute__((no_instrument_function)) void __cyg_profile_func_exit(void *, void *) {}
