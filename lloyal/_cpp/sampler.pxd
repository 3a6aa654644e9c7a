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

    core.Status sample "lloyal::inside<lloyal::sample>"(
        const SamplerHandle& sampler, const core.ContextHandle& context, int32_t i, c.llama_token& out)
    core.Status sampler_apply "lloyal::inside<lloyal::sampler_apply>"(
        const SamplerHandle& sampler, c.llama_token_data_array& array)
    core.Status sampler_accept "lloyal::inside<lloyal::sampler_accept>"(const SamplerHandle& sampler, c.llama_token token)
    core.Status sampler_reset "lloyal::inside<lloyal::sampler_reset>"(const SamplerHandle& sampler)
    core.Status sampler_clone "lloyal::inside<lloyal::sampler_clone>"(const SamplerHandle& sampler, SamplerHandle& out)
    core.Status sampler_copy "lloyal::inside<lloyal::sampler_copy>"(const SamplerHandle& src, const SamplerHandle& to)
    core.Status sampler_get_state "lloyal::inside<lloyal::sampler_get_state>"(
        const SamplerHandle& sampler, vector[uint8_t]& out)
    core.Status sampler_set_state "lloyal::inside<lloyal::sampler_set_state>"(
        const SamplerHandle& sampler, const uint8_t* data, size_t size)
    core.Status chain_init(bool no_perf, SamplerHandle& out)
    core.Status chain_add "lloyal::inside<lloyal::chain_add>"(const SamplerHandle& chain, const SamplerHandle& link)
    core.Status chain_n "lloyal::inside<lloyal::chain_n>"(const SamplerHandle& chain, int32_t& n)
    core.Status chain_get "lloyal::inside<lloyal::chain_get>"(const SamplerHandle& chain, int32_t i, SamplerHandle& out)
    core.Status chain_remove "lloyal::inside<lloyal::chain_remove>"(
        const SamplerHandle& chain, int32_t i, SamplerHandle& out)
    core.Status chain_perf "lloyal::inside<lloyal::chain_perf>"(
        const SamplerHandle& chain, bool reset, c.llama_perf_sampler_data& out)

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
    core.Status context_set_sampler "lloyal::inside<lloyal::context_set_sampler>"(
        const core.ContextHandle& context, int32_t seq, const SamplerHandle& sampler)
