#include "state/raw_state.hpp"

#include "core/fence.hpp"
#include "core/handles.hpp"
#include "core/log.hpp"
#include "memory/io.hpp"

#include "llama-arch.h"
#include "llama-context.h"
#include "llama-kv-cache.h"
#include "llama-memory-recurrent.h"
#include "llama-model.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace lloyal {
namespace {

constexpr uint32_t KNOWN_FLAGS = LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY | LLAMA_STATE_SEQ_FLAGS_ON_DEVICE;
constexpr uint32_t BLOB_MAGIC = 0xaf143cd8;
constexpr size_t BLOB_HEADER = 8; // the magic, i32 source sequence

bool on_device(uint32_t flags) {
    return (flags & LLAMA_STATE_SEQ_FLAGS_ON_DEVICE) != 0;
}

Status check_call(const ContextBox & box, SeqId seq, uint32_t flags, const char * name) {
    Status bad;
    if (!box.memory) {
        return Status(Code::unsupported, "this model keeps no memory between calls, so it has no state");
    }
    if (box.map.shared) {
        return Status(Code::unsupported, "this context works on the memory of its parent: save the parent's");
    }
    if (flags & ~KNOWN_FLAGS) {
        return Status(Code::invalid_argument, text("flags=", flags, " has unknown bits: use StateSeqFlags"));
    }
    if (!valid_seq(box, seq, name, bad)) {
        return bad;
    }
    return {};
}

// Why this context cannot keep the tensors of such a save in device buffers through llama.cpp, or ok.
Status check_device(const ContextBox & box, uint32_t flags) {
    const MemoryMap & map = box.map;
    const bool partial = (flags & LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) != 0;
    // What PARTIAL_ONLY saves beside a recurrent state is the window cache, which has the cache types too.
    const bool recurrent_only = map.kind == MemoryKind::recurrent || (partial && map.has_recurrent() && !map.window);
    if (map.quantized && !recurrent_only) {
        return Status(Code::unsupported,
                      "LLAMA_STATE_SEQ_FLAGS_ON_DEVICE copies 1/32 of a quantized cache and corrupts it: "
                      "use ctx.checkpoint(where=\"device\"), or the host flags");
    }
    return map.split
               ? Status(Code::unsupported, "LLAMA_STATE_SEQ_FLAGS_ON_DEVICE does not work with split_mode=\"tensor\"")
               : Status();
}

using BufferNeeds = std::map<ggml_backend_buffer_type_t, RawDeviceState::Buffer>;

// Tensor bytes per buffer type of what a save of `seq` would write now.
BufferNeeds device_need(ContextBox & box, SeqId seq, uint32_t flags) {
    Collector collector;
    box.memory->state_write(collector, seq, flags);
    BufferNeeds need;
    for (const Slice & slice : collector.slices) {
        ggml_backend_buffer_type_t buft = ggml_backend_buffer_get_type(slice.tensor->buffer);
        const size_t alignment = ggml_backend_buft_get_alignment(buft);
        need[buft].bytes += slice.size;
        need[buft].padded += GGML_PAD(slice.size, alignment);
    }
    return need;
}

// llama.cpp asserts on a failed or split allocation, so ask for the memory first and give it back.
Status probe_device(const BufferNeeds & need) {
    for (const auto & [buft, n] : need) {
        const size_t most = ggml_backend_buft_get_max_size(buft);
        if (n.padded > most) {
            return Status(Code::unsupported, text("the state needs one buffer of ", n.padded, " bytes, ",
                                                  ggml_backend_buft_name(buft), " allows ", most));
        }
        ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(buft, n.padded);
        if (!buffer) {
            return Status(Code::out_of_device_memory,
                          text(ggml_backend_buft_name(buft), " has no room for ", n.padded, " bytes of state"));
        }
        ggml_backend_buffer_free(buffer);
    }
    return {};
}

// Why a sequence cannot be overwritten, or ok.
Status check_dest(const ContextBox & box, SeqId dest, uint32_t flags) {
    Status bad = check_call(box, dest, flags, "dest_seq_id");
    if (bad.ok() && box.leases[size_t(dest)] == Lease::checkpoint) {
        bad = Status(Code::no_lease, text("sequence ", dest, " holds the cells of a checkpoint: release that first"));
    }
    return bad;
}

// Cells that several sequences share with different pending rollbacks make a whole-context save abort.
Status check_pending(const ContextBox & box) {
    if (const llama_memory_recurrent * recurrent = box.map.recurrent) {
        for (const auto & cell : recurrent->cells) {
            uint32_t first = 0;
            bool any = false;
            for (const llama_seq_id seq : cell.seq_id) {
                const uint32_t pending = recurrent->rs_idx[size_t(seq)];
                if (any && pending != first) {
                    return Status(
                        Code::unsupported,
                        text("sequence ", seq,
                             " shares its state with another and has a rollback pending: decode a token first"));
                }
                first = pending;
                any = true;
            }
        }
    }
    return {};
}

void make_empty(ContextBox & box, SeqId seq) {
    box.memory->seq_rm(seq, -1, -1);
    box.provenance.assign(seq, {});
    box.map.reset_ring(seq);
}

// Rows came in past us: give what the caches hold now fresh ids. Says why a sequence that its parts disagree about was emptied.
Status adopt_rows(ContextBox & box, SeqId seq) {
    MemoryMap & map = box.map;
    map.reset_ring(seq);
    const Pos pos_max = map.recurrent ? map.recurrent->seq_pos_max(seq) : box.memory->seq_pos_max(seq);
    Runs rows;
    if (map.rows) {
        rows = box.provenance.fresh_at(MemoryMap::positions(*map.rows, seq));
    } else if (pos_max >= 0) {
        rows.append(box.provenance.fresh(0, pos_max + 1));
    }
    if (rows.end() != pos_max + 1 || !map.window_complete(rows, seq)) {
        make_empty(box, seq);
        return Status(Code::state_mismatch,
                      text("the state's layers disagree about the rows of sequence ", seq, ", which is now empty"));
    }
    box.provenance.assign(seq, std::move(rows));
    return {};
}

// True if PARTIAL_ONLY leaves something out; a plain attention cache ignores it.
bool leaves_out(const MemoryMap & map, uint32_t flags) {
    const bool window = map.window && map.caches.size() > 1;
    return (flags & LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) != 0 &&
           (window || (map.has_state() && map.kind != MemoryKind::recurrent));
}

// A partial state takes the sequence back to its position: full-size layers must hold the rows up to there, and lose the
// later ones, which llama.cpp would go on attending to.
Status settle_partial(ContextBox & box, SeqId dest) {
    const MemoryMap & map = box.map;
    const Pos at = map.recurrent ? map.recurrent->seq_pos_max(dest) : map.window->seq_pos_max(dest);
    // The rows it was left with are those that provenance knows.
    if (const Pos have = box.provenance.of(dest).end() - 1; have < at) {
        make_empty(box, dest);
        return Status(Code::state_mismatch,
                      text("the partial state continues at position ", at + 1, ", sequence ", dest, " held ",
                           have < 0 ? std::string("nothing") : text("rows up to ", have),
                           ": restore a full state; the sequence is now empty"));
    }
    box.memory->seq_rm(dest, at + 1, -1);
    return {};
}

// llama.cpp takes any position, and cannot remove a row at a negative one or at the last. Every 4-byte field of a state is
// a position, count, id or type, and none of those is negative.
class CheckedReader : public HostReader {
  public:
    using HostReader::HostReader;

