#include "core/fence.hpp"

#include "ggml.h"

#include <cstdio>
#include <stdexcept>

namespace lloyal {
namespace {

thread_local int fence_depth = 0;

// ggml calls abort() when this returns.
void on_assert(const char * message) {
    if (fence_depth > 0) {
        throw std::runtime_error(message);
    }
    std::fprintf(stderr, "%s\n", message);
}

} // namespace

AssertFence::AssertFence() noexcept {
    ++fence_depth;
}

AssertFence::~AssertFence() {
    --fence_depth;
}

void fence_install() {
    ggml_set_abort_callback(on_assert);
}

} // namespace lloyal
