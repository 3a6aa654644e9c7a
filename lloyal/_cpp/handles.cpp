#include "handles.hpp"

#include "log.hpp"

#include "llama-context.h"
#include "llama-model.h"

namespace lloyal {
namespace {

constexpr int64_t POLL_INTERVAL_US = 20'000; // Ctrl-C must stop a prefill within 200 ms

// llama.cpp calls this between graph nodes, on the thread that called decode.
bool on_abort_check(void * data) {
    auto & box = *static_cast<ContextBox *>(data);
    if (box.abort_requested.load(std::memory_order_relaxed)) {
        return true;
    }
    if (box.poll) {
        const int64_t now = llama_time_us();
        if (now >= box.poll_after_us) {
            box.poll_after_us = now + POLL_INTERVAL_US;
            if (box.poll()) {
                box.abort_requested.store(true, std::memory_order_relaxed);
                return true;
            }
        }
    }
    return false;
}

} // namespace

LiveCounts & live_counts() {
    static LiveCounts counts;
    return counts;
}

ContextBox::ContextBox(ModelHandle parent, llama_context * context)
    : model(std::move(parent)), ptr(context), memory(llama_get_memory(context)), id(random_epoch()),
      map(*model->ptr, *context, memory), provenance(id, int32_t(llama_n_seq_max(context))) {
    llama_set_abort_callback(ptr, on_abort_check, this);
    ++live_counts().contexts;
}

ContextBox::~ContextBox() {
    llama_free(ptr);
    --live_counts().contexts;
}

Status model_load(const std::vector<std::string> & paths, llama_model_params params,
                  const std::vector<ggml_backend_dev_t> & devices, const std::vector<float> & tensor_split,
                  ModelHandle & out) noexcept {
    return guarded(Code::load_failed, [&]() -> Status {
        log_mark();
        std::vector<ggml_backend_dev_t> owned_devices = devices;
        std::vector<float> owned_split = tensor_split;
        if (!owned_devices.empty()) {
            owned_devices.push_back(nullptr);
            params.devices = owned_devices.data();
        }
        if (!owned_split.empty()) {
            owned_split.resize(llama_max_devices(), 0.0f);
            params.tensor_split = owned_split.data();
        }
        llama_model * model;
        if (paths.size() == 1) {
            model = llama_model_load_from_file(paths[0].c_str(), params);
        } else {
            std::vector<const char *> names;
            for (const std::string & path : paths) {
                names.push_back(path.c_str());
            }
            model = llama_model_load_from_splits(names.data(), names.size(), params);
        }
        if (!model) {
            return Status(Code::load_failed, "llama.cpp could not load it");
        }
        out = std::make_shared<ModelBox>(model);
        out->devices = std::move(owned_devices);
        out->tensor_split = std::move(owned_split);
        return {};
    });
}

Status context_create(ModelHandle model, llama_context_params params, PollFn poll, ContextHandle & out) noexcept {
    return guarded(Code::load_failed, [&]() -> Status {
        log_mark();
        llama_context * context = llama_init_from_model(model->ptr, params);
        if (!context) {
            return Status(Code::load_failed, "llama.cpp could not create a context");
        }
        out = std::make_shared<ContextBox>(std::move(model), context);
        out->poll = poll;
        return {};
    });
}

} // namespace lloyal