    void read(void * dst, size_t size) override {
        HostReader::read(dst, size);
        if (size == sizeof(int32_t)) {
            int32_t value;
            std::memcpy(&value, dst, size);
            if (value < 0 || value == std::numeric_limits<int32_t>::max()) {
                throw std::runtime_error(text("the field before byte ", n_bytes(), " cannot be ", value));
            }
        }
    }
};

// What stands before the memory in a state.
enum class Header { none, sequence, context };

void read_header(const ContextBox & box, HostReader & reader, Header header) {
    uint32_t word = 0;
    if (header == Header::sequence) {
        SeqId source;
        reader.HostReader::read(&word, sizeof word);
        reader.HostReader::read(&source, sizeof source);
        if (word != BLOB_MAGIC) {
            throw std::runtime_error(text("it starts with ", word, ", not ", BLOB_MAGIC));
        }
    } else if (header == Header::context) {
        const std::string ours = llm_arch_name(box.model->ptr->arch);
        reader.HostReader::read(&word, sizeof word);
        std::string arch(std::min<size_t>(word, reader.n_left()), '\0');
        reader.HostReader::read(arch.data(), arch.size());
        if (arch != ours) {
            throw std::runtime_error(text("it is of a ", arch, " model, this one is ", ours));
        }
    }
}

// Read a host state of one sequence, or of all with -1; with `exact` nothing may follow it. Says why not, with nothing of
// it left in the memory.
Status read_host(ContextBox & box, HostReader & reader, Header header, SeqId dest, uint32_t flags, bool exact) {
    Status status = fenced(Input::text, Code::state_mismatch, [&]() -> Status {
        read_header(box, reader, header);
        box.memory->state_read(reader, dest, flags);
        if (exact && reader.n_left() != 0) {
            return Status(Code::state_mismatch, text(reader.n_left(), " bytes are left over"));
        }
        reader.apply();
        return {};
    });
    if (!status.ok()) {
        if (dest < 0) {
            memory_clear(box, false);
        } else {
            make_empty(box, dest); // hybrid memories can be left half restored
        }
        const std::string log = log_last();
        status.message = text("the state cannot be read: ", log.empty() ? status.message : log, "; ",
                              dest < 0 ? std::string("the context") : text("sequence ", dest), " is now empty");
    }
    return status;
}

} // namespace

