// The one way a failure leaves our C++: a code (an index into lloyal.errors.BY_CODE) and a message that names the value.
#pragma once

#include "core/exit.hpp"

#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

namespace lloyal {

enum class Code : int {
    ok = 0,
    load_failed,
    cache_full,
    invalid_batch,
    aborted,
    decode_failed,
    state_mismatch,
    stale_checkpoint,
    out_of_device_memory,
    invalid_argument,
    invalid_grammar,
    no_logits,
    unsupported,
    no_lease,
    busy,
    closed,
    out_of_memory,
};

struct Status {
    Code code = Code::ok;
    int native = 0; // llama.cpp's own return code, where there is one
    std::string message;

    Status() = default;
    Status(Code c, std::string m, int n = 0) : code(c), native(n), message(std::move(m)) {}

    bool ok() const { return code == Code::ok; }
    int value() const { return static_cast<int>(code); }
};

// A failure from where no Status can be returned: `guarded` makes it one.
struct Failure : std::runtime_error {
    Code code;
    Failure(Code c, const std::string & message) : std::runtime_error(message), code(c) {}
};

// llama.cpp throws through its C API in places; no exception may cross into Cython without becoming a Status.
template <typename F> Status guarded(Code on_error, F && body) noexcept {
    const NativeCall call;
    if (!call.allowed()) {
        return Status(Code::aborted, "the process is ending");
    }
    try {
        return body();
    } catch (const std::bad_alloc &) {
        return Status(Code::out_of_memory, "out of host memory");
    } catch (const Failure & e) {
        return Status(e.code, e.what());
    } catch (const std::exception & e) {
        return Status(on_error, e.what());
    } catch (...) {
        return Status(on_error, "unknown C++ exception");
    }
}

template <typename... Parts> std::string text(Parts &&... parts) {
    std::string out;
    auto add = [&out](auto && part) {
        using T = std::decay_t<decltype(part)>;
        if constexpr (std::is_arithmetic_v<T>) {
            out += std::to_string(part);
        } else {
            out += part;
        }
    };
    (add(std::forward<Parts>(parts)), ...);
    return out;
}

} // namespace lloyal
