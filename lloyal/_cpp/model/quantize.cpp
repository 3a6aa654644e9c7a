#include "model/quantize.hpp"

#include "core/fence.hpp"
#include "core/log.hpp"
#include "model/gguf_file.hpp"
#include "model/load_check.hpp"

#include "llama-ext.h"

#include <algorithm>

namespace lloyal {
namespace {

Status unreadable(const std::string & path) {
    return Status(Code::load_failed, path + " cannot be read as GGUF");
}

// The two matrices whose type the caller can name, and which llama.cpp then takes as they are: no fallback for rows
// that do not divide into blocks, no complaint about a missing importance.
Status check_named(const ggml_tensor & tensor, ggml_type type, const QuantizeInputs & inputs, bool dry_run) {
    if (type >= GGML_TYPE_COUNT) {
        return {};
    }
    if (tensor.ne[0] % ggml_blck_size(type) != 0) {
        return Status(Code::invalid_argument,
                      text("type ", ggml_type_name(type), " needs rows of a multiple of ", ggml_blck_size(type),
                           " values, ", tensor.name, " has ", tensor.ne[0]));
    }
    if (dry_run || !ggml_quantize_requires_imatrix(type)) {
        return {};
    }
    const bool covered = std::any_of(inputs.imatrix.begin(), inputs.imatrix.end(), [&](const Importance & entry) {
        return entry.name == tensor.name && entry.values.size() == size_t(tensor.ne[0] * tensor.ne[2]);
    });
    return covered
               ? Status()
               : Status(Code::invalid_argument, text("type ", ggml_type_name(type), " needs an importance matrix with ",
                                                     tensor.ne[0] * tensor.ne[2], " values for ", tensor.name));
}

Status check_sources(const std::vector<std::string> & files, const llama_model_quantize_params & params,
                     const QuantizeInputs & inputs) {
    // In a pure quantization, and where a pattern says so, the two are treated like any other matrix.
    std::vector<ggml_type> embedding{params.token_embedding_type, params.output_tensor_type};
    std::vector<ggml_type> output{params.output_tensor_type};
    for (std::vector<ggml_type> * types : {&embedding, &output}) {
        if (params.pure) {
            const ggml_type type = llama_ftype_get_default_type(params.ftype);
            types->push_back(ggml_quantize_requires_imatrix(type) ? type : GGML_TYPE_COUNT);
        }
        for (const TensorType & entry : inputs.tensor_types) {
            types->push_back(ggml_quantize_requires_imatrix(entry.type) ? entry.type : GGML_TYPE_COUNT);
        }
    }
    for (size_t i = 0; i < files.size(); ++i) {
        const GgufFile file(files[i]);
        if (!file.meta) {
            return unreadable(files[i]);
        }
        if (Status status = check_file(file, params.kv_overrides); !status.ok()) {
            return status;
        }
        if (gguf_get_alignment(file.meta.get()) != GGUF_DEFAULT_ALIGNMENT) {
            return Status(Code::unsupported, text(files[i], " is aligned to ", gguf_get_alignment(file.meta.get()),
                                                  " bytes, llama.cpp writes only ", GGUF_DEFAULT_ALIGNMENT));
        }
        if (params.keep_split && i > 0 && gguf_get_n_tensors(file.meta.get()) == 0) {
            return Status(Code::unsupported, files[i] + " holds no tensors: keep_split=False joins the parts");
        }
        const std::pair<const char *, const std::vector<ggml_type> *> named[] = {
            {"token_embd.weight", &embedding}, {"per_layer_token_embd.weight", &embedding}, {"output.weight", &output}};
        for (const auto & [name, types] : named) {
            const ggml_tensor * tensor = file.find(name);
            for (const ggml_type type : *types) {
                if (Status status = tensor ? check_named(*tensor, type, inputs, params.dry_run) : Status();
                    !status.ok()) {
                    return status;
                }
            }
        }
    }
    return {};
}

} // namespace

Status split_files(const std::string & path, std::vector<std::string> & out) noexcept {
    return fenced(Input::file, Code::load_failed, [&]() -> Status {
        const GgufFile file(path);
        if (!file.meta) {
            return unreadable(path);
        }
        out = {path};
        const int64_t key = gguf_find_key(file.meta.get(), "split.count");
        if (key < 0 || gguf_get_kv_type(file.meta.get(), key) != GGUF_TYPE_UINT16) {
            return {};
        }
        const int32_t count = gguf_get_val_u16(file.meta.get(), key);
        if (count < 2) {
            return {};
        }
        std::vector<char> buffer(path.size() + 64);
        if (llama_split_prefix(buffer.data(), buffer.size(), path.c_str(), 0, count) == 0) {
            return Status(Code::load_failed,
                          text(path, " is one of ", count, " parts, but not named like the first of them"));
        }
        const std::string prefix = buffer.data();
        out.clear();
        for (int32_t i = 0; i < count; ++i) {
            llama_split_path(buffer.data(), buffer.size(), prefix.c_str(), i, count);
            out.emplace_back(buffer.data());
        }
        return {};
    });
}

Status quantize(const std::string & source, const std::string & target, llama_model_quantize_params params,
                const QuantizeInputs & inputs) noexcept {
    return fenced(Input::file, Code::load_failed, [&]() -> Status {
        std::vector<std::string> files;
        if (Status status = split_files(source, files); !status.ok()) {
            return status;
        }
        std::vector<llama_model_kv_override> overrides = inputs.kv_overrides;
        if (!overrides.empty()) {
            overrides.push_back({});
            params.kv_overrides = overrides.data();
        }
        if (Status status = check_sources(files, params, inputs); !status.ok()) {
            return status;
        }
        std::vector<llama_model_imatrix_data> imatrix;
        for (const Importance & entry : inputs.imatrix) {
            imatrix.push_back({entry.name.c_str(), entry.values.data(), entry.values.size()});
        }
        if (!imatrix.empty()) {
            imatrix.push_back({nullptr, nullptr, 0});
            params.imatrix = imatrix.data();
        }
        std::vector<llama_model_tensor_override> types;
        for (const TensorType & entry : inputs.tensor_types) {
            types.push_back({entry.pattern.c_str(), entry.type});
        }
        if (!types.empty()) {
            types.push_back({nullptr, GGML_TYPE_COUNT});
            params.tt_overrides = types.data();
        }
        std::vector<int32_t> prune = inputs.prune_layers;
        if (!prune.empty()) {
            prune.push_back(-1);
            params.prune_layers = prune.data();
        }
        log_mark();
        if (llama_model_quantize(source.c_str(), target.c_str(), &params) != 0) {
            const std::string log = log_last();
            return Status(Code::load_failed, source + " could not be quantized" + (log.empty() ? "" : ": " + log));
        }
        return {};
    });
}

} // namespace lloyal
