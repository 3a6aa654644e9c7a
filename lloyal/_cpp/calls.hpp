// How Python reaches a context or a sampler: one call is one stay. `inside<f>` is `f` for handles: it becomes the one
// caller of everything `f` takes a box of, calls it, and lets go again however it ends. So nothing in Python can leave a
// context busy, and what `f` points to is used while nobody else can change it.
#pragma once

#include "batch.hpp"
#include "handles.hpp"
#include "sampler.hpp"
#include "sampler_backend.hpp"
#include "status.hpp"
#include "threads.hpp"

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <vector>

namespace lloyal {

struct Refusal {
    Code code = Code::ok;
    const char * why = nullptr;
};

// What a parameter of a call asks of its argument: by default nothing.
template <typename P> struct Stay {
    using Argument = P;
    template <typename A> explicit Stay(const A & /*argument*/) {}
    Refusal refused() const { return {}; }
    static P pass(std::remove_reference_t<P> & argument) { return static_cast<P>(argument); }
};

class ContextStay {
  public:
    using Argument = const ContextHandle &;
    explicit ContextStay(const ContextHandle & context) : box_(context.get()), inside_(box_ && context_enter(*box_)) {}
    ContextStay(const ContextStay &) = delete;
    ~ContextStay() {
        if (inside_) {
            context_leave(*box_);
        }
    }
    Refusal refused() const {
        return inside_ ? Refusal{}
               : box_  ? Refusal{Code::busy,
                                "another thread is inside this context: one context takes one caller at a time"}
                       : Refusal{Code::closed, "the context is closed"};
    }

  private:
    ContextBox * box_;
    bool inside_;
};

class SamplerStay {
  public:
    using Argument = const SamplerHandle &;
    explicit SamplerStay(const SamplerHandle & sampler) : box_(sampler.get()), inside_(box_ && sampler_enter(*box_)) {}
    SamplerStay(const SamplerStay &) = delete;
    ~SamplerStay() {
        if (inside_) {
            sampler_leave(*box_);
        }
    }
    Refusal refused() const {
        return inside_ ? Refusal{}
               : box_  ? Refusal{Code::busy,
                                "another thread is inside this sampler: one sampler takes one caller at a time"}
                       : Refusal{Code::closed, "the sampler is closed"};
    }

