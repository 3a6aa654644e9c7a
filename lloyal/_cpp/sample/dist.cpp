#include "sample/dist.hpp"

#include <algorithm>
#include <cmath>
#include <random>

namespace lloyal {
namespace {

uint64_t split_mix(uint64_t & state) {
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

DistSampler & self(const llama_sampler * sampler) {
    return *static_cast<DistSampler *>(sampler->ctx);
}

const char * name(const llama_sampler *) {
    return "pcg-dist";
}

// Softmax of the candidates, then the first one at which the running sum passes a uniform share of the total. A candidate
// of probability zero is never the first to pass.
void apply(llama_sampler * sampler, llama_token_data_array * array) {
    llama_token_data * const data = array->data;
    const size_t n = array->size;
    const double share = self(sampler).rng.uniform(); // one draw per call, whatever the candidates
    array->selected = -1;
    if (n == 0) {
        return;
    }
    float top = data[0].logit;
    for (size_t i = 1; !array->sorted && i < n; ++i) {
        top = std::max(top, data[i].logit);
    }
    double total = 0.0;
    for (size_t i = 0; i < n; ++i) {
        data[i].p = std::exp(data[i].logit - top);
        total += data[i].p;
    }
    const double target = share * total;
    double reached = 0.0;
    for (size_t i = 0; i < n; ++i) {
        if (array->selected < 0 || reached <= target) {
            reached += data[i].p;
            // Rounding may leave the sum short of the target; then the last candidate that can be drawn is taken.
            if (data[i].p > 0.0f) {
                array->selected = int64_t(i);
            }
        }
        data[i].p = float(data[i].p / total);
    }
}

void reset(llama_sampler * sampler) {
    DistSampler & dist = self(sampler);
    dist.seed_cur = fresh_seed(dist.seed);
    dist.rng = Pcg64::from_seed(dist.seed_cur);
}

llama_sampler * clone(const llama_sampler * sampler) {
    return llama_sampler_init(sampler->iface, new DistSampler(self(sampler)));
}

void destroy(llama_sampler * sampler) {
    delete &self(sampler);
}

void copy_state(const llama_sampler * from, llama_sampler * to) {
    self(to).seed_cur = self(from).seed_cur;
    self(to).rng = self(from).rng;
}

} // namespace

uint32_t fresh_seed(uint32_t seed) {
    while (seed == LLAMA_DEFAULT_SEED) {
        seed = std::random_device()();
    }
    return seed;
}

Pcg64 Pcg64::from_seed(uint64_t seed) {
    uint64_t words[4];
    for (uint64_t & word : words) {
        word = split_mix(seed);
    }
    using Wide = unsigned __int128;
    Pcg64 rng;
    rng.increment = ((Wide(words[2]) << 64 | words[3]) << 1) | 1;
    rng.next();
    rng.state += Wide(words[0]) << 64 | words[1];
    rng.next();
    return rng;
}

uint64_t Pcg64::next() {
    constexpr unsigned __int128 multiplier = (unsigned __int128)(0x2360ed051fc65da4u) << 64 | 0x4385df649fccf645u;
    state = state * multiplier + increment;
    const uint64_t mixed = uint64_t(state >> 64) ^ uint64_t(state);
    const int turn = int(state >> 122);
    return mixed >> turn | mixed << (-turn & 63);
}

llama_sampler * dist_init(uint32_t seed) {
    static llama_sampler_i iface = [] {
        llama_sampler_i i = {};
        i.name = name;
        i.apply = apply;
        i.reset = reset;
        i.clone = clone;
        i.free = destroy;
        i.copy_state = copy_state;
        return i;
    }();
    llama_sampler * sampler = llama_sampler_init(&iface, new DistSampler{seed, 0, {}});
    reset(sampler);
    return sampler;
}

} // namespace lloyal
