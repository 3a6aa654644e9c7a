// Quantizing a model file, with what llama.cpp asserts on checked before.
#pragma once

#include "core/status.hpp"
#include "model/graph_check.hpp"

#include "llama.h"

#include <cstdint>
#include <string>
#include <vector>

namespace lloyal {

// The importance of each column of one tensor.
struct Importance {
    std::string name;
    std::vector<float> values;
};

struct TensorType {
    std::string pattern; // searched for in tensor names, as a regular expression
    ggml_type type;
};

// What llama_model_quantize_params only borrows.
struct QuantizeInputs {
    std::vector<Importance> imatrix;
    std::vector<llama_model_kv_override> kv_overrides; // without the closing entry
    std::vector<TensorType> tensor_types;
    std::vector<int32_t> prune_layers; // ascending
};

// The files of a split model in order, found from the path of the first; the path alone if it is not split.
Status split_files(const std::string & path, std::vector<std::string> & out) noexcept;

Status quantize(const std::string & source, const std::string & target, llama_model_quantize_params params,
                const QuantizeInputs & inputs) noexcept;

} // namespace lloyal
