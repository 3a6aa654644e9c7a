// Checkpoints as bytes. The header is the caller's; here every size follows from the rows and the layout, so that no
// length is ever read from the data.
#include "state/checkpoint.hpp"

#include "core/fork.hpp"

#include "llama-context.h"
#include "llama-kv-cache.h"
#include "llama-memory-recurrent.h"
#include "llama-model.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace lloyal {
namespace {

struct RecurrentShape {
    std::vector<uint8_t> meta;
    std::vector<ggml_tensor *> tensors;
    std::vector<size_t> sizes;
    size_t bytes = 0;
};

// The state of one recurrent sequence as llama.cpp writes it, for a state at `pos`.
RecurrentShape recurrent_shape(const ContextBox & box, Pos pos) {
    RecurrentShape shape;
    const llama_memory_recurrent & memory = *box.map.recurrent;
    const llama_hparams & hparams = box.model->ptr->hparams;
    const auto put = [&shape](auto value) {
        const auto * bytes = reinterpret_cast<const uint8_t *>(&value);
        shape.meta.insert(shape.meta.end(), bytes, bytes + sizeof value);
    };
    const auto row = [&](ggml_tensor * tensor, uint32_t width) {
        const uint64_t size = ggml_row_size(tensor->type, width);
        put(size);
        if (size > 0) {
            shape.tensors.push_back(tensor);
            shape.sizes.push_back(size);
            shape.bytes += size;
        }
    };
    put(uint32_t(1)); // cells
    put(int32_t(pos));
    put(uint32_t(0)); // sequence ids of the cell: none for a single sequence
    put(uint32_t(0)); // S is not transposed
    const uint32_t n_layer = hparams.n_layer();
    put(n_layer);
    for (uint32_t il = 0; il < n_layer; ++il) {
        if (memory.r_l[il]) {
            put(int32_t(memory.r_l[il]->type));
            row(memory.r_l[il], hparams.n_embd_r());
            if (memory.p_l[il]) {
                row(memory.p_l[il], hparams.ple_conv_state());
            }
        }
    }
    for (uint32_t il = 0; il < n_layer; ++il) {
        if (memory.s_l[il]) {
            put(int32_t(memory.s_l[il]->type));
            row(memory.s_l[il], hparams.n_embd_s());
        }
    }
    return shape;
}

Status check_kind(const ContextBox & box, const CheckpointStore & store) {
    if (store.whole_only) {
        return Status(
            Code::unsupported,
            text("checkpoints of ", memory_kind_name(box.map.kind),
                 " memory cannot be serialized: llama.cpp's own format for it cannot be checked before it is read"));
    }
    return {};
}

size_t part_bytes(const KvLayout & layout, size_t n_rows) {
    return n_rows * (layout.row_bytes() + (layout.has_ext ? sizeof(llama_kv_cell_ext) : 0));
}

template <typename T> bool no_exponent_is(const uint8_t * data, size_t size, size_t step, T all_ones) {
    bool good = true;
    for (size_t at = 0; at + sizeof(T) <= size; at += step) {
        T value;
        std::memcpy(&value, data + at, sizeof(T));
        good &= (value & all_ones) != all_ones;
    }
    return good;
}

// NaN or infinity would outlive its sequence: rows of free cells are masked by arithmetic, and spoil every other sequence.
bool is_finite(ggml_type type, const uint8_t * data, size_t size) {
    switch (type) {
        case GGML_TYPE_F32: return no_exponent_is<uint32_t>(data, size, 4, 0x7f800000);
        case GGML_TYPE_F16: return no_exponent_is<uint16_t>(data, size, 2, 0x7c00);
        case GGML_TYPE_BF16: return no_exponent_is<uint16_t>(data, size, 2, 0x7f80);
        // Blocks begin with their scale in f16, some have a minimum after it.
        case GGML_TYPE_Q4_1:
        case GGML_TYPE_Q5_1:
            if (size > 2 && !no_exponent_is<uint16_t>(data + 2, size - 2, ggml_type_size(type), 0x7c00)) {
                return false;
            }
            [[fallthrough]];
        default: return no_exponent_is<uint16_t>(data, size, ggml_type_size(type), 0x7c00);
    }
}

// A content id stands for one row: the store finds rows by it.
bool ids_differ(std::vector<Run> runs) {
    std::sort(runs.begin(), runs.end(),
              [](const Run & a, const Run & b) { return a.epoch != b.epoch ? a.epoch < b.epoch : a.first < b.first; });
    return std::adjacent_find(runs.begin(), runs.end(), [](const Run & a, const Run & b) {
               return a.epoch == b.epoch && b.first - a.first < uint64_t(a.end - a.begin);
           }) == runs.end();
}

// The parts a checkpoint has, from what a header says.
std::vector<CheckpointBox::Part> expected_parts(const ContextBox & box, bool partial, const Runs & rows,
                                                Pos window_begin) {
    std::vector<CheckpointBox::Part> parts;
    for (size_t i = 0; i < box.map.caches.size() && !rows.empty(); ++i) {
        const bool window = box.map.kind != MemoryKind::attention && box.map.caches[i] == box.map.window;
        if (window || !partial) {
            parts.push_back({i, window ? rows.slice(window_begin, POS_END) : rows, nullptr});
        }
    }
    return parts;
}

} // namespace

