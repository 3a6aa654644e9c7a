#include "model/load_check.hpp"

#include "core/fence.hpp"
#include "core/fork.hpp"
#include "core/handles.hpp"
#include "core/log.hpp"
#include "core/pattern.hpp"
#include "model/cpu.hpp"
#include "model/gguf_file.hpp"
#include "model/quantize.hpp"

#include "guard.h"
#include "llama-ext.h"
#include "llama-model.h"

#include "ggml-backend-impl.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <optional>

namespace lloyal {
namespace {

// Values of the file's metadata that llama.cpp takes as they are, and aborts or hangs on when it computes.
Status check_hparams(const llama_model & model) {
    const llama_hparams & hparams = model.hparams;
    if (hparams.vocab_only) {
        return {};
    }
    const std::pair<const char *, float> eps[] = {{"layer_norm_epsilon", hparams.f_norm_eps},
                                                  {"layer_norm_rms_epsilon", hparams.f_norm_rms_eps},
                                                  {"group_norm_epsilon", hparams.f_norm_group_eps}};
    for (const auto & [key, value] : eps) {
        if (!std::isfinite(value) || value < 0) {
            return Status(Code::load_failed, text("the metadata's attention.", key, " is ", value,
                                                  ": it must be finite and not negative"));
        }
    }
    // A cache is allocated, and zeroed, before a graph shows that no weight has such heads.
    constexpr uint32_t LARGEST_HEAD = 1 << 16;
    for (uint32_t il = 0; il < hparams.n_layer(); ++il) {
        const uint32_t n = std::max(hparams.n_embd_head_k(il), hparams.n_embd_head_v(il));
        if (n > LARGEST_HEAD) {
            return Status(Code::load_failed, text("the metadata gives the heads of layer ", il, " ", n,
                                                  " values, more than ", LARGEST_HEAD));
        }
    }
    for (uint32_t il = 0; llama_model_rope_type(&model) != LLAMA_ROPE_TYPE_NONE && il < hparams.n_layer(); ++il) {
        const uint32_t n_rot = hparams.n_rot(il);
        const bool rotates = hparams.n_head(il) > 0 && !hparams.is_recr(il);
        if (rotates &&
            (n_rot == 0 || n_rot % 2 != 0 || n_rot > std::max(hparams.n_embd_head_k(il), hparams.n_embd_head_v(il)))) {
            return Status(Code::load_failed,
                          text("the metadata's rope.dimension_count is ", int32_t(n_rot), " in layer ", il,
                               ": it must be even, from 2 to the ", hparams.n_embd_head_k(il), " values of a head"));
        }
    }
    return {};
}

constexpr int64_t MAX_TOKENS_WITHOUT_TEXT = 1 << 22;
constexpr uint64_t MAX_PLACING = 20'000'000; // steps of a load that places tensors by patterns

Status place_tensors(const std::vector<std::string> & patterns, const std::vector<ggml_backend_dev_t> & places,
                     TensorPlaces & out) {
    if (patterns.size() >= llama_max_tensor_buft_overrides()) {
        return Status(Code::invalid_argument, text("tensor_buft_overrides has ", patterns.size(),
                                                   " patterns, there may be ", llama_max_tensor_buft_overrides() - 1));
    }
    out.patterns = patterns;
    for (size_t i = 0; i < patterns.size(); ++i) {
        try {
            (void)Pattern(patterns[i]);
        } catch (const PatternError & e) {
            return Status(Code::invalid_argument,
                          "tensor_buft_overrides: '" + patterns[i] + "' is no regular expression: " + e.what());
        }
        out.list.push_back({out.patterns[i].c_str(), ggml_backend_dev_buffer_type(places[i])});
    }
    if (!out.list.empty()) {
        out.list.push_back({nullptr, nullptr});
    }
    return {};
}

// A context can only compute on the processor and on the devices of its model.
Status check_places(const llama_model & model, const std::vector<std::string> & patterns,
                    const std::vector<ggml_backend_dev_t> & places) {
    for (size_t i = 0; i < places.size(); ++i) {
        bool known = ggml_backend_dev_type(places[i]) == GGML_BACKEND_DEVICE_TYPE_CPU;
        for (int device = 0; device < llama_model_n_devices(&model); ++device) {
            known = known || llama_model_get_device(&model, device) == places[i];
        }
        if (!known) {
            return Status(Code::invalid_argument, "tensor_buft_overrides: '" + patterns[i] + "' goes to " +
                                                      ggml_backend_dev_name(places[i]) +
                                                      ", which the model does not use: name it in devices= too");
        }
    }
    return {};
}

// Tensors that llama.cpp calls optional and computes with all the same.
Status check_present(const llama_model & model) {
    const bool decodes = model.arch == LLM_ARCH_T5;
    if ((!decodes && model.arch != LLM_ARCH_T5ENCODER) || model.layers.empty()) {
        return {};
    }
    // With fewer or more buckets llama.cpp's formula for the bucket of a distance divides by zero, or takes log(1) for one.
    if (model.hparams.n_rel_attn_bkts < 4 || model.hparams.n_rel_attn_bkts > 255) {
        return Status(Code::load_failed, text("the metadata's attention.relative_buckets_count is ",
                                              model.hparams.n_rel_attn_bkts, ": it must be from 4 to 255"));
    }
    // Layers without a bias of positions use that of the first one.
    const llama_layer & first = model.layers[0];
    if (!first.attn_rel_b_enc || (decodes && !first.attn_rel_b)) {
        return Status(Code::load_failed,
                      text("tensor '", first.attn_rel_b_enc ? "dec" : "enc", ".blk.0.attn_rel_b.weight' is missing"));
    }
    return {};
}

// Vocabularies that llama.cpp's tokenizer never comes to an end with.
Status check_vocab(const llama_model & model) {
    const llama_vocab * vocab = llama_model_get_vocab(&model);
    if (llama_vocab_type(vocab) != LLAMA_VOCAB_TYPE_RWKV) {
        return {};
    }
    // Where a token begins with a byte that is no token itself, the longest match can be none, and it starts over.
    std::array<bool, 256> begins{};
    std::array<bool, 256> is_token{};
    std::vector<char> piece(64);
    for (llama_token token = 0; token < llama_vocab_n_tokens(vocab); ++token) {
        int32_t n = llama_token_to_piece(vocab, token, piece.data(), int32_t(piece.size()), 0, true);
        if (n < 0) {
            piece.resize(size_t(-n));
            n = llama_token_to_piece(vocab, token, piece.data(), int32_t(piece.size()), 0, true);
        }
        if (n > 0) {
            const auto first = uint8_t(piece[0]);
            begins[first] = true;
            is_token[first] = is_token[first] || n == 1;
        }
    }
    for (size_t byte = 0; byte < begins.size(); ++byte) {
        if (begins[byte] && !is_token[byte]) {
            return Status(Code::load_failed, text("the vocabulary has tokens that begin with byte ", byte,
                                                  ", but not the byte: its tokenizer needs both"));
        }
    }
    return {};
}

// Names, types, shapes and a few bytes of every tensor, by name: the same whatever the device, its way of storing
// weights, and the number of files.
class Sample {
  public:
    void add(const std::string & path, const GgufFile & file) {
        std::ifstream data(path, std::ios::binary);
        const size_t start = gguf_get_data_offset(file.meta.get());
        for (int64_t i = 0; i < gguf_get_n_tensors(file.meta.get()); ++i) {
            const char * name = gguf_get_tensor_name(file.meta.get(), i);
            const ggml_tensor & tensor = *file.find(name);
            std::vector<uint8_t> & entry = entries_[name];
            append(entry, name, std::strlen(name) + 1);
            append(entry, &tensor.type, sizeof tensor.type);
            append(entry, tensor.ne, sizeof tensor.ne);
            // From the middle: the first rows of an embedding often belong to unused tokens.
            const size_t size = ggml_nbytes(&tensor);
            char bytes[LENGTH];
            const size_t n = std::min(sizeof bytes, size);
            data.seekg(std::streamoff(start + gguf_get_tensor_offset(file.meta.get(), i) + (size - n) / 2));
            if (!data.read(bytes, std::streamsize(n))) {
                throw Failure(Code::load_failed, text("tensor '", name, "' is not all there"));
            }
            append(entry, bytes, n);
        }
    }

