# Declarations of branch: texts that are being generated, and steps of many at once.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool
from libcpp.memory cimport shared_ptr
from libcpp.vector cimport vector

cimport lloyal.libllama.llama as c
from lloyal._cpp.core cimport ContextHandle, Status
from lloyal._cpp.decode cimport LogProb
from lloyal._cpp.sample cimport Chances, Forced, SamplerHandle
from lloyal._cpp.state cimport Where

cdef extern from "branch/branch.hpp" namespace "lloyal" nogil:
    cppclass Token:
        int32_t id
        bool accepted
        float probability
        double log_prob
    cppclass Picked:
        int32_t token
        float probability
    cppclass Surprise:
        double nll
        int64_t n
    ctypedef vector[float] Row "lloyal::Row"
    ctypedef shared_ptr[const vector[float]] RowHandle "std::shared_ptr<const lloyal::Row>"
    cppclass BranchBox:
        ContextHandle context
    ctypedef shared_ptr[BranchBox] BranchHandle

    Status branch_create "lloyal::inside<lloyal::branch_create>"(
        const ContextHandle& ctx, const SamplerHandle& sampler, BranchHandle& out)
    Status branch_fork "lloyal::inside<lloyal::branch_fork>"(
        const ContextHandle& ctx, BranchBox& branch, int64_t seed, BranchHandle& out)
    Status branch_note "lloyal::inside<lloyal::branch_note>"(
        const ContextHandle& ctx, BranchBox& branch, BranchHandle& out)
    Status branch_assign "lloyal::inside<lloyal::branch_assign>"(
        const ContextHandle& ctx, BranchBox& branch, const BranchBox& source)
    Status branch_sample "lloyal::inside<lloyal::branch_sample>"(
        const ContextHandle& ctx, BranchBox& branch, c.llama_token& out)
    Status branch_accept "lloyal::inside<lloyal::branch_accept>"(
        const ContextHandle& ctx, BranchBox& branch, c.llama_token token)
    Status branch_rewind "lloyal::computing<lloyal::branch_rewind>"(const ContextHandle& ctx, BranchBox& branch, int32_t n, int32_t first_at)
    Status branch_set_sampler "lloyal::inside<lloyal::branch_set_sampler>"(
        const ContextHandle& ctx, BranchBox& branch, const SamplerHandle& sampler, const SamplerHandle& first,
        bool generators, bool grammars)
    Status branch_set_biases "lloyal::inside<lloyal::branch_set_biases>"(
        const ContextHandle& ctx, BranchBox& branch, const vector[c.llama_logit_bias]& biases)
    Status branch_set_row "lloyal::inside<lloyal::branch_set_row>"(
        const ContextHandle& ctx, BranchBox& branch, const float* row, size_t n, bool show)
    Status branch_merge "lloyal::inside<lloyal::branch_merge>"(
        const ContextHandle& ctx, BranchBox& branch, const vector[BranchHandle]& experts, double alpha)
    Status branch_legal "lloyal::inside<lloyal::branch_legal>"(
        const ContextHandle& ctx, const BranchBox& branch, vector[float]& out)
    Status branch_is_legal "lloyal::inside<lloyal::branch_is_legal>"(
        const ContextHandle& ctx, const BranchBox& branch, int32_t token, bool& out)
    Status branch_top "lloyal::inside<lloyal::branch_top>"(
        const ContextHandle& ctx, const BranchBox& branch, size_t count, vector[LogProb]& out)

    cppclass BranchInfo:
        int32_t position
        int32_t seq
        bool own
        bool parked
        bool has_logits
        bool ended
        uint64_t used_at
        size_t seat
        Picked picked
        Surprise model
        Surprise sampling
    Status branch_info "lloyal::inside<lloyal::branch_info>"(
        const ContextHandle& ctx, const BranchBox& branch, BranchInfo& out)
    Status branch_tokens "lloyal::inside<lloyal::branch_tokens>"(
        const ContextHandle& ctx, const BranchBox& branch, size_t begin, vector[Token]& out)
    Status branch_token_ids "lloyal::inside<lloyal::branch_token_ids>"(
        const ContextHandle& ctx, const BranchBox& branch, size_t begin, vector[c.llama_token]& out)
    Status branch_row "lloyal::inside<lloyal::branch_row>"(
        const ContextHandle& ctx, const BranchBox& branch, RowHandle& out)
    Status branch_hidden "lloyal::inside<lloyal::branch_hidden>"(
        const ContextHandle& ctx, BranchBox& branch, const vector[int32_t]& layers, int32_t begin, int32_t& first,
        vector[float]& out)
    Status branch_sampler_state "lloyal::inside<lloyal::branch_sampler_state>"(
        const ContextHandle& ctx, const BranchBox& branch, vector[uint8_t]& out)

cdef extern from "branch/seat.hpp" namespace "lloyal" nogil:
    Status branch_keep "lloyal::inside<lloyal::branch_keep>"(
        const ContextHandle& ctx, BranchBox& branch, Where where, BranchHandle& out)
    Status branch_seat "lloyal::computing<lloyal::branch_seat>"(const ContextHandle& ctx, BranchBox& branch)
    Status branches_unseated "lloyal::inside<lloyal::branches_unseated>"(
        const ContextHandle& ctx, const vector[BranchHandle]& branches, vector[size_t]& out)
    Status branch_park "lloyal::inside<lloyal::branch_park>"(const ContextHandle& ctx, BranchBox& branch, Where where)

cdef extern from "branch/step.hpp" namespace "lloyal" nogil:
    cppclass Reading:
        BranchHandle branch
        vector[c.llama_token] tokens
    Status branches_read "lloyal::computing<lloyal::branches_read>"(
        const ContextHandle& ctx, const vector[Reading]& readings, bool accept)
    Status branches_step "lloyal::computing<lloyal::branches_step>"(
        const ContextHandle& ctx, const vector[BranchHandle]& branches, vector[c.llama_token]& out)
    cppclass Draw:
        Picked picked
        bool ends
    cppclass Guesses:
        vector[c.llama_token] tokens
        bool ratio
        vector[Chances] from_ "from"
    Status branches_draw "lloyal::inside<lloyal::branches_draw>"(
        const ContextHandle& ctx, const vector[BranchHandle]& branches, vector[Draw]& out)
    Status draw_forced "lloyal::inside<lloyal::draw_forced>"(
        const ContextHandle& ctx, const Draw& draw, const vector[uint32_t]& after, size_t most, Forced& out)
    Status branches_verify "lloyal::computing<lloyal::branches_verify>"(
        const ContextHandle& ctx, vector[Draw]& draws, const vector[Guesses]& guesses,
        vector[vector[c.llama_token]]& out)

cdef extern from "branch/draft.hpp" namespace "lloyal" nogil:
    cppclass DraftBox:
        vector[c.llama_token] tokens
        vector[Chances] from_ "from"
    ctypedef shared_ptr[DraftBox] DraftHandle
    Status draft_make "lloyal::inside<lloyal::draft_make>"(
        const ContextHandle& ctx, const Draw& draw, bool ratio, DraftHandle& out)
    Status draft_sample "lloyal::inside<lloyal::draft_sample>"(
        const ContextHandle& ctx, DraftBox& draft, int32_t i, c.llama_token& out)
