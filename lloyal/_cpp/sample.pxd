# Declarations of sample: samplers, and what of them runs on a back end.

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool
from libcpp.memory cimport shared_ptr
from libcpp.string cimport string
from libcpp.vector cimport vector

cimport lloyal.libllama.llama as c
from lloyal._cpp.core cimport ContextHandle, ModelHandle, Status
from lloyal._cpp.decode cimport Output

cdef extern from "sample/sampler.hpp" namespace "lloyal" nogil:
    cppclass SamplerBox:
        c.llama_sampler* ptr
        SamplerBox(c.llama_sampler*, vector[ModelHandle])
    ctypedef shared_ptr[SamplerBox] SamplerHandle

    Status sample "lloyal::inside<lloyal::sample>"(
        const SamplerHandle& sampler, const ContextHandle& context, int32_t i, c.llama_token& out)
    Status sampler_apply "lloyal::inside<lloyal::sampler_apply>"(
        const SamplerHandle& sampler, c.llama_token_data_array& array)
    Status sampler_accept "lloyal::inside<lloyal::sampler_accept>"(const SamplerHandle& sampler, c.llama_token token)
    Status sampler_reset "lloyal::inside<lloyal::sampler_reset>"(const SamplerHandle& sampler)
    Status sampler_clone "lloyal::inside<lloyal::sampler_clone>"(const SamplerHandle& sampler, SamplerHandle& out)
    Status sampler_copy "lloyal::inside<lloyal::sampler_copy>"(const SamplerHandle& src, const SamplerHandle& to)
    Status sampler_get_state "lloyal::inside<lloyal::sampler_get_state>"(
        const SamplerHandle& sampler, vector[uint8_t]& out)
    Status sampler_set_state "lloyal::inside<lloyal::sampler_set_state>"(
        const SamplerHandle& sampler, const uint8_t* data, size_t size)
    Status chain_init(bool no_perf, SamplerHandle& out)
    Status chain_add "lloyal::inside<lloyal::chain_add>"(const SamplerHandle& chain, const SamplerHandle& link)
    Status chain_n "lloyal::inside<lloyal::chain_n>"(const SamplerHandle& chain, int32_t& n)
    Status chain_get "lloyal::inside<lloyal::chain_get>"(const SamplerHandle& chain, int32_t i, SamplerHandle& out)
    Status chain_remove "lloyal::inside<lloyal::chain_remove>"(
        const SamplerHandle& chain, int32_t i, SamplerHandle& out)
    Status chain_perf "lloyal::inside<lloyal::chain_perf>"(
        const SamplerHandle& chain, bool reset, c.llama_perf_sampler_data& out)
    Status sampler_name "lloyal::inside<lloyal::sampler_name>"(const SamplerHandle& sampler, string& out)
    Status sampler_seed_used "lloyal::inside<lloyal::sampler_seed_used>"(
        const SamplerHandle& sampler, bool& found, uint32_t& seed)

cdef extern from "sample/sampler_grammar.hpp" namespace "lloyal" nogil:
    cppclass Forced:
        vector[uint32_t] text
        vector[uint32_t] choices
        bool may_end

cdef extern from "sample/dist.hpp" namespace "lloyal" nogil:
    c.llama_sampler* dist_init(uint32_t seed) except +

cdef extern from "sample/keyed.hpp" namespace "lloyal" nogil:
    c.llama_sampler* keyed_init(uint32_t seed, uint64_t position) except +

cdef extern from "sample/ratio.hpp" namespace "lloyal" nogil:
    cppclass Chance:
        int32_t id
        double p
    ctypedef vector[Chance] Chances "lloyal::Chances"
    bool ratio_keeps(const Chances& p, const Chances& q, c.llama_token guess, double u, Chances& rest) except +
    const Chance* draw_one(const Chances& list, double u)

cdef extern from "sample/sampler_init.hpp" namespace "lloyal" nogil:
    Status grammar_init(const ModelHandle& model, const string& grammar, const string& root, bool lazy,
                        const vector[string]& patterns, const vector[c.llama_token]& tokens, SamplerHandle& out)
    Status penalties_init(int32_t n_vocab, int32_t last_n, float repeat, float freq, float present, SamplerHandle& out)
    Status dry_init(const ModelHandle& model, float multiplier, float base, int32_t allowed_length,
                    int32_t last_n, const vector[string]& breakers, SamplerHandle& out)
    Status infill_init(const ModelHandle& model, SamplerHandle& out)

cdef extern from "sample/sampler_backend.hpp" namespace "lloyal" nogil:
    Status context_set_sampler "lloyal::inside<lloyal::context_set_sampler>"(
        const ContextHandle& context, int32_t seq, const SamplerHandle& sampler)
    Status read_sample "lloyal::inside<lloyal::read_sample>"(
        const ContextHandle& ctx, int32_t i, c.llama_token& token, vector[c.llama_token]& ids, Output& logits, Output& probs)
