#include "model/cpu.hpp"

#include "core/status.hpp"

#include "llama-arch.h"
#include "llama-ext.h"
#include "llama-model.h"

#include "ggml-alloc.h"
#include "ggml-backend.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

namespace lloyal {
namespace {

ggml_backend_dev_t cpu_device() {
    return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
}

template <typename Function> Function cpu_function(const char * name) {
    return reinterpret_cast<Function>(
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(cpu_device()), name));
}

bool cpu_has(const char * feature) {
    const auto features = cpu_function<ggml_backend_get_features_t>("ggml_backend_get_features");
    for (auto * each = features ? features(ggml_backend_dev_backend_reg(cpu_device())) : nullptr; each && each->name;
         ++each) {
        if (std::strcmp(each->name, feature) == 0) {
            return std::strcmp(each->value, "0") != 0;
        }
    }
    return false;
}

struct BufferDeleter {
    void operator()(ggml_backend_buffer_t buffer) const { ggml_backend_buffer_free(buffer); }
    void operator()(ggml_backend_t backend) const { ggml_backend_free(backend); }
};
using Buffer = std::unique_ptr<ggml_backend_buffer, BufferDeleter>;
using Backend = std::unique_ptr<ggml_backend, BufferDeleter>;
using Tensors = std::unique_ptr<ggml_context, GgufDeleter>;

// How a graph multiplies weights with rows of values.
enum class Form : uint8_t {
    rows,      // one matrix, the rows of a batch
    sequences, // one matrix, the rows of each sequence apart
    matrices,  // a matrix for each head
    experts,   // matrices that each token chooses, for rows of its own
    expert_up, // the same for one row of each token
};

constexpr int64_t LENGTH = 512; // of a row: whole blocks of every type
constexpr int64_t OUTPUTS = 64;
constexpr int64_t MATRICES = 3;
constexpr int64_t TOKENS = 5;

// Numbers without a pattern that a wrong stride would leave in place.
std::vector<float> numbers(int64_t count, uint32_t state) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float & value : values) {
        state = state * 1664525 + 1013904223;
        value = float(int32_t(state) >> 8) / float(1 << 23);
    }
    return values;
}

std::vector<uint8_t> quantized(ggml_type type, int64_t rows) {
    const std::vector<float> values = numbers(LENGTH * rows, 1);
    const std::vector<float> importance(LENGTH, 1.0f);
    std::vector<uint8_t> out(ggml_row_size(type, LENGTH) * size_t(rows));
    ggml_quantize_chunk(type, values.data(), out.data(), 0, rows, LENGTH, importance.data());
    return out;
}

ggml_tensor * product(ggml_context * context, ggml_tensor * weights, ggml_tensor * values, ggml_tensor * ids) {
    return ids ? ggml_mul_mat_id(context, weights, values, ids) : ggml_mul_mat(context, weights, values);
}

// True as well where the buffer type does not take such weights: they stay plain then.
bool computes_right(ggml_backend_buffer_type_t repacking, ggml_type type, Form form) {
    const ggml_init_params params{ggml_tensor_overhead() * 16 + ggml_graph_overhead(), nullptr, /*.no_alloc =*/true};
    const Tensors kept(ggml_init(params)); // before what points to them
    const Tensors plain(ggml_init(params));
    const bool chooses = form == Form::experts || form == Form::expert_up;
    const int64_t matrices = form == Form::matrices || chooses ? MATRICES : 1;
    ggml_tensor * repacked = ggml_new_tensor_3d(kept.get(), type, LENGTH, OUTPUTS, matrices);
    ggml_tensor * weights = ggml_new_tensor_3d(plain.get(), type, LENGTH, OUTPUTS, matrices);
    ggml_tensor * ids = chooses ? ggml_new_tensor_2d(plain.get(), GGML_TYPE_I32, 2, TOKENS) : nullptr;
    ggml_tensor * values =
        ids ? ggml_new_tensor_3d(plain.get(), GGML_TYPE_F32, LENGTH, form == Form::experts ? 2 : 1, TOKENS)
            : ggml_new_tensor_3d(plain.get(), GGML_TYPE_F32, LENGTH, TOKENS, form == Form::rows ? 1 : MATRICES);
    ggml_tensor * right = product(plain.get(), weights, values, ids);
    ggml_tensor * shown = product(plain.get(), repacked, values, ids);

    const Buffer kept_buffer(ggml_backend_alloc_ctx_tensors_from_buft(kept.get(), repacking));
    if (!kept_buffer || !ggml_backend_dev_supports_op(cpu_device(), shown)) {
        return true;
    }
    const Buffer buffer(
        ggml_backend_alloc_ctx_tensors_from_buft(plain.get(), ggml_backend_dev_buffer_type(cpu_device())));
    const Backend backend(ggml_backend_dev_init(cpu_device(), nullptr));
    if (!buffer || !backend) {
        throw Failure(Code::load_failed, "no memory to try how weights are repacked");
    }
    if (const auto threads = cpu_function<ggml_backend_set_n_threads_t>("ggml_backend_set_n_threads")) {
        threads(backend.get(), 1);
    }
    const std::vector<uint8_t> bytes = quantized(type, OUTPUTS * matrices);
    ggml_backend_tensor_set(weights, bytes.data(), 0, bytes.size());
    ggml_backend_tensor_set(repacked, bytes.data(), 0, bytes.size());
    const std::vector<float> rows = numbers(ggml_nelements(values), 2);
    ggml_backend_tensor_set(values, rows.data(), 0, ggml_nbytes(values));
    if (ids) {
        std::vector<int32_t> chosen(2 * TOKENS);
        for (size_t i = 0; i < chosen.size(); ++i) {
            chosen[i] = int32_t((i + i / 2) % MATRICES);
        }
        ggml_backend_tensor_set(ids, chosen.data(), 0, ggml_nbytes(ids));
    }
    ggml_cgraph * graph = ggml_new_graph_custom(plain.get(), 8, false);
    ggml_build_forward_expand(graph, right);
    ggml_build_forward_expand(graph, shown);
    if (ggml_backend_graph_compute(backend.get(), graph) != GGML_STATUS_SUCCESS) {
        return false;
    }
    std::vector<float> a(static_cast<size_t>(ggml_nelements(right)));
    std::vector<float> b(a.size());
    ggml_backend_tensor_get(right, a.data(), 0, ggml_nbytes(right));
    ggml_backend_tensor_get(shown, b.data(), 0, ggml_nbytes(shown));
    double size = 0;
    double apart = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        size += double(a[i]) * a[i];
        apart += (double(a[i]) - b[i]) * (double(a[i]) - b[i]);
    }
    // Both round the values, each its own way: a few thousandths. A row at the wrong place is an error as large as itself.
    return apart < 1e-3 * size;
}