Status layout_signature(ContextBox & box, LayoutSignature & out) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        CheckpointStore & store = store_of(box);
        std::vector<uint8_t> * into = &out.rope;
        const auto put = [&into](auto value) {
            const auto * bytes = reinterpret_cast<const uint8_t *>(&value);
            into->insert(into->end(), bytes, bytes + sizeof value);
        };
        out = {};
        // Keys are stored rotated: by the positions, and for some types by a fixed matrix.
        const llama_cparams & cparams = box.ptr->get_cparams();
        put(cparams.rope_freq_base);
        put(cparams.rope_freq_scale);
        put(cparams.n_ctx_orig_yarn);
        put(cparams.yarn_ext_factor);
        put(cparams.yarn_attn_factor);
        put(cparams.yarn_beta_fast);
        put(cparams.yarn_beta_slow);
        for (int32_t il = 0; il < int32_t(box.model->ptr->layers.size()); ++il) {
            // Two sets of factors, for contexts within the original length and beyond it.
            const llama_layer & layer = box.model->ptr->layers[size_t(il)];
            put(uint8_t(layer.rope_long && box.model->ptr->get_rope_factors(cparams, il) == layer.rope_long));
        }
        put(uint8_t(box.map.unrotated));
        into = &out.tensors;
        put(int32_t(box.map.kind));
        put(uint8_t(box.map.unified));
        put(box.map.n_swa);
        put(int32_t(box.map.swa_type));
        for (const KvLayout & layout : store.layouts) {
            put(uint8_t(layout.has_ext));
            put(uint64_t(layout.header.size()));
            into->insert(into->end(), layout.header.begin(), layout.header.end());
        }
        if (store.whole_only) {
            put(box.map.type_k);
            put(box.map.type_v);
            put(uint8_t(box.map.v_trans));
            for (llama_kv_cache * cache : box.map.caches) {
                put(cache->get_n_stream());
                for (const uint32_t layer : cache->get_layer_ids()) {
                    put(layer);
                    put(cache->get_k_storage(int32_t(layer))->ne[0]);
                }
            }
        }
        if (box.map.recurrent) {
            const RecurrentShape shape = recurrent_shape(box, 0);
            into->insert(into->end(), shape.meta.begin(), shape.meta.end());
        }
        return {};
    });
}

namespace {

// The caller holds `ck.content`.
Status export_size(const CheckpointBox & ck, size_t & size) {
    const CheckpointStore & store = *ck.context->store;
    if (Status status = check_kind(*ck.context, store); !status.ok()) {
        return status;
    }
    if (Status status = check_not_evicted(ck); !status.ok()) {
        return status;
    }
    if (ck.whole) {
        return Status(Code::unsupported, "a checkpoint that was copied whole cannot be serialized");
    }
    if (ck.encoding != 0) {
        return Status(Code::unsupported,
                      "a state of an encoder-decoder model goes with what encode() left in its context, "
                      "and cannot be serialized without it");
    }
    size = 0;
    for (const CheckpointBox::Part & part : ck.parts) {
        size += part_bytes(store.layouts[part.cache], size_t(part.rows.size()));
    }
    for (size_t i = 0; ck.recurrent && i < ck.recurrent->pieces.size(); ++i) {
        size += ck.recurrent->pieces[i].size;
    }
    return {};
}

} // namespace

