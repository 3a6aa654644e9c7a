#include "model/graph_check.hpp"

#include "llama-batch.h"
#include "llama-context.h"
#include "llama-graph.h"
#include "llama-model.h"

#include "ggml-backend-impl.h"
#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string_view>
#include <vector>

namespace lloyal {
namespace {

constexpr int N_SHOWN = 4; // sources with a name of their own

bool is_real(ggml_type type) {
    return type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16;
}

ggml_type type_of(const ggml_tensor & node, int i) {
    return node.src[i] ? node.src[i]->type : GGML_TYPE_F32;
}

bool f32(const ggml_tensor & node, int first, int last) {
    for (int i = first; i <= last; ++i) {
        if (type_of(node, i) != GGML_TYPE_F32) {
            return false;
        }
    }
    return true;
}

// What most kernels read: numbers as F32, indices as I32.
bool plain(const ggml_tensor & node) {
    return std::all_of(std::begin(node.src), std::end(node.src), [](const ggml_tensor * source) {
        return !source || source->type == GGML_TYPE_F32 || source->type == GGML_TYPE_I32;
    });
}

float param(const ggml_tensor & node, int i) {
    float value;
    std::memcpy(&value, node.op_params + i, sizeof value);
    return value;
}

bool copies(const ggml_tensor & node) {
    const ggml_type from = type_of(node, 0);
    const ggml_type to = node.type;
    if (from == to) {
        // Rows of blocks that are not side by side are taken for rows of single values.
        return !ggml_is_quantized(from) || (ggml_is_contiguous(node.src[0]) && ggml_is_contiguous(&node));
    }
    if (is_real(from)) {
        return is_real(to) || (from == GGML_TYPE_F32 && to == GGML_TYPE_I32) || is_weight_type(to);
    }
    return to == GGML_TYPE_F32 && (from == GGML_TYPE_I32 || is_weight_type(from));
}

bool binary(const ggml_tensor & node) {
    const ggml_type a = type_of(node, 0);
    const ggml_type b = type_of(node, 1);
    return is_real(a) && (node.type == a || node.type == GGML_TYPE_F32) &&
           (b == GGML_TYPE_F32 || (b == a && node.type == a));
}

// Types only: what the kernel switches on.
bool types_fit(const ggml_tensor & node) {
    const ggml_type a = type_of(node, 0);
    const ggml_type b = type_of(node, 1);
    switch (node.op) {
        case GGML_OP_NONE:
        case GGML_OP_RESHAPE:
        case GGML_OP_VIEW:
        case GGML_OP_PERMUTE:
        case GGML_OP_TRANSPOSE:
        case GGML_OP_MAP_CUSTOM1:
        case GGML_OP_MAP_CUSTOM2:
        case GGML_OP_MAP_CUSTOM3:
        case GGML_OP_CUSTOM: return true;
        case GGML_OP_DUP:
        case GGML_OP_CPY:
        case GGML_OP_CONT: return copies(node);
        case GGML_OP_ADD:
        case GGML_OP_SUB:
        case GGML_OP_MUL:
        case GGML_OP_DIV: return binary(node);
        case GGML_OP_UNARY:
        case GGML_OP_SQR:
        case GGML_OP_SQRT:
        case GGML_OP_LOG:
        case GGML_OP_SIN:
        case GGML_OP_COS: return is_real(a) && node.type == a;
        case GGML_OP_GLU: return is_real(a) && node.type == a && (!node.src[1] || b == a);
        case GGML_OP_SUM: return is_real(a);
        case GGML_OP_REPEAT:
        case GGML_OP_CONCAT: return !ggml_is_quantized(a) && node.type == a && (!node.src[1] || b == a);
        case GGML_OP_SCALE: return a == node.type && (a == GGML_TYPE_F32 || a == GGML_TYPE_BF16);
        case GGML_OP_CLAMP:
        case GGML_OP_FILL:
        case GGML_OP_LEAKY_RELU: return a == node.type && (a == GGML_TYPE_F32 || a == GGML_TYPE_F16);
        case GGML_OP_MUL_MAT:
        case GGML_OP_OUT_PROD:
            return is_weight_type(a) &&
                   (b == GGML_TYPE_F32 || (b == a && is_real(a)) || (a == GGML_TYPE_F32 && is_real(b)));
        case GGML_OP_MUL_MAT_ID: return is_weight_type(a) && b == GGML_TYPE_F32 && type_of(node, 2) == GGML_TYPE_I32;
        case GGML_OP_GET_ROWS: return (is_weight_type(a) || a == GGML_TYPE_I32) && b == GGML_TYPE_I32;
        case GGML_OP_SET_ROWS:
            return (a == GGML_TYPE_F32 || a == GGML_TYPE_F16) && (b == GGML_TYPE_I32 || b == GGML_TYPE_I64);
        case GGML_OP_SOFT_MAX: return a == GGML_TYPE_F32 && is_real(b) && b != GGML_TYPE_BF16 && f32(node, 2, 2);
        case GGML_OP_ROPE: return (a == GGML_TYPE_F32 || a == GGML_TYPE_F16) && b == GGML_TYPE_I32 && f32(node, 2, 2);
        case GGML_OP_FLASH_ATTN_EXT:
            return a == GGML_TYPE_F32 && is_weight_type(b) && is_weight_type(type_of(node, 2)) &&
                   (!node.src[3] || node.src[3]->type == GGML_TYPE_F16) && f32(node, 4, 4);
        case GGML_OP_LIGHTNING_INDEXER:
            return a == GGML_TYPE_F32 && is_weight_type(b) && f32(node, 2, 2) &&
                   (!node.src[3] || node.src[3]->type == GGML_TYPE_F16);
        case GGML_OP_IM2COL:
        case GGML_OP_IM2COL_3D: return b == GGML_TYPE_F32 || (b == GGML_TYPE_F16 && node.type == GGML_TYPE_F16);
        case GGML_OP_CONV_TRANSPOSE_1D:
        case GGML_OP_CONV_TRANSPOSE_2D:
        case GGML_OP_CONV_2D:
        case GGML_OP_CONV_2D_DW:
        case GGML_OP_CONV_3D: return (a == GGML_TYPE_F32 || a == GGML_TYPE_F16) && b == GGML_TYPE_F32;
        case GGML_OP_POOL_1D:
        case GGML_OP_POOL_2D: return a == GGML_TYPE_F32 || a == GGML_TYPE_F16;
        default: return plain(node);
    }
}

// Numbers of the metadata that end up in an operation: why its kernel would abort on them, divide by zero, not end.
std::string bad_numbers(const ggml_tensor & node) {
    switch (node.op) {
        case GGML_OP_NORM:
        case GGML_OP_RMS_NORM:
        case GGML_OP_L2_NORM:
        case GGML_OP_GROUP_NORM: {
            const float eps = param(node, node.op == GGML_OP_GROUP_NORM ? 1 : 0);
            return std::isfinite(eps) && eps >= 0 ? "" : text("epsilon is ", eps);
        }
        case GGML_OP_ROPE: {
            const int64_t width = node.src[0]->ne[0];
            const int32_t n_dims = node.op_params[1];
            const int32_t mode = node.op_params[2];
            const int32_t first = node.op_params[15];
            const int32_t * sections = node.op_params + 11;
            if (n_dims < 2 || n_dims % 2 != 0 || first < 0 || first % 2 != 0 || first + n_dims > width ||
                width % 2 != 0 || (mode == GGML_ROPE_TYPE_VISION && n_dims * 2 != width)) {
                return text("it rotates ", n_dims, " of ", width, " values from ", first);
            }
            if (node.src[2] && node.src[2]->ne[0] < n_dims / 2) {
                return text("it rotates ", n_dims, " values by ", node.src[2]->ne[0], " factors");
            }
            int64_t sum = 0;
            for (int i = 0; (mode & GGML_ROPE_TYPE_MROPE) != 0 && i < 4; ++i) {
                sum += sections[i] >= 0 ? sections[i] : INT32_MAX;
            }
            if ((mode & GGML_ROPE_TYPE_MROPE) != 0 &&
                (sum > width || sections[0] + int64_t(sections[1]) + sections[2] == 0)) {
                return text("its sections are ", sections[0], ", ", sections[1], ", ", sections[2], ", ", sections[3]);
            }
            return "";
        }
        case GGML_OP_SSM_SCAN:
            // heads and groups
            return node.src[4]->ne[1] > 0 && node.src[0]->ne[2] % node.src[4]->ne[1] == 0
                       ? ""
                       : text(node.src[0]->ne[2], " heads in ", node.src[4]->ne[1], " groups");
        default: return "";
    }
}

std::string describe(const ggml_tensor & tensor) {
    std::string shape = text(tensor.ne[0]);
    for (int i = 1; i < ggml_n_dims(&tensor); ++i) {
        shape += text(", ", tensor.ne[i]);
    }
    return text("'", tensor.name, "' (", ggml_type_name(tensor.type), " [", shape, "])");
}

// The tensor of the file that a source shows a part of, or the source itself.
const ggml_tensor & origin(const ggml_tensor & source) {
    const ggml_tensor * at = &source;
    while (at->src[0] && (at->op == GGML_OP_RESHAPE || at->op == GGML_OP_VIEW || at->op == GGML_OP_PERMUTE ||
                          at->op == GGML_OP_TRANSPOSE)) {
        at = at->src[0];
    }
    return *at;
}

std::string message(const ggml_tensor & node, const std::string & why) {
    std::string sources;
    for (int i = 0; i < N_SHOWN && node.src[i]; ++i) {
        const ggml_tensor & tensor = origin(*node.src[i]);
        // Weights are what the file is to blame for; the rest was computed, or is input.
        if (tensor.op == GGML_OP_NONE && (tensor.flags & GGML_TENSOR_FLAG_INPUT) == 0 && tensor.name[0] != '\0') {
            sources += (sources.empty() ? "tensor " : ", ") + describe(tensor);
        }
    }
    if (sources.empty()) {
        for (int i = 0; i < N_SHOWN && node.src[i]; ++i) {
            sources += (sources.empty() ? "" : ", ") + describe(*node.src[i]);
        }
    }
    return text(sources, " cannot be used in ", ggml_op_desc(&node), " for '", node.name, "' (",
                ggml_type_name(node.type), ")", why.empty() ? "" : ": " + why);
}

void on_plan(ggml_backend_t backend, ggml_cgraph * graph, ggml_backend_graph_optimize_params *) {
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
        const ggml_tensor & node = *ggml_graph_node(graph, i);
        if (const std::string why = unfit(node); !why.empty()) {
            throw Failure(Code::load_failed, why);
        }
        if (!ggml_backend_supports_op(backend, &node)) {
            throw Failure(Code::load_failed,
                          message(node, text(ggml_backend_name(backend), " has no kernel for these types")));
        }
    }
}

} // namespace