  private:
    SamplerBox * box_;
    bool inside_;
};

template <> struct Stay<ContextBox &> : ContextStay {
    using ContextStay::ContextStay;
    static ContextBox & pass(const ContextHandle & context) { return *context; }
};
template <> struct Stay<const ContextBox &> : Stay<ContextBox &> {
    using Stay<ContextBox &>::Stay;
};
template <> struct Stay<ContextHandle> : ContextStay {
    using ContextStay::ContextStay;
    static const ContextHandle & pass(const ContextHandle & context) { return context; }
};
template <> struct Stay<const ContextHandle &> : Stay<ContextHandle> {
    using Stay<ContextHandle>::Stay;
};
template <> struct Stay<SamplerBox &> : SamplerStay {
    using SamplerStay::SamplerStay;
    static SamplerBox & pass(const SamplerHandle & sampler) { return *sampler; }
};
template <> struct Stay<const SamplerHandle &> : SamplerStay {
    // A call that takes a handle takes none too.
    explicit Stay(const SamplerHandle & sampler) : SamplerStay(sampler), none_(!sampler) {}
    Refusal refused() const { return none_ ? Refusal{} : SamplerStay::refused(); }
    static const SamplerHandle & pass(const SamplerHandle & sampler) { return sampler; }

  private:
    bool none_;
};

template <auto F, typename T = decltype(F)> struct Call;
template <auto F, typename... P> struct Call<F, Status (*)(P...) noexcept> {
    static Status run(typename Stay<P>::Argument... arguments) noexcept {
        const std::tuple<Stay<P>...> stays(arguments...);
        Refusal refusal;
        std::apply([&](const auto &... stay) { ((refusal = refusal.why ? refusal : stay.refused()), ...); }, stays);
        return refusal.why ? Status(refusal.code, refusal.why) : F(Stay<P>::pass(arguments)...);
    }
};
template <auto F> inline constexpr auto inside = &Call<F>::run;

// `inside` for what computes graphs: its threads can be started.
template <auto F, typename T = decltype(F)> struct Computation;
template <auto F, typename... P> struct Computation<F, Status (*)(ContextBox &, P...) noexcept> {
    static Status run(ContextBox & box, P... arguments) noexcept {
        Status status = threads_ready(box, (is_one(arguments) || ...));
        return status.ok() ? F(box, static_cast<P>(arguments)...) : status;
    }
    static bool is_one(const Batch & batch) { return batch.size() <= 1; }
    template <typename A> static bool is_one(const A & /*argument*/) { return false; }
};
template <auto F> inline constexpr auto computing = inside<&Computation<F>::run>;

// What takes several steps in one stay.

// One row of outputs, as it was at `generation` of its context.
struct Row {
    const float * data = nullptr;
    size_t n = 0;
    uint64_t generation = 0;
};
// Index `i` or sequence `seq` of the last batch. `out`, unless it is null, takes a copy of at most `room` values.
Status read_logits(ContextBox & box, int32_t i, float * out, size_t room, Row & row) noexcept;
Status read_embedding(ContextBox & box, int32_t i, float * out, size_t room, Row & row) noexcept;
Status read_pooled(ContextBox & box, SeqId seq, float * out, size_t room, Row & row) noexcept;
Status read_nextn(ContextBox & box, int32_t i, float * out, size_t room, Row & row) noexcept;
Status read_layer_input(ContextBox & box, int32_t layer, int32_t i, float * out, size_t room, Row & row) noexcept;
// All rows, copied: `n` values in all.
Status read_all(ContextBox & box, bool embeddings, std::vector<float> & out, int32_t & n_rows) noexcept;
// What a back end sampled; the candidates' ids are copied.
Status read_sample(ContextBox & box, int32_t i, llama_token & token, std::vector<llama_token> & ids, Row & logits,
                   Row & probs) noexcept;

// A row again, refused once it has gone.
Status row_value(ContextBox & box, const Row & row, size_t i, float & out) noexcept;
Status row_argmax(ContextBox & box, const Row & row, int32_t & out) noexcept;
Status row_stale(ContextBox & box, const Row & row, bool & stale) noexcept;
Status row_copy(ContextBox & box, const Row & row, float * out) noexcept;

// Values in a row of embeddings, in a pooled one, and in the input of a layer.
size_t n_embedding(const ContextBox & box);
size_t n_pooled(const ContextBox & box);
size_t n_layer_input(const ContextBox & box);

Status synchronize(ContextBox & box) noexcept;
Status set_n_threads(ContextBox & box, int32_t n_threads, int32_t n_threads_batch) noexcept;
Status rollback_kind(ContextBox & box, SeqId seq, int32_t n_tokens, int & kind) noexcept;
Status known_rows(ContextBox & box, SeqId seq, std::vector<Run> & out) noexcept;

// `need` is the size of the state; it is written if `size` is that or more.
Status state_seq_write(ContextBox & box, uint8_t * out, size_t size, SeqId seq, uint32_t flags, size_t & need,
                       size_t & written) noexcept;
Status state_write(ContextBox & box, uint8_t * out, size_t size, size_t & need, size_t & written) noexcept;

Status sampler_name(SamplerBox & box, std::string & out) noexcept;
Status sampler_seed_used(SamplerBox & box, bool & found, uint32_t & seed) noexcept;

struct CheckpointBox;
using CheckpointHandle = std::shared_ptr<CheckpointBox>;
Status checkpoint_to_host_inside(ContextBox & box, CheckpointBox & checkpoint, CheckpointHandle & out) noexcept;
Status store_meta_bytes(ContextBox & box, size_t & out) noexcept;
Status store_set_budget(ContextBox & box, int64_t bytes, bool evict) noexcept;
Status count_available_leases(ContextBox & box, int32_t & out) noexcept;

} // namespace lloyal
