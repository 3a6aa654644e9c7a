// What a model file says of itself, checked before llama.cpp believes it.
#pragma once

#include "core/status.hpp"
#include "model/gguf_file.hpp"

#include "llama.h"

namespace lloyal {

// What llama.cpp divides by, or takes for granted, while it reads a file: of the metadata, or of what replaces it.
Status check_file(const GgufFile & file);

} // namespace lloyal
