# Declarations of sampler.hpp, sampler_init.hpp, sampler_types.hpp, sampler_backend.hpp and dist.hpp.

from libc.stdint cimport int32_t, uint8_t, uint32_t
from libcpp cimport bool
from libcpp.memory cimport shared_ptr
from libcpp.string cimport string
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core
cimport lloyal.libllama.llama as c

cdef extern from "sampler.hpp" namespace "lloyal" nogil:
    cppclass SamplerBox:
        c.llama_sampler* ptr
        SamplerBox(c.llama_sampler*, vector[core.ModelHandle])
    ctypedef shared_ptr[SamplerBox] SamplerHandle

    bool sampler_enter(SamplerBox& box)
    void sampler_leave(SamplerBox& box)
    core.Status sample(SamplerBox& box, core.ContextBox& context, int32_t i, c.llama_token& out)
    core.Status sampler_apply(SamplerBox& box, c.llama_token_data_array& array)
    core.Status sampler_accept(SamplerBox& box, c.llama_token token)
    core.Status sampler_reset(SamplerBox& box)
    core.Status sampler_clone(SamplerBox& box, SamplerHandle& out)
    core.Status sampler_copy(SamplerBox& src, SamplerBox& to)
    core.Status sampler_get_state(SamplerBox& box, vector[uint8_t]& out)
    core.Status sampler_set_state(SamplerBox& box, const uint8_t* data, size_t size)
    core.Status chain_init(bool no_perf, SamplerHandle& out)
    core.Status chain_add(SamplerBox& chain, SamplerBox& link)
    core.Status chain_n(SamplerBox& chain, int32_t& n)
    core.Status chain_get(SamplerBox& chain, int32_t i, SamplerHandle& out)
    core.Status chain_remove(SamplerBox& chain, int32_t i, SamplerHandle& out)
    core.Status chain_perf(SamplerBox& chain, bool reset, c.llama_perf_sampler_data& out)

cdef extern from "sampler_types.hpp" namespace "lloyal" nogil:
    bool sampler_seed(const c.llama_sampler* sampler, uint32_t& seed)

cdef extern from "dist.hpp" namespace "lloyal" nogil:
    c.llama_sampler* dist_init(uint32_t seed) except +

cdef extern from "sampler_init.hpp" namespace "lloyal" nogil:
    core.Status grammar_init(const core.ModelHandle& model, const string& grammar, const string& root, bool lazy,
                             const vector[string]& patterns, const vector[c.llama_token]& tokens, SamplerHandle& out)
    core.Status penalties_init(int32_t n_vocab, int32_t last_n, float repeat, float freq, float present, SamplerHandle& out)
    core.Status dry_init(const core.ModelHandle& model, float multiplier, float base, int32_t allowed_length,
                         int32_t last_n, const vector[string]& breakers, SamplerHandle& out)
    core.Status infill_init(const core.ModelHandle& model, SamplerHandle& out)

cdef extern from "sampler_backend.hpp" namespace "lloyal" nogil:
    cppclass BackendSample:
        c.llama_token token
        const c.llama_token* ids
        const float* logits
        const float* probs
        size_t n
    core.Status context_set_sampler(const core.ContextHandle& context, int32_t seq, const SamplerHandle& sampler)
    core.Status backend_output(core.ContextBox& context, int32_t i, BackendSample& out)
