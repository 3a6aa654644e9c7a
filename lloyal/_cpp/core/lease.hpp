// Leases: sequences that raw calls may not decode into. Handed out from the top.
#pragma once

#include "core/handles.hpp"
#include "core/status.hpp"

#include <cstdint>

namespace lloyal {

Status lease_acquire(ContextBox & box, Lease kind, SeqId & out) noexcept;
void lease_release(ContextBox & box, SeqId seq) noexcept; // from any thread; empties the sequence, now or when it can
// Ids that could be leased now.
Status count_available_leases(ContextBox & box, int32_t & out) noexcept;

} // namespace lloyal
