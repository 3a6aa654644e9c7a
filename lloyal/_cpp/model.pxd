# Declarations of model: files, adapters, quantizing, servers, text.

from libc.stdint cimport int32_t
from libcpp cimport bool
from libcpp.map cimport map as cppmap
from libcpp.memory cimport shared_ptr
from libcpp.pair cimport pair
from libcpp.string cimport string
from libcpp.vector cimport vector

cimport lloyal.libllama.ggml as g
cimport lloyal.libllama.llama as c
from lloyal._cpp.core cimport ContextHandle, ModelBox, ModelHandle, Status

cdef extern from "model/adapter.hpp" namespace "lloyal" nogil:
    cppclass AdapterBox:
        c.llama_adapter_lora* ptr
        ModelHandle model
    ctypedef shared_ptr[AdapterBox] AdapterHandle

    Status adapter_load(ModelHandle model, const string& path, AdapterHandle& out)
    Status adapters_set "lloyal::inside<lloyal::adapters_set>"(
        const ContextHandle& ctx, const vector[AdapterHandle]& adapters, const vector[float]& scales)
    Status control_vector_set "lloyal::inside<lloyal::control_vector_set>"(
        const ContextHandle& ctx, const float* data, size_t len, int32_t n_embd, int32_t il_start,
        int32_t il_end)

cdef extern from "model/quantize.hpp" namespace "lloyal" nogil:
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

    Status split_files(const string& path, vector[string]& out)
    bool can_quantize_to "lloyal::is_weight_type"(g.ggml_type type)
    Status quantize(const string& source, const string& target, c.llama_model_quantize_params params,
                    const QuantizeInputs& inputs)

cdef extern from "model/rpc.hpp" namespace "lloyal" nogil:
    cppclass RpcConnection:
        string endpoint
    ctypedef shared_ptr[RpcConnection] RpcHandle

    RpcHandle rpc_connected(const string& endpoint)
    Status rpc_connect(const string& endpoint, RpcHandle& out)
    Status rpc_devices(const string& endpoint, vector[g.ggml_backend_dev_t]& out)
    string rpc_endpoint(g.ggml_backend_dev_t device)
    void model_keep(ModelBox& model, const RpcHandle& connection)
    Status rpc_serve(const string& endpoint, const string& cache_dir, size_t n_threads,
                     vector[g.ggml_backend_dev_t]& devices)

cdef extern from "model/vocab.hpp" namespace "lloyal" nogil:
    Status tokenize(const c.llama_vocab* vocab, const char* data, size_t size, bool add_special, bool parse_special,
                    vector[c.llama_token]& out)
    Status detokenize(const c.llama_vocab* vocab, const vector[c.llama_token]& tokens, bool remove_special,
                      bool unparse_special, string& out)
    Status token_to_piece(const c.llama_vocab* vocab, c.llama_token token, bool special, string& out)
    Status token_embedding(ModelBox& model, float* out, size_t& n)

# Only the extension `common` links what is behind these.
cdef extern from "model/common.hpp" namespace "lloyal" nogil:
    cppclass ChatInputs:
        string messages
        string tools
        string tool_choice
        string grammar
        string json_schema
        cppmap[string, string] kwargs
        bool add_generation_prompt
        bool enable_thinking
        bool parallel_tool_calls
    cppclass ChatPrompt:
        string prompt
        string generation_prompt
        string grammar
        bool grammar_lazy
        vector[pair[int, string]] grammar_triggers
        vector[string] stops
        vector[string] preserved_tokens
        bool supports_thinking
        string thinking_start_tag
        vector[string] thinking_end_tags
        int format
        string parser
    cppclass ChatTemplates:
        string source(const string& variant) except +
        cppmap[string, bool] capabilities() except +
        Status apply(const ChatInputs& inputs, ChatPrompt& out)
    ctypedef shared_ptr[ChatTemplates] ChatTemplatesHandle

    Status grammar_from_json_schema(const string& schema, string& out)
    Status chat_templates_load(ModelHandle model, const string& source, ChatTemplatesHandle& out)
    Status chat_parse(const ChatPrompt& prompt, const string& answer, bool partial, string& message)