bool is_weight_type(ggml_type type) {
    switch (type) {
        case GGML_TYPE_Q8_1:
        case GGML_TYPE_Q8_K: // what products are computed in, not stored
            return false;
        default: return is_real(type) || (type < GGML_TYPE_COUNT && ggml_is_quantized(type));
    }
}

std::string unfit(const ggml_tensor & node) {
    if (!types_fit(node)) {
        return message(node, "");
    }
    const std::string why = bad_numbers(node);
    return why.empty() ? why : message(node, why);
}

void graph_check_install(llama_context & context) {
    ggml_backend_sched_t sched = context.get_sched();
    for (int i = 0; i < ggml_backend_sched_get_n_backends(sched); ++i) {
        ggml_backend_t backend = ggml_backend_sched_get_backend(sched, i);
        ggml_backend_dev_t device = ggml_backend_get_device(backend);
        // Other devices are given only what they say they can do. The processor says yes to nearly everything, and
        // what stands for a device of a server to everything.
        const std::string_view kind = ggml_backend_reg_name(ggml_backend_dev_backend_reg(device));
        const bool agrees = ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU || kind.starts_with("RPC");
        if (agrees && !backend->iface.graph_optimize) {
            backend->iface.graph_optimize = on_plan;
        }
    }
}

void graph_check(llama_context & context) {
    const llama_cparams & params = context.get_cparams();
    const uint32_t n_seqs = params.n_seq_max;
    const uint32_t n_tokens = std::min(params.n_ctx, params.n_ubatch);
    llama_memory_context_ptr full;
    if (llama_memory_t memory = llama_get_memory(&context)) {
        full = memory->init_full();
    }
    context.graph_reserve(n_seqs, n_seqs, n_seqs, full.get(), true);
    context.graph_reserve(n_tokens, n_seqs, std::min(n_tokens, params.n_outputs_max), full.get(), true);
}

