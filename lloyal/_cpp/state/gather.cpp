#include "state/gather.hpp"

#include "core/fault.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace lloyal {
namespace {

constexpr size_t WORD = sizeof(uint32_t);
constexpr size_t HALF = sizeof(uint16_t);
constexpr size_t INDEX_ALIGNMENT = 256 / sizeof(int32_t); // of what a graph reads, in elements
constexpr size_t MAX_TENSORS = 16;                        // of one copy
constexpr size_t MAX_SCRATCH = 16 << 20;                  // for halves: more is done piece by piece
constexpr size_t FEW_RUNS = 4;                            // that a strided copy each moves
// What a back end's kernels count with 32 bits.
constexpr size_t MAX_ELEMENTS = size_t(1) << 31;

ggml_context_ptr new_context(size_t size) {
    ggml_context_ptr context(ggml_init({size, nullptr, true}));
    if (!context) {
        throw std::bad_alloc();
    }
    return context;
}

// `n_rows` rows of `n_pieces` pieces, each `n` elements of a type that only says how wide they are.
ggml_tensor * new_rows(ggml_context * context, ggml_type type, size_t n, size_t n_rows, size_t n_pieces, size_t stride,
                       size_t pitch) {
    ggml_tensor * tensor = ggml_new_tensor_3d(context, type, int64_t(n), int64_t(n_rows), int64_t(n_pieces));
    tensor->nb[1] = stride;
    tensor->nb[2] = tensor->nb[3] = n_pieces == 1 ? stride * n_rows : pitch;
    return tensor;
}

void bind(ggml_tensor * tensor, const ggml_tensor * memory, size_t offset) {
    if (ggml_backend_tensor_alloc(memory->buffer, tensor, static_cast<char *>(memory->data) + offset) !=
        GGML_STATUS_SUCCESS) {
        throw std::runtime_error("a back end refused a view of its own memory");
    }
}

bool is_aligned(const RowPlace & place, uint32_t n_pieces, size_t to) {
    const size_t begin = reinterpret_cast<size_t>(place.tensor->data) + place.offset;
    return begin % to == 0 && (n_pieces == 1 || place.pitch % to == 0);
}

} // namespace

RowGraphs::Index & RowGraphs::index_of(Device & device, const RowRuns & rows, bool halves) {
    Index & index = device.by_rows[&rows];
    std::vector<int32_t> & all = device.index;
    const auto begin = [&all] {
        all.resize((all.size() + INDEX_ALIGNMENT - 1) / INDEX_ALIGNMENT * INDEX_ALIGNMENT);
        return all.size();
    };
    if (!halves && index.rows == NONE) {
        index.rows = begin();
        rows.for_each([&](uint32_t row) { all.push_back(int32_t(row)); });
    }
    if (halves && index.pairs == NONE) {
        index.pairs = begin();
        for (const uint32_t parity : {0u, 1u}) {
            rows.for_each([&](uint32_t row) {
                if (row % 2 == parity) {
                    all.push_back(int32_t(row / 2));
                    index.n_even += parity == 0;
                }
            });
        }
        for (const uint32_t parity : {0u, 1u}) {
            (parity == 0 ? index.even : index.odd) = begin();
            int32_t at = 0;
            rows.for_each([&](uint32_t row) {
                if (row % 2 == parity) {
                    all.push_back(at);
                }
                ++at;
            });
        }
    }
    return index;
}

// Strided copies, one a run: for pieces that lie far apart while their rows do not.
bool RowGraphs::build_runs(ggml_backend_t backend, Work & work, size_t word) {
    const RowCopy & copy = work.copy;
    const ggml_type type = word == WORD ? GGML_TYPE_F32 : GGML_TYPE_F16;
    ggml_context * context = work.context.get();
    size_t at = 0;
    for (const RowRuns::Run & run : copy.rows->list) {
        const size_t n = run.n * copy.piece / word;
        ggml_tensor * spread = new_rows(context, type, n, copy.n_pieces, 1, copy.spread.pitch, 0);
        ggml_tensor * packed = new_rows(context, type, n, copy.n_pieces, 1, copy.packed.pitch, 0);
        bind(spread, copy.spread.tensor, row_offset(copy.spread, copy.piece, run.row, 0));
        work.staged.push_back({packed, at * copy.piece});
        ggml_tensor * node = copy.gather ? ggml_cpy(context, spread, packed) : ggml_cpy(context, packed, spread);
        if (!ggml_backend_supports_op(backend, node)) {
            return false;
        }
        work.nodes.push_back(node);
        at += run.n;
    }
    return true;
}

