// What a model file says of itself, checked before llama.cpp believes it.
#pragma once

#include "status.hpp"

#include "gguf.h"
#include "llama.h"

namespace lloyal {

// Values of the metadata, or of what replaces them, that llama.cpp divides by while it reads them.
Status check_file(const gguf_context & file, const llama_model_kv_override * overrides);

} // namespace lloyal