    std::vector<uint8_t> take() {
        std::vector<uint8_t> all;
        for (const auto & [name, entry] : entries_) {
            all.insert(all.end(), entry.begin(), entry.end());
        }
        return all;
    }

  private:
    static constexpr size_t LENGTH = 64;
    std::map<std::string, std::vector<uint8_t>> entries_;

    static void append(std::vector<uint8_t> & out, const void * data, size_t size) {
        const auto * bytes = static_cast<const uint8_t *>(data);
        out.insert(out.end(), bytes, bytes + size);
    }
};

// Split tensors have no address of their own, but over host memory alone they say that they lie in it; llama.cpp reads a
// file right there, unless it maps it.
Status check_split(const llama_model_params & params, const std::vector<ggml_backend_dev_t> & devices) {
    const bool mapped = params.load_mode == LLAMA_LOAD_MODE_MMAP || params.load_mode == LLAMA_LOAD_MODE_MMAP_MLOCK;
    const auto in_host_memory = [](ggml_backend_dev_t device) {
        return device && ggml_backend_buft_is_host(ggml_backend_dev_buffer_type(device));
    };
    return params.split_mode == LLAMA_SPLIT_MODE_TENSOR && !mapped && !devices.empty() &&
                   std::all_of(devices.begin(), devices.end(), in_host_memory)
               ? Status(Code::unsupported, "split_mode=\"tensor\" over devices that compute in host memory needs "
                                           "use_mmap=True")
               : Status();
}

} // namespace

Status check_file(const GgufFile & file, const llama_model_kv_override * overrides) {
    const gguf_context * meta = file.meta.get();
    // llama.cpp makes room for so many layers, 2.5 kB each, and tokens without a text before it looks for their tensors.
    const auto n_tensors = std::max<int64_t>(gguf_get_n_tensors(meta), 512);
    const auto too_many = [&](const std::string & key, int64_t value) -> Status {
        const bool layers = key.ends_with("block_count");
        if ((layers && value > n_tensors) || (key.ends_with("vocab_size") && value > MAX_TOKENS_WITHOUT_TEXT)) {
            return Status(Code::load_failed,
                          text("the metadata's ", key, " is ", value, ", it may be at most ",
                               layers ? n_tensors : MAX_TOKENS_WITHOUT_TEXT,
                               layers ? text(" with the ", gguf_get_n_tensors(meta), " tensors of the file") : ""));
        }
        return {};
    };
    for (int64_t i = 0; i < gguf_get_n_kv(meta); ++i) {
        if (gguf_get_kv_type(meta, i) == GGUF_TYPE_UINT32) {
            if (Status bad = too_many(gguf_get_key(meta, i), gguf_get_val_u32(meta, i)); !bad.ok()) {
                return bad;
            }
        }
    }
    for (; overrides && overrides->key[0] != 0; ++overrides) {
        if (overrides->tag == LLAMA_KV_OVERRIDE_TYPE_INT) {
            // As llama.cpp takes it: the lower 32 bits.
            if (Status bad = too_many(overrides->key, uint32_t(overrides->val_i64)); !bad.ok()) {
                return bad;
            }
        }
    }
    const int64_t tokens = gguf_find_key(meta, "tokenizer.ggml.tokens");
    if (tokens >= 0 && (gguf_get_kv_type(meta, tokens) != GGUF_TYPE_ARRAY || gguf_get_arr_n(meta, tokens) == 0)) {
        return Status(Code::load_failed, "the metadata's tokenizer.ggml.tokens holds no tokens");
    }
    for (int64_t i = 0; i < gguf_get_n_tensors(meta); ++i) {
        const char * name = gguf_get_tensor_name(meta, i);
        if (ggml_nelements(file.find(name)) == 0) {
            return Status(Code::load_failed, text("tensor '", name, "' holds no values"));
        }
    }
    return {};
}

Status model_load(const std::vector<std::string> & paths, llama_model_params params,
                  const std::vector<ggml_backend_dev_t> & devices, const std::vector<float> & tensor_split,
                  const std::vector<std::string> & patterns, const std::vector<ggml_backend_dev_t> & places,
                  bool choose_extra_bufts, ModelHandle & out) noexcept {
    return fenced(Input::file, Code::load_failed, [&]() -> Status {
        log_mark();
        if (Status bad = check_split(params, devices); !bad.ok()) {
            return bad;
        }
        // The caller's own code.
        std::pair<llama_progress_callback, void *> progress(params.progress_callback,
                                                            params.progress_callback_user_data);
        if (progress.first) {
            params.progress_callback = [](float done, void * data) {
                const FencePause pause;
                const auto & [callback, user_data] = *static_cast<decltype(progress) *>(data);
                return callback(done, user_data);
            };
            params.progress_callback_user_data = &progress;
        }
        std::vector<ggml_backend_dev_t> owned_devices = devices;
        std::vector<float> owned_split = tensor_split;
        if (!owned_devices.empty()) {
            owned_devices.push_back(nullptr);
            params.devices = owned_devices.data();
        }
        TensorPlaces owned_places;
        if (Status bad = place_tensors(patterns, places, owned_places); !bad.ok()) {
            return bad;
        }
        if (!owned_places.list.empty()) {
            params.tensor_buft_overrides = owned_places.list.data();
        }
        if (!owned_split.empty()) {
            owned_split.resize(llama_max_devices(), 0.0f);
            params.tensor_split = owned_split.data();
        }
        std::vector<std::string> files = paths;
        if (paths.size() == 1) {
            if (Status bad = split_files(paths[0], files); !bad.ok()) {
                return bad;
            }
        }
        Sample sample;
        Repacking repacking;
        for (const std::string & path : files) {
            const GgufFile file(path);
            if (!file.meta) {
                return Status(Code::load_failed, path + " cannot be read as GGUF");
            }
            if (Status bad = check_file(file, params.kv_overrides); !bad.ok()) {
                return bad;
            }
            if (!params.vocab_only) {
                sample.add(path, file);
                repacking.add(file);
            }
        }
        if (choose_extra_bufts) {
            params.use_extra_bufts = repacking.is_right();
        }
        llama_model * model;
        lloyal_budget budget; // llama.cpp searches tensors' names with std::regex
        budget.steps = MAX_PLACING;
        {
            std::optional<lloyal_budget_scope> scope;
            if (!owned_places.list.empty()) {
                scope.emplace(budget);
            }
            if (paths.size() == 1) {
                model = llama_model_load_from_file(paths[0].c_str(), params);
            } else {
                std::vector<const char *> names;
                for (const std::string & path : paths) {
                    names.push_back(path.c_str());
                }
                model = llama_model_load_from_splits(names.data(), names.size(), params);
            }
        }
        if (!model && budget.broken != lloyal_budget::limit::none) {
            return Status(Code::invalid_argument,
                          text("tensor_buft_overrides: to find the tensors takes more than ", MAX_PLACING, " steps"));
        }
        if (!model) {
            return Status(Code::load_failed, "llama.cpp could not load it");
        }
        out = make_handle<ModelBox>(model);
        out->devices = std::move(owned_devices);
        out->tensor_split = std::move(owned_split);
        out->sample = sample.take();
        out->extra_bufts = params.use_extra_bufts && !params.vocab_only;
        out->places = std::move(owned_places); // moving keeps the strings where the list points
        Status bad = check_hparams(*model);
        if (bad.ok() && !params.vocab_only) {
            bad = check_present(*model);
        }
        if (bad.ok()) {
            bad = check_vocab(*model);
        }
        if (bad.ok()) {
            bad = check_places(*model, patterns, places);
        }
        if (!bad.ok()) {
            out.reset();
        }
        return bad;
    });
}

Status model_save(ModelBox & model, const std::string & path) noexcept {
    return fenced(Input::file, Code::decode_failed, [&]() -> Status {
        for (const auto & [name, tensor] : model.ptr->tensors_by_name) {
            if (tensor->buffer && !tensor->buffer->iface.get_tensor) {
                return Status(Code::unsupported,
                              text("tensor '", name, "' is kept as ", ggml_backend_buffer_name(tensor->buffer),
                                   ", which cannot be read back: load the model with use_extra_bufts=False"));
            }
        }
        log_mark();
        llama_model_save_to_file(model.ptr, path.c_str());
        return {};
    });
}

} // namespace lloyal