// Rows into their places, as numbers of a type that is written as it is read, so that nobody computes with them.
bool RowGraphs::build_scatter(ggml_backend_t backend, Device & device, Work & work, ggml_type type) {
    const RowCopy & copy = work.copy;
    ggml_context * context = work.context.get();
    const size_t n_rows = copy.rows->n_rows;
    const size_t n = copy.piece / ggml_type_size(type);
    ggml_tensor * spread = new_rows(context, type, n, copy.spread.n_rows, copy.n_pieces, copy.piece, copy.spread.pitch);
    ggml_tensor * packed = new_rows(context, type, n, n_rows, copy.n_pieces, copy.piece, copy.packed.pitch);
    ggml_tensor * index = ggml_new_tensor_1d(context, GGML_TYPE_I32, int64_t(n_rows));
    bind(spread, copy.spread.tensor, copy.spread.offset);
    work.nodes.push_back(ggml_set_rows(context, spread, packed, index));
    work.staged.push_back({packed, 0});
    work.indices.push_back({index, index_of(device, *copy.rows, false).rows});
    return ggml_backend_supports_op(backend, work.nodes.back());
}

// Rows of whole words: as integers or, to scatter them, as floats that nobody computes with.
bool RowGraphs::build_words(ggml_backend_t backend, Device & device, Work & work) {
    const RowCopy & copy = work.copy;
    ggml_context * context = work.context.get();
    const size_t n_rows = copy.rows->n_rows;
    const size_t n = copy.piece / WORD;
    if (!copy.gather) {
        return build_scatter(backend, device, work, GGML_TYPE_F32);
    }
    const size_t at = index_of(device, *copy.rows, false).rows;
    for (const ggml_type type : {GGML_TYPE_I32, GGML_TYPE_F32}) {
        ggml_tensor * spread =
            new_rows(context, type, n, copy.spread.n_rows, copy.n_pieces, copy.piece, copy.spread.pitch);
        // The same rows of each piece.
        ggml_tensor * index = new_rows(context, GGML_TYPE_I32, n_rows, copy.n_pieces, 1, 0, 0);
        ggml_tensor * packed = ggml_get_rows(context, spread, index);
        packed->nb[2] = packed->nb[3] = copy.packed.pitch;
        if (ggml_backend_supports_op(backend, packed)) {
            bind(spread, copy.spread.tensor, copy.spread.offset);
            work.indices.push_back({index, at});
            work.staged.push_back({packed, 0});
            work.nodes.push_back(packed);
            return true;
        }
    }
    return false;
}

// Rows of 16-bit halves, which can be scattered but not gathered as they are: the words that hold them are gathered, and
// scattered into their places half by half, those of even rows and those of odd ones.
bool RowGraphs::build_halves(ggml_backend_t backend, Device & device, Work & work) {
    const RowCopy & copy = work.copy;
    ggml_context * context = work.context.get();
    const size_t n_rows = copy.rows->n_rows;
    const size_t n = copy.piece / HALF;
    if (!copy.gather) {
        return build_scatter(backend, device, work, GGML_TYPE_F16);
    }
    const Index & index = index_of(device, *copy.rows, true);
    const size_t pair = 2 * copy.piece;
    ggml_tensor * pairs =
        new_rows(context, GGML_TYPE_I32, pair / WORD, copy.spread.n_rows / 2, copy.n_pieces, pair, copy.spread.pitch);
    ggml_tensor * which = new_rows(context, GGML_TYPE_I32, n_rows, copy.n_pieces, 1, 0, 0);
    bind(pairs, copy.spread.tensor, copy.spread.offset);
    work.nodes.push_back(ggml_get_rows(context, pairs, which));
    work.indices.push_back({which, index.pairs});
    work.halves.push_back({work.nodes.back(), 0});
    work.n_scratch = pair * n_rows * copy.n_pieces;
    for (const bool odd : {false, true}) {
        const size_t n_half = odd ? n_rows - index.n_even : index.n_even;
        if (n_half == 0) {
            continue;
        }
        ggml_tensor * from = new_rows(context, GGML_TYPE_F16, n, n_half, copy.n_pieces, pair, pair * n_rows);
        ggml_tensor * to = new_rows(context, GGML_TYPE_F16, n, n_rows, copy.n_pieces, copy.piece, copy.packed.pitch);
        ggml_tensor * where = ggml_new_tensor_1d(context, GGML_TYPE_I32, int64_t(n_half));
        work.halves.push_back({from, odd ? index.n_even * pair + copy.piece : 0});
        work.indices.push_back({where, odd ? index.odd : index.even});
        work.staged.push_back({to, 0});
        work.nodes.push_back(ggml_set_rows(context, to, from, where));
    }
    return std::all_of(work.nodes.begin(), work.nodes.end(),
                       [backend](ggml_tensor * node) { return ggml_backend_supports_op(backend, node); });
}

