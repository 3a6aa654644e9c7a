// What llama.cpp leaves open and a processor decides: which weights it repacks rightly, which attention is faster on it.
#pragma once

#include "model/gguf_file.hpp"

#include "llama.h"

#include <utility>
#include <vector>

namespace lloyal {

// Whether matrices repacked for this processor's instructions give the products that plain ones give, for the types and
// the batches of these files: a small product of each kind is computed both ways, once in a process. Milliseconds; throws.
class Repacking {
  public:
    void add(const GgufFile & file); // the parts of one model
    bool is_right() const;

  private:
    bool batches_of_sequences_ = false; // recurrent layers multiply a matrix with rows of several sequences apart
    std::vector<std::pair<ggml_type, bool>> weights_; // type, whether there are several matrices in a tensor
};

// Whether attention without the fused kernel is faster for this model's heads, where a CPU computes it.
bool flash_attention_is_slow(const llama_model & model, const llama_context_params & params);

} // namespace lloyal