Status checkpoint_export_size(CheckpointBox & ck, size_t & size) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        std::lock_guard<std::mutex> lock(ck.content);
        return export_size(ck, size);
    });
}

Status checkpoint_export(CheckpointBox & ck, uint8_t * out, size_t size) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        std::lock_guard<std::mutex> lock(ck.content);
        size_t need = 0;
        if (Status status = export_size(ck, need); !status.ok()) {
            return status;
        }
        if (size != need) {
            return Status(Code::invalid_argument, text("the buffer has ", size, " bytes, the checkpoint takes ", need));
        }
        const CheckpointStore & store = *ck.context->store;
        for (const CheckpointBox::Part & part : ck.parts) {
            const KvLayout & layout = store.layouts[part.cache];
            const std::vector<Segment> segments = part.segments();
            if (layout.has_ext) {
                for (const Segment & segment : segments) {
                    const size_t n = segment.n * sizeof(llama_kv_cell_ext);
                    std::memcpy(out, segment.chunk->ext.data() + segment.row, n);
                    out += n;
                }
            }
            const std::vector<RowTensor> & tensors = layout.streams[0];
            for (size_t t = 0; t < tensors.size(); ++t) {
                for (uint32_t k = 0; k < tensors[t].n_pieces; ++k) {
                    for (const Segment & segment : segments) {
                        const size_t n = segment.n * tensors[t].piece;
                        const RowPlace at = segment.chunk->place(tensors[t], t, segment.row);
                        ggml_backend_tensor_get(at.tensor, out, row_offset(at, tensors[t].piece, 0, k), n);
                        out += n;
                    }
                }
            }
        }
        if (ck.recurrent) {
            if (ck.recurrent->meta != recurrent_shape(*ck.context, ck.pos_max).meta) {
                return Status(Code::unsupported, "this recurrent state has a layout that cannot be serialized");
            }
            for (const Blob::Piece & piece : ck.recurrent->pieces) {
                ggml_backend_tensor_get(ck.recurrent->buffers[piece.buffer]->tensor(), out, piece.offset, piece.size);
                out += piece.size;
            }
        }
        return {};
    });
}

