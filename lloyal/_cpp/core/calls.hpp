// How Python reaches a context or a sampler: one call is one stay. `inside<f>` is `f` for handles: it becomes the one
// caller of everything `f` takes a box of, calls it, and lets go again however it ends. So nothing in Python can leave a
// context busy, and what `f` points to is used while nobody else can change it.
#pragma once

#include "core/handles.hpp"
#include "core/status.hpp"
#include "core/threads.hpp"

#include <tuple>
#include <type_traits>

namespace lloyal {

class Batch; // decode/batch.hpp

struct Refusal {
    Code code = Code::ok;
    const char * why = nullptr;
};

// What a parameter of a call asks of its argument: by default nothing.
template <typename P> struct Stay {
    using Argument = P;
    template <typename A> explicit Stay(const A & /*argument*/) {}
    Refusal refused() const { return {}; }
    static P pass(std::remove_reference_t<P> & argument) { return static_cast<P>(argument); }
};

class ContextStay {
  public:
    using Argument = const ContextHandle &;
    explicit ContextStay(const ContextHandle & context) : box_(context.get()), inside_(box_ && context_enter(*box_)) {}
    ContextStay(const ContextStay &) = delete;
    ~ContextStay() {
        if (inside_) {
            context_leave(*box_);
        }
    }
    Refusal refused() const {
        return inside_ ? Refusal{}
               : box_  ? Refusal{Code::busy,
                                "another thread is inside this context: one context takes one caller at a time"}
                       : Refusal{Code::closed, "the context is closed"};
    }

  private:
    ContextBox * box_;
    bool inside_;
};

template <> struct Stay<ContextBox &> : ContextStay {
    using ContextStay::ContextStay;
    static ContextBox & pass(const ContextHandle & context) { return *context; }
};
template <> struct Stay<const ContextBox &> : Stay<ContextBox &> {
    using Stay<ContextBox &>::Stay;
};
template <> struct Stay<ContextHandle> : ContextStay {
    using ContextStay::ContextStay;
    static const ContextHandle & pass(const ContextHandle & context) { return context; }
};
template <> struct Stay<const ContextHandle &> : Stay<ContextHandle> {
    using Stay<ContextHandle>::Stay;
};
template <auto F, typename T = decltype(F)> struct Call;
template <auto F, typename... P> struct Call<F, Status (*)(P...) noexcept> {
    static Status run(typename Stay<P>::Argument... arguments) noexcept {
        const std::tuple<Stay<P>...> stays(arguments...);
        Refusal refusal;
        std::apply([&](const auto &... stay) { ((refusal = refusal.why ? refusal : stay.refused()), ...); }, stays);
        return refusal.why ? Status(refusal.code, refusal.why) : F(Stay<P>::pass(arguments)...);
    }
};
template <auto F> inline constexpr auto inside = &Call<F>::run;

// `inside` for what computes graphs: its threads can be started.
template <auto F, typename T = decltype(F)> struct Computation;
template <auto F, typename... P> struct Computation<F, Status (*)(ContextBox &, P...) noexcept> {
    static Status run(ContextBox & box, P... arguments) noexcept {
        Status status = threads_ready(box, (is_one(arguments) || ...));
        return status.ok() ? F(box, static_cast<P>(arguments)...) : status;
    }
    template <typename A> static bool is_one(const A & argument) {
        if constexpr (std::is_same_v<A, Batch>) {
            return argument.size() <= 1;
        } else {
            return false;
        }
    }
};
template <auto F> inline constexpr auto computing = inside<&Computation<F>::run>;

} // namespace lloyal
