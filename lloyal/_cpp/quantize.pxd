# Declarations of quantize.hpp.

from libc.stdint cimport int32_t
from libcpp cimport bool
from libcpp.string cimport string
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core
cimport lloyal.libllama.ggml as g
cimport lloyal.libllama.llama as c

cdef extern from "quantize.hpp" namespace "lloyal" nogil:
    cppclass Importance:
        string name
        vector[float] values
    cppclass TensorType:
        string pattern
        g.ggml_type type
    cppclass QuantizeInputs:
        vector[Importance] imatrix
        vector[c.llama_model_kv_override] kv_overrides
        vector[TensorType] tensor_types
        vector[int32_t] prune_layers

    core.Status split_files(const string& path, vector[string]& out)
    bool can_quantize_to "lloyal::is_weight_type"(g.ggml_type type)
    core.Status quantize(const string& source, const string& target, c.llama_model_quantize_params params,
                         const QuantizeInputs& inputs)