Status state_seq_get_size(ContextBox & box, SeqId seq, uint32_t flags, size_t & size) noexcept {
    return guarded(Code::state_mismatch, [&]() -> Status {
        if (Status bad = check_call(box, seq, flags, "seq_id"); !bad.ok()) {
            return bad;
        }
        if (on_device(flags)) {
            if (Status bad = check_device(box, flags); !bad.ok()) {
                return bad;
            }
        }
        size = llama_state_seq_get_size_ext(box.ptr, seq, flags);
        if (size == 0) {
            return Status(Code::state_mismatch,
                          text("llama.cpp could not size the state of sequence ", seq, ": ", log_last()));
        }
        size += on_device(flags) ? DEVICE_TRAILER : 0;
        return {};
    });
}

Status state_seq_get_data(ContextBox & box, uint8_t * out, size_t size, SeqId seq, uint32_t flags,
                          size_t & written) noexcept {
    return guarded(Code::state_mismatch, [&]() -> Status {
        size_t need_size = 0;
        if (Status bad = state_seq_get_size(box, seq, flags, need_size); !bad.ok()) {
            return bad;
        }
        if (size < need_size) {
            return Status(Code::invalid_argument,
                          text("the buffer has ", size, " bytes, the state of sequence ", seq, " takes ", need_size));
        }
        log_mark();
        if (!on_device(flags)) {
            written = llama_state_seq_get_data_ext(box.ptr, out, size, seq, flags);
            return written ? Status()
                           : Status(Code::state_mismatch, "llama.cpp could not write the state: " + log_last());
        }
        llama_synchronize(box.ptr);
        RawDeviceState & slot = box.raw_states.slots[seq];
        BufferNeeds fresh;
        for (const auto & [buft, need] : device_need(box, seq, flags)) {
            const auto kept = slot.buffers.find(buft);
            if (kept == slot.buffers.end() || kept->second.bytes != need.bytes) {
                fresh[buft] = need;
            } else if (need.padded > kept->second.padded) {
                return Status(
                    Code::unsupported,
                    text("llama.cpp would put these cell ranges into the buffer of the last save of sequence ", seq,
                         ", which is too small for their padding, and abort: use ctx.checkpoint()"));
            }
        }
        if (Status bad = probe_device(fresh); !bad.ok()) {
            return bad;
        }
        for (const auto & [buft, need] : fresh) {
            slot.buffers[buft] = need;
        }
        slot.save_number = 0;
        const size_t native = need_size - DEVICE_TRAILER;
        written = llama_state_seq_get_data_ext(box.ptr, out, native, seq, flags);
        if (written != native) {
            return Status(Code::state_mismatch, "llama.cpp could not write the state: " + log_last());
        }
        slot.save_number = ++box.raw_states.n_saves;
        slot.flags = flags;
        slot.blob.assign(out, out + native);
        slot.rows = box.provenance.of(seq);
        slot.encoding = box.encoding;
        const DeviceTrailer trailer{box.id, slot.save_number};
        std::memcpy(out + native, &trailer, DEVICE_TRAILER);
        written += DEVICE_TRAILER;
        return {};
    });
}

