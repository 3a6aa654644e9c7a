#include "state/copy.hpp"

#include "core/fault.hpp"
#include "state/gather.hpp"

#include "llama-context.h"

#include "ggml-backend-impl.h"

#include <algorithm>
#include <cstring>

namespace lloyal {
namespace {

// So few copies cost less than an index of them.
constexpr size_t FEW = 4;
constexpr size_t MANY = 64;
constexpr size_t AHEAD = 8 << 10; // bytes to fetch before they are copied
constexpr size_t LONG = 128;      // rows
// A back end that sends what is queued holds a copy of it until then.
constexpr size_t MAX_QUEUED = 64 << 20;

// A view of `size` bytes of a tensor, whatever its type.
ggml_tensor byte_view(ggml_tensor * base, size_t offset, size_t size) {
    ggml_tensor view{};
    view.type = GGML_TYPE_I8;
    view.ne[0] = int64_t(size);
    view.ne[1] = view.ne[2] = view.ne[3] = 1;
    view.nb[0] = 1;
    view.nb[1] = view.nb[2] = view.nb[3] = size;
    view.view_src = base->view_src ? base->view_src : base;
    view.view_offs = base->view_offs + offset;
    ggml_backend_view_init(&view);
    return view;
}

char * bytes(const ggml_tensor * tensor, size_t offset) {
    return static_cast<char *>(tensor->data) + offset;
}

void run_copy(const Copy & copy, Queues & queues) {
    fault_point();
    const bool from_host = is_host(copy.src);
    const bool to_host = is_host(copy.dst);
    if (from_host && to_host) {
        std::memcpy(bytes(copy.dst, copy.dst_offset), bytes(copy.src, copy.src_offset), copy.size);
        return;
    }
    ggml_tensor src = byte_view(copy.src, copy.src_offset, copy.size);
    ggml_tensor dst = byte_view(copy.dst, copy.dst_offset, copy.size);
    ggml_backend_t backend = queues.of(from_host ? copy.dst : copy.src);
    if (backend && to_host) {
        ggml_backend_tensor_get_async(backend, &src, dst.data, 0, copy.size);
        queues.queued(backend);
    } else if (backend && from_host) {
        ggml_backend_tensor_set_async(backend, &dst, src.data, 0, copy.size);
        queues.queued(backend, copy.size);
    } else if (backend && backend->iface.cpy_tensor_async && queues.of(copy.dst) == backend) {
        ggml_backend_tensor_copy_async(backend, backend, &src, &dst);
        queues.queued(backend);
    } else {
        ggml_backend_tensor_copy(&src, &dst);
    }
}

// Copy by copy.
void expand(const RowCopy & copy, CopyList & list) {
    for (uint32_t k = 0; k < copy.n_pieces; ++k) {
        uint32_t at = 0;
        for (const RowRuns::Run & run : copy.rows->list) {
            const size_t spread = row_offset(copy.spread, copy.piece, run.row, k);
            const size_t packed = row_offset(copy.packed, copy.piece, at, k);
            if (copy.gather) {
                list.add({copy.spread.tensor, spread, copy.packed.tensor, packed, run.n * copy.piece});
            } else {
                list.add({copy.packed.tensor, packed, copy.spread.tensor, spread, run.n * copy.piece});
            }
            at += run.n;
        }
    }
}

// Elements of one size, run by run: a call for each would take most of the time.
template <typename T> void copy_elements(const RowRuns & rows, char * spread, char * packed, bool gather) {
    for (const RowRuns::Run & run : rows.list) {
        T * there = reinterpret_cast<T *>(spread) + run.row;
        T * here = reinterpret_cast<T *>(packed);
        for (uint32_t i = 0; i < run.n; ++i) {
            if (gather) {
                here[i] = there[i];
            } else {
                there[i] = here[i];
            }
        }
        packed += run.n * sizeof(T);
    }
}

// The processor fetches ahead within a page, and the next row lies in another one.
void prefetch(char * row, size_t size, bool to_write) {
    constexpr size_t LINE = 64;
    for (size_t i = 0; i < std::min<size_t>(size, 4096); i += LINE) {
        if (to_write) {
            __builtin_prefetch(row + i, 1);
        } else {
            __builtin_prefetch(row + i, 0);
        }
    }
}

void copy_on_host(const RowCopy & copy) {
    fault_point();
    for (uint32_t k = 0; k < copy.n_pieces; ++k) {
        char * spread = bytes(copy.spread.tensor, row_offset(copy.spread, copy.piece, 0, k));
        char * packed = bytes(copy.packed.tensor, row_offset(copy.packed, copy.piece, 0, k));
        if (copy.piece == sizeof(uint16_t)) {
            copy_elements<uint16_t>(*copy.rows, spread, packed, copy.gather);
        } else if (copy.piece == sizeof(uint32_t)) {
            copy_elements<uint32_t>(*copy.rows, spread, packed, copy.gather);
        } else {
            const std::vector<RowRuns::Run> & runs = copy.rows->list;
            const size_t ahead = std::clamp<size_t>(AHEAD / copy.piece, 1, 32);
            for (size_t i = 0; i < runs.size(); ++i) {
                const RowRuns::Run & run = runs[i];
                if (i + ahead < runs.size()) {
                    prefetch(spread + runs[i + ahead].row * copy.piece, copy.piece, !copy.gather);
                }
                char * there = spread + run.row * copy.piece;
                const size_t size = run.n * copy.piece;
                std::memcpy(copy.gather ? packed : there, copy.gather ? there : packed, size);
                packed += size;
            }
        }
    }
}

} // namespace

bool is_host(const ggml_tensor * tensor) {
    return ggml_backend_buffer_is_host(tensor->buffer);
}

ggml_backend_t Queues::of(const ggml_tensor * tensor) {
    ggml_backend_buffer_type_t buft = ggml_backend_buffer_get_type(tensor->buffer);
    const auto [found, is_new] = by_type_.try_emplace(buft, nullptr);
    if (is_new && !ggml_backend_buft_is_host(buft)) {
        ggml_backend_sched_t sched = context_.get_sched();
        for (int i = 0; i < ggml_backend_sched_get_n_backends(sched) && !found->second; ++i) {
            ggml_backend_t backend = ggml_backend_sched_get_backend(sched, i);
            if (ggml_backend_get_default_buffer_type(backend) == buft) {
                found->second = backend;
            }
        }
    }
    return found->second;
}

void Queues::queued(ggml_backend_t backend, size_t bytes_from_host) {
    size_t & held = queued_[backend];
    held += bytes_from_host;
    if (held > MAX_QUEUED) {
        ggml_backend_synchronize(backend);
        held = 0;
    }
}

void Queues::wait() {
    for (const auto & [backend, held] : queued_) {
        ggml_backend_synchronize(backend);
    }
    queued_.clear();
}

void CopyList::add(const RowCopy & copy) {
    const std::vector<RowRuns::Run> & runs = copy.rows->list;
    // Pieces that follow each other in both places are one.
    const size_t packed = copy.rows->n_rows * copy.piece;
    const bool whole = runs.size() == 1 && copy.spread.pitch == packed && copy.packed.pitch == packed;
    const size_t n = runs.size() * copy.n_pieces;
    // On a device an index of long runs costs more than they do.
    const bool is_long = n <= MANY && n * LONG <= copy.rows->n_rows && !is_host(copy.spread.tensor);
    if (whole || n <= FEW || is_long) {
        expand(copy, *this);
    } else {
        row_copies_.push_back(copy);
    }
}

void CopyList::run(llama_context & context, BufferPool & pool) const {
    RowGraphs graphs(pool); // outlives what is queued
    Queues queues(context);
    for (const Copy & copy : copies_) {
        run_copy(copy, queues);
    }
    CopyList left;
    for (const RowCopy & copy : row_copies_) {
        if (is_host(copy.spread.tensor) && is_host(copy.packed.tensor)) {
            copy_on_host(copy);
        } else if (!graphs.add(copy, queues)) {
            expand(copy, left);
        }
    }
    for (const RowCopy & copy : graphs.run(queues)) {
        expand(copy, left);
    }
    for (const Copy & copy : left.copies_) {
        run_copy(copy, queues);
    }
    queues.wait();
}

} // namespace lloyal
