// Rows gathered and scattered by the back end that has them: one graph a device, whatever the interleaving, so that to a
// server on the network only indices travel.
#pragma once

#include "state/copy.hpp"

#include "ggml-cpp.h"

#include <map>
#include <memory>
#include <utility>
#include <vector>

namespace lloyal {

class RowGraphs {
  public:
    explicit RowGraphs(BufferPool & pool) : pool_(pool) {}

    // False if the back end of the rows cannot do it bit for bit.
    bool add(const RowCopy & copy, Queues & queues);
    // Queue everything that was added, but for what this returns: the device has no memory left for their indices. It must
    // be waited for before this goes.
    std::vector<RowCopy> run(Queues & queues);

  private:
    // Where rows of a list lie in the index: each as it is; halves of what 32-bit words hold, the even ones first.
    struct Index {
        size_t rows = NONE;
        size_t pairs = NONE;
        size_t even = NONE;
        size_t odd = NONE;
        uint32_t n_even = 0;
    };
    static constexpr size_t NONE = ~size_t(0);

    // A tensor that gets its memory when everything is known.
    struct Unbound {
        ggml_tensor * tensor;
        size_t offset;
    };

    // The graph nodes of one copy.
    struct Work {
        RowCopy copy;
        ggml_context_ptr context;
        std::vector<ggml_tensor *> nodes{};
        std::vector<Unbound> indices{};
        std::vector<Unbound> halves{}; // in scratch memory
        std::vector<Unbound> staged{}; // the packed rows, where those are on the host
        size_t n_scratch = 0;
    };

    // What one back end has to do.
    struct Device {
        ggml_backend_buffer_type_t buft;
        std::map<const RowRuns *, Index> by_rows{};
        std::vector<int32_t> index{};
        std::vector<Work> direct{};
        std::vector<Work> by_host{};
    };

    static Index & index_of(Device & device, const RowRuns & rows, bool halves);
    static bool build(ggml_backend_t backend, Device & device, Work & work);
    static bool build_runs(ggml_backend_t backend, Work & work, size_t word);
    static bool build_scatter(ggml_backend_t backend, Device & device, Work & work, ggml_type type);
    static bool build_words(ggml_backend_t backend, Device & device, Work & work);
    static bool build_halves(ggml_backend_t backend, Device & device, Work & work);
    void run(ggml_backend_t backend, Device & device, Queues & queues);
    void compute(ggml_backend_t backend, Queues & queues, const Work * works, size_t n);

    BufferPool & pool_;
    std::map<ggml_backend_t, Device> devices_;
    std::vector<std::shared_ptr<DeviceBuffer>> buffers_;
    std::vector<ggml_context_ptr> graphs_;
};

} // namespace lloyal