bool computes_right(ggml_type type, Form form) {
    static std::mutex mutex;
    static std::map<std::tuple<ggml_type, Form>, bool> known;
    const std::lock_guard lock(mutex);
    if (const auto found = known.find({type, form}); found != known.end()) {
        return found->second;
    }
    bool right = true;
    const auto extra = cpu_function<ggml_backend_dev_get_extra_bufts_t>("ggml_backend_dev_get_extra_bufts");
    for (auto * each = extra ? extra(cpu_device()) : nullptr; each && *each; ++each) {
        right = right && computes_right(*each, type, form);
    }
    return known[{type, form}] = right;
}

} // namespace

void Repacking::add(const GgufFile & file) {
    const int64_t arch = gguf_find_key(file.meta.get(), "general.architecture");
    if (arch >= 0 && gguf_get_kv_type(file.meta.get(), arch) == GGUF_TYPE_STRING) {
        const llm_arch known = llm_arch_from_string(gguf_get_val_str(file.meta.get(), arch));
        batches_of_sequences_ = batches_of_sequences_ || llm_arch_is_recurrent(known) || llm_arch_is_hybrid(known);
    }
    for (ggml_tensor * tensor = ggml_get_first_tensor(file.tensors.get()); tensor;
         tensor = ggml_get_next_tensor(file.tensors.get(), tensor)) {
        const std::pair kind(tensor->type, tensor->ne[2] > 1);
        if (tensor->ne[1] > 1 && std::find(weights_.begin(), weights_.end(), kind) == weights_.end()) {
            weights_.push_back(kind);
        }
    }
}

bool Repacking::is_right() const {
    return std::all_of(weights_.begin(), weights_.end(), [this](const auto & kind) {
        const auto & [type, several] = kind;
        return several ? computes_right(type, Form::matrices) && computes_right(type, Form::experts) &&
                             computes_right(type, Form::expert_up)
                       : computes_right(type, Form::rows) &&
                             (!batches_of_sequences_ || computes_right(type, Form::sequences));
    });
}

bool flash_attention_is_slow(const llama_model & model, const llama_context_params & params) {
    if (ggml_is_quantized(params.type_v) || model.split_mode() == LLAMA_SPLIT_MODE_TENSOR) {
        return false; // which need it
    }
    // ggml-cpu's kernel takes so many values of a head at once, and what is left one by one.
    const uint32_t step = cpu_has("AVX512") ? 64 : 32;
    const llama_hparams & hparams = model.hparams;
    for (uint32_t il = 0; il < hparams.n_layer(); ++il) {
        const bool on_cpu =
            !params.offload_kqv || ggml_backend_dev_type(model.dev_layer(int(il))) == GGML_BACKEND_DEVICE_TYPE_CPU;
        const bool attends = hparams.n_head_kv(il) > 0; // some recurrent layers do, too
        if (on_cpu && attends && (hparams.n_embd_head_k(il) % step != 0 || hparams.n_embd_head_v(il) % step != 0)) {
            return true;
        }
    }
    return false;
}

} // namespace lloyal