void draft_check(const llama_context & context, const llama_context * parent) {
    const llama_model & model = context.get_model();
    if (model.arch != LLM_ARCH_EAGLE3 && model.arch != LLM_ARCH_DFLASH) {
        return;
    }
    const int64_t n_vocab = model.vocab.n_tokens();
    const ggml_tensor * embd = model.tok_embd || !parent ? model.tok_embd : parent->get_model().tok_embd;
    if (embd && embd->ne[1] < n_vocab) {
        throw Failure(Code::load_failed, text("the draft has ", n_vocab, " tokens, and there are embeddings of ",
                                              embd->ne[1], ": it was made for another model"));
    }
    const ggml_tensor * logits = context.get_gf_res_reserve()->get_logits();
    if (logits && logits->ne[0] != n_vocab) {
        throw Failure(Code::load_failed, text("the draft has ", n_vocab, " tokens, and there are logits of ",
                                              logits->ne[0], ": it was made for another model"));
    }
    if (model.d2t && model.d2t->data) { // which tokens its logits are of
        std::vector<int64_t> ids(size_t(ggml_nelements(model.d2t)));
        ggml_backend_tensor_get(model.d2t, ids.data(), 0,
                                std::min(ids.size() * sizeof(int64_t), ggml_nbytes(model.d2t)));
        for (const int64_t id : ids) {
            if (id < 0 || id >= n_vocab) {
                throw Failure(Code::load_failed,
                              text("tensor 'd2t' holds token ", id, ", outside the vocabulary of ", n_vocab));
            }
        }
    }
}

void embeddings_check(const llama_context & context) {
    const llama_hparams & hparams = context.get_model().hparams;
    const llm_graph_result & result = *context.get_gf_res_reserve();
    const enum llama_pooling_type pooling = context.get_cparams().pooling_type;
    const ggml_tensor * found = pooling == LLAMA_POOLING_TYPE_NONE ? result.get_embd() : result.get_embd_pooled();
    const uint32_t n = pooling == LLAMA_POOLING_TYPE_RANK ? hparams.n_cls_out : hparams.n_embd_out();
    if (found && uint64_t(found->ne[0]) < n) {
        throw Failure(Code::load_failed,
                      text("the model computes embeddings of ", found->ne[0], " values, its metadata promises ", n));
    }
}

} // namespace lloyal
