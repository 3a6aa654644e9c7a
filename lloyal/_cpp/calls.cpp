#include "calls.hpp"

#include "checkpoint.hpp"
#include "decode.hpp"
#include "ext.hpp"
#include "sampler_types.hpp"

#include <algorithm>
#include <cstring>

namespace lloyal {
namespace {

Status take_row(const ContextBox & box, const float * data, size_t n, float * out, size_t room, Row & row) {
    row = {data, n, box.generation};
    if (out) {
        std::memcpy(out, data, std::min(n, room) * sizeof(float));
    }
    return {};
}

Status check_fresh(const ContextBox & box, const Row & row) {
    return box.generation == row.generation
               ? Status()
               : Status(Code::no_logits, "this view is stale: the context has decoded or restored since (use copy=True "
                                         "to keep a row)");
}

} // namespace

size_t n_embedding(const ContextBox & box) {
    return size_t(llama_model_n_embd_out(box.model->ptr));
}

size_t n_pooled(const ContextBox & box) {
    return llama_pooling_type(box.ptr) == LLAMA_POOLING_TYPE_RANK ? llama_model_n_cls_out(box.model->ptr)
                                                                  : n_embedding(box);
}

size_t n_layer_input(const ContextBox & box) {
    return size_t(llama_model_n_embd(box.model->ptr));
}

Status read_logits(ContextBox & box, int32_t i, float * out, size_t room, Row & row) noexcept {
    const float * data = nullptr;
    Status status = logits_row(box, i, data);
    const llama_vocab * vocab = llama_model_get_vocab(box.model->ptr);
    return status.ok() ? take_row(box, data, size_t(llama_vocab_n_tokens(vocab)), out, room, row) : status;
}

Status read_embedding(ContextBox & box, int32_t i, float * out, size_t room, Row & row) noexcept {
    const float * data = nullptr;
    Status status = embeddings_row(box, i, data);
    return status.ok() ? take_row(box, data, n_embedding(box), out, room, row) : status;
}

Status read_pooled(ContextBox & box, SeqId seq, float * out, size_t room, Row & row) noexcept {
    const float * data = nullptr;
    Status status = embeddings_seq(box, seq, data);
    return status.ok() ? take_row(box, data, n_pooled(box), out, room, row) : status;
}

Status read_nextn(ContextBox & box, int32_t i, float * out, size_t room, Row & row) noexcept {
    const float * data = nullptr;
    Status status = nextn_row(box, i, data);
    return status.ok() ? take_row(box, data, n_embedding(box), out, room, row) : status;
}

Status read_layer_input(ContextBox & box, int32_t layer, int32_t i, float * out, size_t room, Row & row) noexcept {
    const float * data = nullptr;
    Status status = layer_input_row(box, layer, i, data);
    return status.ok() ? take_row(box, data, n_layer_input(box), out, room, row) : status;
}

Status read_all(ContextBox & box, bool embeddings, std::vector<float> & out, int32_t & n_rows) noexcept {
    return guarded(Code::no_logits, [&]() -> Status {
        const float * data = nullptr;
        Status status = embeddings ? embeddings_rows(box, data, n_rows) : logits_rows(box, data, n_rows);
        if (status.ok()) {
            const llama_vocab * vocab = llama_model_get_vocab(box.model->ptr);
            const size_t width = embeddings ? n_embedding(box) : size_t(llama_vocab_n_tokens(vocab));
            out.assign(data, data + size_t(n_rows) * width);
        }
        return status;
    });
}

Status read_sample(ContextBox & box, int32_t i, llama_token & token, std::vector<llama_token> & ids, Row & logits,
                   Row & probs) noexcept {
    return guarded(Code::no_logits, [&]() -> Status {
        BackendSample found;
        Status status = backend_output(box, i, found);
        if (status.ok()) {
            token = found.token;
            if (found.ids) {
                ids.assign(found.ids, found.ids + found.n);
            }
            logits = {found.logits, found.n, box.generation};
            probs = {found.probs, found.n, box.generation};
        }
        return status;
    });
}

Status row_value(ContextBox & box, const Row & row, size_t i, float & out) noexcept {
    Status status = check_fresh(box, row);
    if (status.ok()) {
        out = row.data[i];
    }
    return status;
}

Status row_argmax(ContextBox & box, const Row & row, int32_t & out) noexcept {
    Status status = check_fresh(box, row);
    if (status.ok()) {
        out = argmax(row.data, int32_t(row.n));
    }
    return status;
}

Status row_stale(ContextBox & box, const Row & row, bool & stale) noexcept {
    stale = box.generation != row.generation;
    return {};
}

Status row_copy(ContextBox & box, const Row & row, float * out) noexcept {
    Status status = check_fresh(box, row);
    if (status.ok()) {
        std::memcpy(out, row.data, row.n * sizeof(float));
    }
    return status;
}

Status synchronize(ContextBox & box) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        llama_synchronize(box.ptr);
        return {};
    });
}

Status set_n_threads(ContextBox & box, int32_t n_threads, int32_t n_threads_batch) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        llama_set_n_threads(box.ptr, n_threads, n_threads_batch);
        return {};
    });
}

Status rollback_kind(ContextBox & box, SeqId seq, int32_t n_tokens, int & kind) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        Status status;
        if (valid_seq(box, seq, "seq_id", status)) {
            kind = int(memory_can_rollback(box, seq, n_tokens));
        }
        return status;
    });
}

Status known_rows(ContextBox & box, SeqId seq, std::vector<Run> & out) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        Status status;
        if (valid_seq(box, seq, "seq_id", status)) {
            const auto & runs = box.provenance.of(seq).list();
            out.assign(runs.begin(), runs.end());
        }
        return status;
    });
}

Status state_seq_write(ContextBox & box, uint8_t * out, size_t size, SeqId seq, uint32_t flags, size_t & need,
                       size_t & written) noexcept {
    Status status = state_seq_get_size(box, seq, flags, need);
    return status.ok() && size >= need ? state_seq_get_data(box, out, size, seq, flags, written) : status;
}

Status state_write(ContextBox & box, uint8_t * out, size_t size, size_t & need, size_t & written) noexcept {
    Status status = state_get_size(box, need);
    return status.ok() && size >= need ? state_get_data(box, out, size, written) : status;
}

Status sampler_name(SamplerBox & box, std::string & out) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        out = llama_sampler_name(box.ptr);
        return {};
    });
}

Status sampler_seed_used(SamplerBox & box, bool & found, uint32_t & seed) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        found = sampler_seed(box.ptr, seed);
        return {};
    });
}

Status checkpoint_to_host_inside(ContextBox & box, CheckpointBox & checkpoint, CheckpointHandle & out) noexcept {
    return checkpoint.context.get() == &box
               ? checkpoint_to_host(checkpoint, out)
               : Status(Code::invalid_argument, "this checkpoint belongs to another context");
}

Status store_meta_bytes(ContextBox & box, size_t & out) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        out = store_of(box).meta_bytes();
        return {};
    });
}

Status store_set_budget(ContextBox & box, int64_t bytes, bool evict) noexcept {
    return guarded(Code::decode_failed, [&]() -> Status {
        store_of(box).budget_bytes = bytes;
        store_of(box).evict = evict;
        return {};
    });
}

Status count_available_leases(ContextBox & box, int32_t & out) noexcept {
    return guarded(Code::no_lease, [&]() -> Status {
        out = lease_available(box);
        return {};
    });
}

} // namespace lloyal
