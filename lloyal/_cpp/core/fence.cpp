#include "core/fence.hpp"

#include "ggml.h"

#include <cstdint>
#include <cstdio>
#include <mutex>
#include <stdexcept>

// Where vendor/CMakeLists.txt compiles libllama so that a handler may throw.
#if defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define LLOYAL_TRAPS
#include <csignal>
#endif

namespace lloyal {
namespace {

thread_local int fence_depth = 0;
thread_local int file_depth = 0; // of those for files

// ggml calls abort() when this returns.
void on_assert(const char * message) {
    if (fence_depth > 0) {
        throw std::runtime_error(message);
    }
    std::fprintf(stderr, "%s\n", message);
}

#ifdef LLOYAL_TRAPS
// A count that llama.cpp divides by, or the name of a tensor it takes for granted. libllama is compiled with
// -fnon-call-exceptions, so an exception may leave the handler of a signal that an instruction of its raised.
constexpr int SIGNALS[] = {SIGFPE, SIGSEGV};
constexpr uintptr_t NEAR_NULL = 4096; // a member of an object that is not there

std::mutex traps_mutex;
int n_fences = 0; // in all threads
struct sigaction before[std::size(SIGNALS)];

void on_trap(int signal, siginfo_t * info, void * where) {
    if (file_depth > 0 && signal == SIGFPE && info->si_code == FPE_INTDIV) {
        throw std::runtime_error("a number in the file's metadata is 0, and llama.cpp divides by it");
    }
    if (file_depth > 0 && signal == SIGSEGV && info->si_code == SEGV_MAPERR &&
        reinterpret_cast<uintptr_t>(info->si_addr) < NEAR_NULL) {
        throw std::runtime_error("a tensor that the model computes with is missing in the file");
    }
    // Another thread's, or another fault: whoever was there before.
    const struct sigaction & other = before[signal == SIGSEGV];
    if (other.sa_flags & SA_SIGINFO) {
        other.sa_sigaction(signal, info, where);
    } else if (other.sa_handler != SIG_DFL && other.sa_handler != SIG_IGN) {
        other.sa_handler(signal);
    } else {
        sigaction(signal, &other, nullptr); // the instruction is tried again
    }
}

bool is_ours(const struct sigaction & action) {
    return (action.sa_flags & SA_SIGINFO) && action.sa_sigaction == on_trap;
}

void set_traps() {
    const std::lock_guard<std::mutex> lock(traps_mutex);
    if (n_fences++ > 0) {
        return;
    }
    struct sigaction action {};
    action.sa_sigaction = on_trap;
    // An exception does not return, and would leave the signal blocked. Others' handlers may need a stack of their own.
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    for (size_t i = 0; i < std::size(SIGNALS); ++i) {
        struct sigaction old;
        sigaction(SIGNALS[i], &action, &old);
        if (!is_ours(old)) { // as when another handler, installed during a load, put ours back
            before[i] = old;
        }
    }
}

void take_traps_away() {
    const std::lock_guard<std::mutex> lock(traps_mutex);
    if (--n_fences > 0) {
        return;
    }
    for (size_t i = 0; i < std::size(SIGNALS); ++i) {
        struct sigaction now;
        if (sigaction(SIGNALS[i], nullptr, &now) == 0 && is_ours(now)) { // one that was installed meanwhile stays
            sigaction(SIGNALS[i], &before[i], nullptr);
        }
    }
}
#else
void set_traps() {}
void take_traps_away() {}
#endif

} // namespace

Fence::Fence(Input input) noexcept : input_(input) {
    ++fence_depth;
    if (input_ == Input::file) {
        ++file_depth;
        set_traps();
    }
}

Fence::~Fence() {
    if (input_ == Input::file) {
        take_traps_away();
        --file_depth;
    }
    --fence_depth;
}

FencePause::FencePause() noexcept : fences_(fence_depth), files_(file_depth) {
    fence_depth = file_depth = 0;
}

FencePause::~FencePause() {
    fence_depth = fences_;
    file_depth = files_;
}

void fence_install() {
    ggml_set_abort_callback(on_assert);
}

} // namespace lloyal
