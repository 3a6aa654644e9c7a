# Declarations of core, and of what a context holds: of the headers in the folders here, one file a folder.
#
# What changes a context or a sampler, or reads what may change, is declared by `inside`, which takes the handle and is the
# one caller for the time of the call (core/calls.hpp); what computes graphs, by `computing`. Nothing else takes a box, but
# for what never changes.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libcpp cimport bool
from libcpp.memory cimport shared_ptr
from libcpp.string cimport string
from libcpp.vector cimport vector

cimport lloyal.libllama.ggml as g
cimport lloyal.libllama.llama as c

cdef extern from "core/calls.hpp" namespace "lloyal" nogil:
    pass

cdef extern from "core/status.hpp" namespace "lloyal" nogil:
    cppclass Status:
        int native
        string message
        bool ok() const
        int value() const

cdef extern from "core/log.hpp" namespace "lloyal" nogil:
    cppclass LogLine:
        int level
        string text
    void log_install()
    bool log_pending()
    vector[LogLine] log_drain(uint64_t& lost)
    string log_last()
    void log_mark()

cdef extern from "core/budget.hpp" namespace "lloyal" nogil:
    void budget_on_poll(bool (*poll)() noexcept nogil)

cdef extern from "core/fence.hpp" namespace "lloyal" nogil:
    void fence_install()

cdef extern from "core/fault.hpp" namespace "lloyal" nogil:
    void abort_arm(int64_t n)
    int64_t abort_remaining()
    void fault_arm(int64_t n)
    int64_t fault_remaining()

cdef extern from "core/exit.hpp" namespace "lloyal" nogil:
    bool exiting()
    void exit_begin()

cdef extern from "core/fork.hpp" namespace "lloyal" nogil:
    void fork_install()
    bool forked()

cdef extern from "memory/provenance.hpp" namespace "lloyal" nogil:
    cppclass Run:
        int32_t begin
        int32_t end
        uint64_t epoch
        uint64_t first
    cppclass Runs:
        const vector[Run]& list() const
        int32_t begin() const
        int32_t end() const
        bool empty() const

cdef extern from "memory/memory.hpp" namespace "lloyal" nogil:
    cppclass MemoryKind:
        pass
    const char* memory_kind_name(MemoryKind kind)
    cppclass MemoryMap:
        MemoryKind kind
        bool unified
        bool mrope
        bool v_trans
        int32_t window_begin(int32_t pos) const

cdef extern from "core/handles.hpp" namespace "lloyal" nogil:
    cppclass LiveCounts:
        int64_t models
        int64_t contexts
        int64_t samplers
        int64_t adapters
        int64_t checkpoints
        int64_t branches
        int64_t connections
    LiveCounts& live_counts()

    cppclass ModelBox:
        c.llama_model* ptr
        vector[uint8_t] sample
        bool extra_bufts
    ctypedef shared_ptr[ModelBox] ModelHandle

    ctypedef bool (*PollFn)() noexcept nogil

    cppclass ContextBox:
        ModelHandle model
        c.llama_context* ptr
        MemoryMap map
    ctypedef shared_ptr[ContextBox] ContextHandle

    Status model_load(const vector[string]& paths, c.llama_model_params params,
                      const vector[g.ggml_backend_dev_t]& devices, const vector[float]& tensor_split,
                      const vector[string]& patterns, const vector[g.ggml_backend_dev_t]& places,
                      bool choose_extra_bufts, ModelHandle& out)
    Status model_save(ModelBox& model, const string& path)
    Status context_create(ModelHandle model, c.llama_context_params params, ContextHandle parent, PollFn poll,
                          ContextHandle& out)
    void context_request_abort(ContextBox& box)
    Status synchronize "lloyal::inside<lloyal::synchronize>"(const ContextHandle& ctx)

cdef extern from "core/threads.hpp" namespace "lloyal" nogil:
    Status check_threads(int32_t n)
    Status set_n_threads "lloyal::inside<lloyal::set_n_threads>"(
        const ContextHandle& ctx, int32_t n_threads, int32_t n_threads_batch)

cdef extern from "core/lease.hpp" namespace "lloyal" nogil:
    cppclass Lease:
        pass
    Lease lease_tenant "lloyal::Lease::tenant"
    Status lease_acquire "lloyal::inside<lloyal::lease_acquire>"(const ContextHandle& ctx, Lease kind, int32_t& out)
    void lease_release(ContextBox& box, int32_t seq)
    Status count_available_leases "lloyal::inside<lloyal::count_available_leases>"(const ContextHandle& ctx, int32_t& out)