Status state_seq_set_data(ContextBox & box, const uint8_t * data, size_t size, SeqId dest, uint32_t flags,
                          size_t & read) noexcept {
    return guarded(Code::state_mismatch, [&]() -> Status {
        if (Status bad = check_dest(box, dest, flags); !bad.ok()) {
            return bad;
        }
        log_mark();
        size_t native = size;
        const Runs * rows = nullptr;
        if (on_device(flags)) {
            if (Status bad = check_device(box, flags); !bad.ok()) {
                return bad;
            }
            DeviceTrailer trailer;
            if (size < BLOB_HEADER + DEVICE_TRAILER) {
                return Status(Code::state_mismatch, text("a device state of ", size, " bytes is truncated"));
            }
            native = size - DEVICE_TRAILER;
            std::memcpy(&trailer, data + native, DEVICE_TRAILER);
            if (trailer.context_id != box.id) {
                return Status(Code::state_mismatch,
                              "not a device state of this context: "
                              "its tensors are in another context (or it is a host state, or damaged)");
            }
            SeqId source;
            std::memcpy(&source, data + 4, sizeof source);
            const auto found = box.raw_states.slots.find(source);
            if (found == box.raw_states.slots.end()) {
                return Status(Code::state_mismatch,
                              text("sequence ", source,
                                   " was never saved on its device here: the bytes of this device state were changed"));
            }
            if (found->second.save_number != trailer.save_number) {
                return Status(Code::stale_checkpoint,
                              text("this device state is stale: sequence ", source,
                                   " was saved again since, "
                                   "and llama.cpp keeps one per sequence (ctx.checkpoint() keeps any number)"));
            }
            const RawDeviceState & slot = found->second;
            if (slot.flags != flags) {
                return Status(Code::state_mismatch, text("the state was saved with flags=", slot.flags,
                                                         ", it cannot be restored with flags=", flags));
            }
            if (slot.blob.size() != native || std::memcmp(slot.blob.data(), data, native) != 0) {
                return Status(Code::state_mismatch, "the bytes of this device state were changed");
            }
            if (slot.encoding != box.encoding) {
                return Status(
                    Code::stale_checkpoint,
                    "encode() has run since this state was saved, and its rows belong to what was encoded before");
            }
            rows = &slot.rows;
        }
        const bool partial = leaves_out(box.map, flags);
        if (partial && rows && !(box.provenance.of(dest).slice(0, rows->end()) == *rows)) {
            return Status(
                Code::stale_checkpoint,
                text("sequence ", dest, " does not hold the rows this partial state continues: restore a full state"));
        }
        box.drop_outputs();
        // llama.cpp leaves an attention cache as it is when the state is an empty one.
        if (!partial) {
            make_empty(box, dest);
        } else if (box.map.window) {
            box.map.window->seq_rm(dest, -1, -1);
        }
        if (rows) {
            if (llama_state_seq_set_data_ext(box.ptr, data, native, dest, flags) == 0) {
                make_empty(box, dest);
                return Status(Code::state_mismatch,
                              text("llama.cpp refused the state: ", log_last(), "; sequence ", dest, " is now empty"));
            }
            read = size;
        } else {
            llama_synchronize(box.ptr);
            CheckedReader reader(data, size);
            if (Status bad = read_host(box, reader, Header::sequence, dest, flags, false); !bad.ok()) {
                return bad;
            }
            read = reader.n_bytes();
        }
        if (partial) {
            if (Status bad = settle_partial(box, dest); !bad.ok()) {
                return bad;
            }
        }
        if (!rows) {
            return adopt_rows(box, dest);
        }
        box.provenance.assign(dest, *rows);
        box.map.reset_ring(dest);
        return {};
    });
}

