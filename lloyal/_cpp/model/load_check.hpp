// What a model file says of itself, checked before llama.cpp believes it.
#pragma once

#include "core/status.hpp"
#include "model/gguf_file.hpp"

#include "llama.h"

namespace lloyal {

// What llama.cpp divides by, makes room for or takes for granted while it reads a file: of the metadata, or of what
// replaces it. `overrides` end with an empty key; null is none.
Status check_file(const GgufFile & file, const llama_model_kv_override * overrides);

} // namespace lloyal
