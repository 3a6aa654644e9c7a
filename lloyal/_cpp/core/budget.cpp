#include "core/budget.hpp"

#include <cstdio>

namespace lloyal {
namespace {

std::atomic<bool (*)()> on_poll{nullptr};

} // namespace

void budget_on_poll(bool (*poll)()) noexcept {
    on_poll.store(poll);
}

bool budget_poll() noexcept {
    bool (*poll)() = on_poll.load();
    return poll && poll();
}

Status budget_status(const TextBudget & limits, const lloyal_budget & used, Code code) {
    using Limit = lloyal_budget::limit;
    if (used.broken == Limit::none) {
        return {};
    }
    const std::string what = limits.what;
    switch (used.broken) {
        case Limit::none: break;
        case Limit::steps: return Status(code, text(what, " takes more than ", limits.steps(), " steps"));
        case Limit::bytes: return Status(code, text(what, " takes more than ", limits.bytes() >> 20, " MiB of memory"));
        case Limit::seconds: {
            char seconds[32];
            std::snprintf(seconds, sizeof seconds, "%.1f", limits.seconds());
            return Status(code, text(what, " takes more than ", seconds, " s of processor time"));
        }
        case Limit::depth:
            return Status(code, text(what, " is nested too deeply, or calls itself without end: it takes more than ",
                                     limits.stack >> 20, " MiB of stack"));
        case Limit::interrupted: return Status(Code::aborted, "interrupted while " + what + " was read");
    }
    return {};
}

} // namespace lloyal
