// Compiled into libllama, which is linked with --wrap: the allocations of libllama and llama-common come here.

#include "guard.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <time.h>
#include <unwind.h>

#if defined(__APPLE__)
#include <malloc/malloc.h>
#define malloc_usable_size malloc_size
#else
#include <malloc.h>
#endif

#include <climits>
#include <cstdlib>
#include <new>
#include <string>
#include <string_view>

namespace {

constexpr uint32_t STEPS_PER_CHECK = 256;
constexpr int64_t NANOSECONDS_PER_POLL = 10'000'000;

thread_local lloyal_budget * current = nullptr;

int64_t thread_time() {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return int64_t(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

void break_limit(lloyal_budget & budget, lloyal_budget::limit limit) {
    if (budget.broken == lloyal_budget::limit::none) {
        budget.broken = limit;
    }
    budget.until_check = 1; // every further step ends here
}

void check(lloyal_budget & budget) {
    budget.until_check = STEPS_PER_CHECK;
    if (budget.broken != lloyal_budget::limit::none) {
        budget.until_check = 1;
        return;
    }
    budget.n_steps += STEPS_PER_CHECK;
    if (budget.n_steps > budget.steps) {
        return break_limit(budget, lloyal_budget::limit::steps);
    }
    const int64_t now = thread_time(); // not asked for before: most budgets end without a check
    if (budget.began == 0) {
        budget.began = now;
    }
    const int64_t taken = now - budget.began;
    if (taken > budget.nanoseconds) {
        return break_limit(budget, lloyal_budget::limit::seconds);
    }
    if (budget.stop && budget.stop->load(std::memory_order_relaxed)) {
        return break_limit(budget, lloyal_budget::limit::interrupted);
    }
    if (budget.poll && taken - budget.polled > NANOSECONDS_PER_POLL) {
        budget.polled = taken;
        if (budget.poll()) {
            break_limit(budget, lloyal_budget::limit::interrupted);
        }
    }
}

// Constructors, destructors and assignments may be noexcept without saying so, hashes say so, and of the C++ library only
// the search of std::regex may throw. A function without a name is one of a file's own; those it calls have names.
bool is_safe(std::string_view name) {
    std::string plain; // without template arguments
    int depth = 0;
    for (const char c : name.substr(0, name.find('('))) {
        depth += c == '<';
        if (depth == 0) {
            plain += c;
        }
        depth -= c == '>';
    }
    const auto has = [&plain](const char * word) { return plain.find(word) != plain.npos; };
    if (has("~") || has("hash") || has("operator")) {
        return false;
    }
    const size_t colon = plain.rfind("::");
    if (colon == plain.npos) {
        return true;
    }
    const std::string last = plain.substr(colon + 2);
    if (has("std::__detail::_Executor")) {
        return last == "_M_dfs";
    }
    const size_t outer = plain.rfind("::", colon - 1);
    const size_t begin = outer == plain.npos ? 0 : outer + 2;
    return plain.compare(0, 5, "std::") != 0 && plain.compare(begin, colon - begin, last) != 0;
}

bool is_safe_function(void * function) {
    Dl_info info;
    if (!dladdr(function, &info) || !info.dli_sname) {
        return false;
    }
    char * name = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, nullptr);
    const bool safe = name && is_safe(name);
    std::free(name);
    return safe;
}

// Whether a frame's table of calls has the one that is running. Where it has a table without it the compiler was sure that
// nothing is thrown there, and what is thrown ends the process.
bool expects_throw(_Unwind_Context * frame) {
    const auto * at = static_cast<const unsigned char *>(_Unwind_GetLanguageSpecificData(frame));
    if (!at) {
        return true;
    }
    const auto uleb = [&at] {
        uint64_t value = 0;
        for (int shift = 0;; shift += 7) {
            value |= uint64_t(*at & 0x7f) << shift;
            if (!(*at++ & 0x80)) {
                return value;
            }
        }
    };
    constexpr unsigned char omitted = 0xff, as_uleb = 0x01;
    if (*at++ != omitted) {
        return true; // landing pads elsewhere: no compiler we know
    }
    if (*at++ != omitted) {
        uleb();
    }
    if (*at++ != as_uleb) {
        return true;
    }
    const uint64_t size = uleb();
    const unsigned char * end = at + size;
    int before = 0;
    const uint64_t place = _Unwind_GetIPInfo(frame, &before) - (before ? 0 : 1) - _Unwind_GetRegionStart(frame);
    while (at < end) {
        const uint64_t begin = uleb();
        const uint64_t length = uleb();
        uleb();
        uleb();
        if (place >= begin && place < begin + length) {
            return true;
        }
    }
    return false;
}

// Whether what is thrown here reaches the scope of the budget.
bool may_throw(lloyal_budget & budget) {
    struct Walk {
        const void * end;
        int left;
        bool safe;
    } walk = {budget.base, budget.walked ? 64 : INT_MAX, true};
    budget.walked =
        true; // what was thrown then may be caught and come back at every level: frames far up stay what they are
    const auto visit = [](_Unwind_Context * frame, void * data) {
        auto & todo = *static_cast<Walk *>(data);
        if (reinterpret_cast<const void *>(_Unwind_GetCFA(frame)) > todo.end || --todo.left < 0) {
            return _URC_END_OF_STACK;
        }
        todo.safe = expects_throw(frame);
        return todo.safe ? _URC_NO_REASON : _URC_END_OF_STACK;
    };
    if (std::uncaught_exceptions() > 0) {
        return false;
    }
    _Unwind_Backtrace(visit, &walk);
    return walk.safe;
}

void * count(void * pointer) {
    if (lloyal_budget * budget = current) {
        budget->n_bytes += int64_t(malloc_usable_size(pointer));
    }
    return pointer;
}

void allocate(size_t size) {
    lloyal_budget * budget = current;
    if (!budget) {
        return;
    }
    if (size > size_t(INT64_MAX / 2) || budget->n_bytes + int64_t(size) > budget->bytes) {
        break_limit(*budget, lloyal_budget::limit::bytes);
    }
    if (--budget->until_check == 0) {
        check(*budget);
    }
    if (budget->broken != lloyal_budget::limit::none && may_throw(*budget)) {
        throw lloyal_limit();
    }
}

void release(void * pointer) {
    if (lloyal_budget * budget = current; budget && pointer) {
        budget->n_bytes -= int64_t(malloc_usable_size(pointer));
    }
}

} // namespace

lloyal_budget_scope::lloyal_budget_scope(lloyal_budget & budget) noexcept : outer_(current) {
    budget.until_check = STEPS_PER_CHECK;
    budget.base = this;
    current = &budget;
}

lloyal_budget_scope::~lloyal_budget_scope() {
    current = outer_;
}

void lloyal_budget_step(void * function, const void * frame) {
    lloyal_budget * budget = current;
    if (!budget) {
        return;
    }
    if (static_cast<const char *>(frame) < budget->stack_end) {
        break_limit(*budget, lloyal_budget::limit::depth);
    }
    if (--budget->until_check == 0) {
        check(*budget);
    }
    if (budget->broken != lloyal_budget::limit::none && is_safe_function(function) && may_throw(*budget)) {
        throw lloyal_limit();
    }
}

// The hooks of -finstrument-functions, for libllama. The C library has them too, empty; common_guard.cpp has llama-common's.
extern "C" void __cyg_profile_func_enter(void * function, void *) {
    lloyal_budget_step(function, __builtin_frame_address(0));
}
extern "C" void __cyg_profile_func_exit(void *, void *) {}

#if !defined(__APPLE__)
// What the linker makes of operator new and delete. The names are those of 64-bit targets.
extern "C" {
void * __real__Znwm(size_t);
void * __real__Znam(size_t);
void __real__ZdlPv(void *);
void __real__ZdaPv(void *);

void * __wrap__Znwm(size_t size) {
    allocate(size);
    return count(__real__Znwm(size));
}
void * __wrap__Znam(size_t size) {
    allocate(size);
    return count(__real__Znam(size));
}
void __wrap__ZdlPv(void * pointer) {
    release(pointer);
    __real__ZdlPv(pointer);
}
void __wrap__ZdlPvm(void * pointer, size_t) {
    release(pointer);
    __real__ZdlPv(pointer);
}
void __wrap__ZdaPv(void * pointer) {
    release(pointer);
    __real__ZdaPv(pointer);
}
void __wrap__ZdaPvm(void * pointer, size_t) {
    release(pointer);
    __real__ZdaPv(pointer);
}
}
#endif