bool RowGraphs::build(ggml_backend_t backend, Device & device, Work & work) {
    const RowCopy & copy = work.copy;
    const size_t n_bytes = copy.piece * copy.n_pieces * size_t(std::max(copy.spread.n_rows, copy.packed.n_rows));
    if (n_bytes / HALF >= MAX_ELEMENTS) {
        return false;
    }
    const auto aligned = [&](size_t to) {
        return copy.piece % to == 0 && is_aligned(copy.spread, copy.n_pieces, to) &&
               is_aligned(copy.packed, copy.n_pieces, to);
    };
    const size_t word = aligned(WORD) ? WORD : aligned(HALF) ? HALF : 0;
    if (word == 0) {
        return false;
    }
    if (copy.rows->list.size() <= FEW_RUNS) {
        return build_runs(backend, work, word);
    }
    if (word == WORD) {
        return build_words(backend, device, work);
    }
    // Two rows a word: the last of an odd number has no partner.
    const bool paired = is_aligned(copy.spread, copy.n_pieces, WORD) &&
                        std::all_of(copy.rows->list.begin(), copy.rows->list.end(), [&](const RowRuns::Run & run) {
                            return run.row + run.n <= copy.spread.n_rows / 2 * 2;
                        });
    return (paired || !copy.gather) && build_halves(backend, device, work);
}

bool RowGraphs::add(const RowCopy & copy, Queues & queues) {
    ggml_backend_t backend = queues.of(copy.spread.tensor);
    const bool by_host = is_host(copy.packed.tensor);
    if (!backend || !(by_host || queues.of(copy.packed.tensor) == backend)) {
        return false;
    }
    Device & device =
        devices_.try_emplace(backend, Device{ggml_backend_get_default_buffer_type(backend)}).first->second;
    // Pieces at a time, so that the halves of all of them fit into little memory.
    const bool in_halves = copy.gather && copy.piece % WORD != 0;
    const size_t most = std::max<size_t>(1, MAX_SCRATCH / (2 * copy.piece * copy.rows->n_rows));
    const uint32_t step = in_halves ? uint32_t(std::min<size_t>(most, copy.n_pieces)) : copy.n_pieces;
    std::vector<Work> works;
    for (uint32_t k = 0; k < copy.n_pieces; k += step) {
        Work work{copy, new_context(MAX_TENSORS * ggml_tensor_overhead())};
        work.copy.n_pieces = std::min(step, copy.n_pieces - k);
        work.copy.spread.offset += k * copy.spread.pitch;
        work.copy.packed.offset += k * copy.packed.pitch;
        if (by_host) {
            work.copy.packed = {copy.spread.tensor, 0, copy.rows->n_rows * copy.piece, copy.rows->n_rows}; // for now
        }
        if (!build(backend, device, work)) {
            return false;
        }
        work.copy.packed = copy.packed;
        work.copy.packed.offset += k * copy.packed.pitch;
        works.push_back(std::move(work));
    }
    std::vector<Work> & all = by_host ? device.by_host : device.direct;
    std::move(works.begin(), works.end(), std::back_inserter(all));
    return true;
}