Status checkpoint_import(ContextHandle context, const uint8_t * data, size_t size, bool partial, SeqId seq,
                         const std::vector<Run> & runs, Pos window_begin, bool known, CheckpointHandle & out) noexcept {
    return checkpoint_guarded([&]() -> Status {
        ContextBox & box = *context;
        CheckpointStore & store = store_of(box);
        if (Status status = check_kind(box, store); !status.ok()) {
            return status;
        }
        auto ck = make_handle<CheckpointBox>();
        Pos end = 0;
        for (const Run & run : runs) {
            // A row may share the position of the one before.
            if (run.begin < (ck->rows.empty() ? 0 : end - 1) || run.end <= run.begin) {
                return Status(Code::state_mismatch,
                              text("the rows from ", run.begin, " to ", run.end, " are out of order"));
            }
            end = run.end;
            ck->rows.append(run);
        }
        if (!ids_differ(runs)) {
            return Status(Code::state_mismatch, "two of its rows have the same content id");
        }
        if (!known) {
            // Bytes from outside: a content id in them proves nothing about the rows.
            ck->rows = box.provenance.renamed(ck->rows);
        }
        if (box.map.n_pos_max >= 0 && end > box.map.n_pos_max) {
            return Status(Code::state_mismatch,
                          text("position ", end - 1, " is past the model's learned position table"));
        }
        ck->context = context;
        ck->where = Where::host;
        ck->partial = partial;
        ck->seq = seq;
        ck->pos_min = ck->rows.empty() ? -1 : ck->rows.begin();
        ck->pos_max = ck->rows.empty() ? -1 : ck->rows.end() - 1;
        ck->used_at = store.tick();
        ck->window_begin = window_begin;
        ck->parts = expected_parts(box, partial, ck->rows, window_begin);
        RecurrentShape shape;
        if (box.map.recurrent && !ck->rows.empty()) {
            shape = recurrent_shape(box, ck->pos_max);
        }
        size_t need = shape.bytes;
        for (const CheckpointBox::Part & part : ck->parts) {
            need += part_bytes(store.layouts[part.cache], size_t(part.rows.size()));
        }
        if (need != size) {
            return Status(Code::state_mismatch,
                          text("the checkpoint has ", size, " bytes of tensors, its rows need ", need));
        }
        const uint8_t * at = data;
        bool finite = true;
        for (const CheckpointBox::Part & part : ck->parts) {
            const KvLayout & layout = store.layouts[part.cache];
            const size_t n_rows = size_t(part.rows.size());
            at += layout.has_ext ? n_rows * sizeof(llama_kv_cell_ext) : 0;
            for (const RowTensor & tensor : layout.streams[0]) {
                finite = finite && is_finite(tensor.tensor->type, at, n_rows * tensor.row_bytes());
                at += n_rows * tensor.row_bytes();
            }
        }
        for (size_t i = 0; i < shape.tensors.size(); ++i) {
            finite = finite && is_finite(shape.tensors[i]->type, at, shape.sizes[i]);
            at += shape.sizes[i];
        }
        if (!finite) {
            return Status(Code::state_mismatch, "its tensors hold NaN or infinity");
        }
        if (Status status = store.make_room(size, *ck); !status.ok()) {
            return status;
        }
        store.pool->expect(size, store.budget_bytes >= 0);
        for (CheckpointBox::Part & part : ck->parts) {
            if (part.rows.empty()) {
                continue;
            }
            const KvLayout & layout = store.layouts[part.cache];
            const std::vector<RowTensor> & tensors = layout.streams[0];
            auto chunk = std::make_unique<Chunk>();
            chunk->rows = part.rows;
            chunk->host = true;
            chunk->n_rows = uint32_t(part.rows.size());
            if (layout.has_ext) {
                chunk->ext.resize(chunk->n_rows);
                std::memcpy(chunk->ext.data(), data, chunk->n_rows * sizeof(llama_kv_cell_ext));
                data += chunk->n_rows * sizeof(llama_kv_cell_ext);
            }
            Packer packer;
            for (const RowTensor & tensor : tensors) {
                chunk->places.push_back(
                    packer.place(storage_for(tensor.tensor, true), tensor.row_bytes() * chunk->n_rows));
            }
            chunk->buffers = packer.allocate(*store.pool);
            for (size_t t = 0; t < tensors.size(); ++t) {
                const size_t n = tensors[t].row_bytes() * chunk->n_rows;
                ggml_backend_tensor_set(chunk->buffers[chunk->places[t].buffer]->tensor(), data,
                                        chunk->places[t].offset, n);
                data += n;
            }
            // Not looked up by content: the ids come from outside, and what they stand for is not ours to promise.
            const std::shared_ptr<const Chunk> shared = std::move(chunk);
            std::vector<Segment> segments;
            uint32_t row = 0;
            for (const Run & run : part.rows.list()) {
                const uint32_t n = uint32_t(run.end - run.begin);
                append(segments, {shared, row, n, run.begin});
                row += n;
            }
            part.list = SegmentList::make(segments);
        }
        if (box.map.recurrent && !ck->rows.empty()) {
            Blob blob;
            Packer packer;
            for (size_t i = 0; i < shape.tensors.size(); ++i) {
                const Chunk::Place place = packer.place(storage_for(shape.tensors[i], true), shape.sizes[i]);
                blob.pieces.push_back({place.buffer, place.offset, shape.sizes[i]});
            }
            blob.buffers = packer.allocate(*store.pool);
            for (const Blob::Piece & piece : blob.pieces) {
                ggml_backend_tensor_set(blob.buffers[piece.buffer]->tensor(), data, piece.offset, piece.size);
                data += piece.size;
            }
            blob.meta = std::move(shape.meta);
            ck->recurrent = std::move(blob);
        }
        store.track(ck);
        out = std::move(ck);
        return {};
    });
}

} // namespace lloyal
