// Running a batch: validated before llama.cpp sees it, provenance and the output table kept after.
#pragma once

#include "core/handles.hpp"
#include "decode/batch.hpp"

namespace lloyal {

// `tenant`: the caller may write sequences leased from kv.Tenancy.
Status decode(ContextBox & box, Batch & batch, bool tenant = false) noexcept;
Status encode(ContextBox & box, Batch & batch) noexcept;

// The same by way of llama_process and llama_batch_ext.
Status process_decode(ContextBox & box, Batch & batch, bool tenant = false) noexcept;
Status process_encode(ContextBox & box, const Batch & batch) noexcept;
// Values in an embedding row of a batch for this context.
int32_t process_n_embd(const ContextBox & box, bool encoding);

} // namespace lloyal