Status state_get_size(ContextBox & box, size_t & size) noexcept {
    return guarded(Code::state_mismatch, [&]() -> Status {
        if (Status bad = check_call(box, 0, 0, "seq_id"); !bad.ok()) {
            return bad;
        }
        llama_synchronize(box.ptr); // llama_state_get_size does not
        if (Status bad = check_pending(box); !bad.ok()) {
            return bad;
        }
        size = llama_state_get_size(box.ptr);
        return size ? Status() : Status(Code::state_mismatch, "llama.cpp could not size the state: " + log_last());
    });
}

Status state_get_data(ContextBox & box, uint8_t * out, size_t size, size_t & written) noexcept {
    return guarded(Code::state_mismatch, [&]() -> Status {
        size_t need = 0;
        if (Status bad = state_get_size(box, need); !bad.ok()) {
            return bad;
        }
        if (size < need) {
            return Status(Code::invalid_argument, text("the buffer has ", size, " bytes, the state takes ", need));
        }
        written = llama_state_get_data(box.ptr, out, size);
        return written ? Status() : Status(Code::state_mismatch, "llama.cpp could not write the state: " + log_last());
    });
}

Status state_set_data(ContextBox & box, const uint8_t * data, size_t size, bool exact, size_t & read) noexcept {
    return guarded(Code::state_mismatch, [&]() -> Status {
        if (Status bad = check_call(box, 0, 0, "seq_id"); !bad.ok()) {
            return bad;
        }
        log_mark();
        llama_synchronize(box.ptr);
        box.drop_outputs();
        CheckedReader reader(data, size);
        if (Status bad = read_host(box, reader, Header::context, -1, 0, exact); !bad.ok()) {
            return bad;
        }
        read = reader.n_bytes();
        Status status;
        for (SeqId seq = 0; seq < box.provenance.n_seq_max(); ++seq) {
            if (Status bad = adopt_rows(box, seq); !bad.ok()) {
                status = std::move(bad);
            }
        }
        return status;
    });
}

Status state_seq_read_payload(ContextBox & box, const uint8_t * data, size_t size, SeqId dest) noexcept {
    return guarded(Code::state_mismatch, [&]() -> Status {
        if (Status bad = check_dest(box, dest, 0); !bad.ok()) {
            return bad;
        }
        log_mark();
        llama_synchronize(box.ptr);
        box.drop_outputs();
        make_empty(box, dest);
        CheckedReader reader(data, size);
        if (Status bad = read_host(box, reader, Header::none, dest, 0, true); !bad.ok()) {
            return bad;
        }
        return adopt_rows(box, dest);
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

} // namespace lloyal
