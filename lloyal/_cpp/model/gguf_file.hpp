// The header of a GGUF file: metadata, and where its tensors are. No weights are read.
#pragma once

#include "ggml.h"
#include "gguf.h"

#include <memory>
#include <string>

namespace lloyal {

struct GgufDeleter {
    void operator()(gguf_context * file) const { gguf_free(file); }
    void operator()(ggml_context * tensors) const { ggml_free(tensors); }
};

struct GgufFile {
    std::unique_ptr<gguf_context, GgufDeleter> meta; // null if it cannot be read
    std::unique_ptr<ggml_context, GgufDeleter> tensors;

    explicit GgufFile(const std::string & path) {
        ggml_context * context = nullptr;
        meta.reset(gguf_init_from_file(path.c_str(), {/*.no_alloc =*/true, /*.ctx =*/&context}));
        tensors.reset(context);
    }
    const ggml_tensor * find(const char * name) const { return ggml_get_tensor(tensors.get(), name); }
};

} // namespace lloyal