void RowGraphs::compute(ggml_backend_t backend, Queues & queues, const Work * works, size_t n) {
    const size_t size = n * MAX_TENSORS;
    graphs_.push_back(new_context(ggml_graph_overhead_custom(size, false)));
    ggml_cgraph * graph = ggml_new_graph_custom(graphs_.back().get(), size, false);
    for (size_t i = 0; i < n; ++i) {
        for (ggml_tensor * node : works[i].nodes) {
            if (node->view_src) {
                ggml_backend_view_init(node);
            }
            ggml_build_forward_expand(graph, node);
        }
    }
    fault_point();
    queues.queued(backend);
    if (ggml_backend_graph_compute_async(backend, graph) != GGML_STATUS_SUCCESS) {
        throw std::runtime_error(std::string(ggml_backend_name(backend)) + " could not gather or scatter rows");
    }
}

void RowGraphs::run(ggml_backend_t backend, Device & device, Queues & queues) {
    if (device.direct.empty() && device.by_host.empty()) {
        return;
    }
    size_t n_scratch = 0;
    size_t n_staged = 0;
    for (const Work & work : device.direct) {
        n_scratch = std::max(n_scratch, work.n_scratch);
    }
    for (const Work & work : device.by_host) {
        n_scratch = std::max(n_scratch, work.n_scratch);
        n_staged = std::max(n_staged, work.copy.piece * work.copy.n_pieces * work.copy.rows->n_rows);
    }
    // One after the other, a back end computes in order: all can use the same scratch memory.
    const auto acquire = [&](size_t size) -> ggml_tensor * {
        return size == 0 ? nullptr : buffers_.emplace_back(pool_.acquire(device.buft, size))->tensor();
    };
    ggml_tensor * index = acquire(device.index.size() * sizeof(int32_t));
    ggml_tensor * scratch = acquire(n_scratch);
    ggml_tensor * staged = acquire(n_staged);
    if (index) {
        ggml_backend_tensor_set_async(backend, index, device.index.data(), 0, device.index.size() * sizeof(int32_t));
        queues.queued(backend);
    }
    const auto bind_all = [&](Work & work, const ggml_tensor * packed, size_t offset) {
        for (const Unbound & one : work.indices) {
            bind(one.tensor, index, one.offset * sizeof(int32_t));
        }
        for (const Unbound & one : work.halves) {
            bind(one.tensor, scratch, one.offset);
        }
        for (const Unbound & one : work.staged) {
            bind(one.tensor, packed, offset + one.offset);
        }
    };
    for (Work & work : device.direct) {
        fault_point();
        bind_all(work, work.copy.packed.tensor, work.copy.packed.offset);
    }
    if (!device.direct.empty()) {
        compute(backend, queues, device.direct.data(), device.direct.size());
    }
    for (Work & work : device.by_host) {
        fault_point();
        const RowCopy & copy = work.copy;
        bind_all(work, staged, 0);
        // All pieces at once where they follow each other.
        const size_t size = copy.piece * copy.rows->n_rows;
        const uint32_t n_together = copy.packed.pitch == size ? copy.n_pieces : 1;
        const auto move = [&](auto && one) {
            for (uint32_t k = 0; k < copy.n_pieces; k += n_together) {
                one(static_cast<char *>(copy.packed.tensor->data) + copy.packed.offset + k * copy.packed.pitch,
                    k * size, n_together * size);
            }
        };
        if (copy.gather) {
            compute(backend, queues, &work, 1);
            move([&](char * host, size_t offset, size_t n) {
                ggml_backend_tensor_get_async(backend, staged, host, offset, n);
            });
        } else {
            move([&](const char * host, size_t offset, size_t n) {
                ggml_backend_tensor_set_async(backend, staged, host, offset, n);
                queues.queued(backend, n);
            });
            compute(backend, queues, &work, 1);
        }
    }
}

std::vector<RowCopy> RowGraphs::run(Queues & queues) {
    std::vector<RowCopy> left;
    for (auto & [backend, device] : devices_) {
        try {
            run(backend, device, queues);
        } catch (const DeviceMemoryError &) {
            for (const std::vector<Work> * works : {&device.direct, &device.by_host}) {
                for (const Work & work : *works) {
                    left.push_back(work.copy);
                }
            }
        }
    }
    return left;
}

} // namespace lloyal
