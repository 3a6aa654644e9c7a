// Whether the processor can compute a graph: its kernels take what types and shapes a model file gives a weight, and
// abort, on threads that nobody can save, or read past its end, where the file lied about it.
#pragma once

#include "core/status.hpp"

#include "llama.h"

#include <string>

struct ggml_tensor;

namespace lloyal {

// Why the processor's kernel cannot compute `node`; empty if it can.
std::string unfit(const ggml_tensor & node);

// From here on no graph of `context` is planned for the processor that it cannot compute: planning throws a
// Failure that names the tensor, its type and shape, and the operation. Every graph is planned before it is computed.
void graph_check_install(llama_context & context);

// Plan the graphs of the largest batch and of one token for each sequence. Throws.
void graph_check(llama_context & context);

// A draft on top of `parent`, or null: its vocabulary against the tensors it borrows, and what its own tell.
void draft_check(const llama_context & context, const llama_context * parent);

// Whether the last graph planned computes as many values for an embedding as llama.cpp will read. Throws.
void embeddings_check(const llama_context & context);

// True for types that weights can have in a product; the others hold intermediate results, or nothing of that kind.
bool is_weight_type(ggml_type type);

} // namespace lloyal
