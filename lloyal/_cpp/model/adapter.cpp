#include "model/adapter.hpp"

#include "core/fence.hpp"
#include "core/fork.hpp"
#include "core/log.hpp"
#include "model/gguf_file.hpp"
#include "model/graph_check.hpp"

#include "llama-adapter.h"
#include "llama-context.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <shared_mutex>

namespace lloyal {
namespace {

// llama.cpp reads these keys without a look at their type, and asserts on another one.
Status check_metadata(const std::string & path) {
    const GgufFile file(path);
    if (!file.meta) {
        return Status(Code::load_failed, path + " cannot be read as GGUF");
    }
    const std::pair<const char *, gguf_type> keys[] = {
        {"general.type", GGUF_TYPE_STRING},
        {"general.architecture", GGUF_TYPE_STRING},
        {"adapter.type", GGUF_TYPE_STRING},
        {"adapter.lora.alpha", GGUF_TYPE_FLOAT32},
    };
    for (const auto & [key, type] : keys) {
        const int64_t id = gguf_find_key(file.meta.get(), key);
        if (id >= 0 && gguf_get_kv_type(file.meta.get(), id) != type) {
            return Status(Code::load_failed,
                          text(path, ": ", key, " is of type ", gguf_type_name(gguf_get_kv_type(file.meta.get(), id)),
                               ", not ", gguf_type_name(type)));
        }
    }
    return {};
}

// llama.cpp compares the first two dimensions only; what else is wrong it finds while computing, and asserts.
Status check_tensors(const llama_model & model, const llama_adapter_lora & adapter, const std::string & path) {
    for (const auto & [name, weight] : adapter.ab_map) {
        const ggml_tensor * base = model.get_tensor(name.c_str());
        for (const ggml_tensor * tensor : {weight.a, weight.b}) {
            if (!is_weight_type(tensor->type)) {
                return Status(Code::load_failed, text(path, ": tensor ", tensor->name, " is of type ",
                                                      ggml_type_name(tensor->type), ", which has no matrix product"));
            }
            if (tensor->ne[2] != base->ne[2] || tensor->ne[3] != base->ne[3]) {
                return Status(Code::load_failed,
                              text(path, ": tensor ", tensor->name, " holds ", tensor->ne[2] * tensor->ne[3],
                                   " matrices, the model's ", name, " ", base->ne[2] * base->ne[3]));
            }
        }
    }
    // The embedding's pair is looked up by row, the others are multiplied; an output that is the embedding would need both.
    const auto embedding = adapter.ab_map.find("token_embd.weight");
    if (embedding != adapter.ab_map.end()) {
        const ggml_tensor * a = embedding->second.a;
        const ggml_tensor * b = embedding->second.b;
        if (a->ne[0] != b->ne[0]) {
            return Status(Code::load_failed,
                          text(path, ": the two halves of token_embd.weight have ranks ", a->ne[0], " and ", b->ne[0]));
        }
        if (model.output && std::string(ggml_get_name(model.output)) == "token_embd.weight") {
            return Status(
                Code::unsupported,
                path + " adapts token_embd.weight, which is this model's output matrix too: llama.cpp cannot do that");
        }
    }
    return {};
}

using AdapterList = decltype(ContextBox::adapters);

// Make llama.cpp use what `box.adapters` lists, and plan the memory that takes.
void install_adapters(ContextBox & box) {
    std::vector<llama_adapter_lora *> natives;
    std::vector<float> scales;
    for (const auto & [adapter, scale] : box.adapters) {
        natives.push_back(adapter->ptr);
        scales.push_back(scale);
    }
    llama_set_adapters_lora(box.ptr, natives.data(), natives.size(), scales.data());
    context_reserve(box);
}

} // namespace

AdapterBox::AdapterBox(llama_adapter_lora * adapter, ModelHandle parent) : ptr(adapter), model(std::move(parent)) {
    ++live_counts().adapters;
}

AdapterBox::~AdapterBox() {
    {
        std::unique_lock<std::shared_mutex> lock(model->adapters_mutex);
        llama_adapter_lora_free(ptr);
    }
    --live_counts().adapters;
}

Status adapter_load(ModelHandle model, const std::string & path, AdapterHandle & out) noexcept {
    return fenced(Input::file, Code::load_failed, [&]() -> Status {
        log_mark();
        if (Status status = check_metadata(path); !status.ok()) {
            return status;
        }
        llama_adapter_lora * adapter;
        {
            std::unique_lock<std::shared_mutex> lock(model->adapters_mutex);
            adapter = llama_adapter_lora_init(model->ptr, path.c_str());
        }
        if (!adapter) {
            return Status(Code::load_failed, path + ": llama.cpp could not load it as an adapter");
        }
        auto box = make_handle<AdapterBox>(adapter, model);
        if (Status status = check_tensors(*model->ptr, *adapter, path); !status.ok()) {
            return status;
        }
        out = std::move(box);
        return {};
    });
}

Status adapters_set(ContextBox & box, const std::vector<AdapterHandle> & adapters,
                    const std::vector<float> & scales) noexcept {
    return fenced(Input::file, Code::out_of_device_memory, [&]() -> Status {
        AdapterList kept;
        for (size_t i = 0; i < adapters.size(); ++i) {
            if (adapters[i]->model != box.model) {
                return Status(Code::invalid_argument, text("adapter ", i, " was loaded for another model"));
            }
            if (!std::isfinite(scales[i])) {
                return Status(Code::invalid_argument, text("scale ", i, " is ", scales[i], ", it must be finite"));
            }
            if (std::find(adapters.begin(), adapters.begin() + i, adapters[i]) != adapters.begin() + i) {
                return Status(Code::invalid_argument, text("adapter ", i, " is given twice: add up the scales"));
            }
            if (scales[i] != 0.0f) {
                kept.emplace_back(adapters[i], scales[i]);
            }
        }
        box.adapters.swap(kept);
        try {
            install_adapters(box);
        } catch (...) {
            box.adapters.swap(kept);
            install_adapters(box);
            throw;
        }
        return {};
    });
}

Status control_vector_set(ContextBox & box, const float * data, size_t len, int32_t n_embd, int32_t il_start,
                          int32_t il_end) noexcept {
    return guarded(Code::out_of_device_memory, [&]() -> Status {
        if (data) {
            const int32_t n_layer = llama_model_n_layer(box.model->ptr);
            const int32_t width = llama_model_n_embd(box.model->ptr);
            if (n_embd != width) {
                return Status(Code::invalid_argument,
                              text("the control vector has rows of ", n_embd, " values, the model's have ", width));
            }
            if (il_start < 1 || il_end < il_start || il_end >= n_layer) {
                return Status(Code::invalid_argument,
                              text("layers ", il_start, " to ", il_end, ": a control vector acts on layers 1 to ",
                                   n_layer - 1, " of this model"));
            }
            if (len % size_t(n_embd) != 0 || len / size_t(n_embd) < size_t(il_end)) {
                return Status(Code::invalid_argument,
                              text("the control vector has ", len / size_t(n_embd), " rows, layers up to ", il_end,
                                   " need ", il_end, " (the first row is for layer 1)"));
            }
            if (box.control_vector_failed) {
                return Status(Code::out_of_device_memory,
                              "this context had no memory for a control vector: make another context");
            }
        }
        log_mark();
        if (llama_set_adapter_cvec(box.ptr, data, len, n_embd, il_start, il_end) != 0) {
            box.control_vector_failed = true; // llama.cpp keeps the half-made tensors and would write through them
            llama_set_adapter_cvec(box.ptr, nullptr, 0, 0, -1, -1);
            return Status(Code::out_of_device_memory, "no memory for the control vector");
        }
        context_reserve(box);
        return {};
    });
}

} // namespace lloyal
