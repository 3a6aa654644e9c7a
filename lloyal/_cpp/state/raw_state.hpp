// llama.cpp's own state calls, guarded. Storage of LLAMA_STATE_SEQ_FLAGS_ON_DEVICE is one slot per source sequence
// inside the context; a blob that does not match the slot aborts the process or restores other tensors silently. So
// a device blob gets a trailer of ours (context id, save number), and what was saved last is remembered here.
#pragma once

#include "core/status.hpp"
#include "memory/provenance.hpp"

#include "llama.h"

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

namespace lloyal {

struct ContextBox;

struct DeviceTrailer {
    uint64_t context_id;
    uint64_t save_number;
};
constexpr size_t DEVICE_TRAILER = sizeof(DeviceTrailer);

// What the slot of one sequence holds now.
struct RawDeviceState {
    uint64_t save_number = 0; // 0: a save failed half way, nothing there can be trusted
    uint32_t flags = 0;
    std::vector<uint8_t> blob; // the metadata llama.cpp wrote: any other bytes would make it abort
    Runs rows;                 // provenance at the time of the save
    uint64_t encoding = 0;     // the encoder's output at that time
    struct Buffer {
        size_t bytes = 0;  // of the tensors that were saved last
        size_t padded = 0; // what it was made for: the tensors with their padding
    };
    // What llama.cpp keeps for the slot. A save without tensors of a buffer type leaves that one as it was.
    std::map<ggml_backend_buffer_type_t, Buffer> buffers;
};

struct RawDeviceStates {
    std::map<SeqId, RawDeviceState> slots;
    uint64_t n_saves = 0;
};

Status state_seq_get_size(ContextBox & box, SeqId seq, uint32_t flags, size_t & size) noexcept;
// `size` must be what state_seq_get_size says now, or more; `written` is what was used of it.
Status state_seq_get_data(ContextBox & box, uint8_t * out, size_t size, SeqId seq, uint32_t flags,
                          size_t & written) noexcept;
Status state_seq_set_data(ContextBox & box, const uint8_t * data, size_t size, SeqId dest, uint32_t flags,
                          size_t & read) noexcept;

Status state_get_size(ContextBox & box, size_t & size) noexcept;
Status state_get_data(ContextBox & box, uint8_t * out, size_t size, size_t & written) noexcept;
// Both in one stay: `need` is the size of the state; it is written if `size` is that or more.
Status state_seq_write(ContextBox & box, uint8_t * out, size_t size, SeqId seq, uint32_t flags, size_t & need,
                       size_t & written) noexcept;
Status state_write(ContextBox & box, uint8_t * out, size_t size, size_t & need, size_t & written) noexcept;
// With `exact` nothing may follow the state.
Status state_set_data(ContextBox & box, const uint8_t * data, size_t size, bool exact, size_t & read) noexcept;

// The payload of a sequence file: a host state without its first 8 bytes. Reads all of it or empties `dest`.
Status state_seq_read_payload(ContextBox & box, const uint8_t * data, size_t size, SeqId dest) noexcept;

} // namespace lloyal
