#include "sample/keyed.hpp"

#include "sample/dist.hpp"

#include <algorithm>
#include <cmath>

namespace lloyal {
namespace {

KeyedSampler & self(const llama_sampler * sampler) {
    return *static_cast<KeyedSampler *>(sampler->ctx);
}

const char * name(const llama_sampler *) {
    return "keyed";
}

// Each candidate waits an exponential time of its own, at a rate of its probability; the first one is picked. That is the
// largest of log-probability and Gumbel noise, without logarithms for most.
void apply(llama_sampler * sampler, llama_token_data_array * array) {
    llama_token_data * const data = array->data;
    const size_t n = array->size;
    const KeyedSampler & keyed = self(sampler);
    array->selected = -1;
    if (n == 0) {
        return;
    }
    float top = data[0].logit;
    for (size_t i = 1; !array->sorted && i < n; ++i) {
        top = std::max(top, data[i].logit);
    }
    double total = 0.0;
    double first = INFINITY;
    for (size_t i = 0; i < n; ++i) {
        const double rate = std::exp(double(data[i].logit) - top);
        data[i].p = float(rate);
        total += rate;
        if (!(rate > 0.0)) {
            continue; // it can not be drawn
        }
        // In (0, 1], a multiple of 2**-53: 1 is a time of 0.
        const uint64_t word = philox({uint64_t(data[i].id), keyed.position, 0, 0}, {keyed.seed_cur, 0})[0];
        const double uniform = double((word >> 11) + 1) * 0x1.0p-53;
        // -log(u) >= 1 - u, and equals are decided by the ids, so that the order of the candidates is no matter.
        if ((1.0 - uniform) > first * rate) {
            continue;
        }
        const double time = -std::log(uniform) / rate;
        if (time < first || (time == first && (array->selected < 0 || data[i].id < data[array->selected].id))) {
            first = time;
            array->selected = int64_t(i);
        }
    }
    for (size_t i = 0; i < n; ++i) {
        data[i].p = float(data[i].p / total);
    }
}

void accept(llama_sampler * sampler, llama_token) {
    ++self(sampler).position;
}

void reset(llama_sampler * sampler) {
    KeyedSampler & keyed = self(sampler);
    keyed.seed_cur = fresh_seed(keyed.seed);
    keyed.position = 0;
}

llama_sampler * clone(const llama_sampler * sampler) {
    return llama_sampler_init(sampler->iface, new KeyedSampler(self(sampler)));
}

void destroy(llama_sampler * sampler) {
    delete &self(sampler);
}

void copy_state(const llama_sampler * from, llama_sampler * to) {
    self(to).seed_cur = self(from).seed_cur;
    self(to).position = self(from).position;
}

} // namespace

std::array<uint64_t, 4> philox(std::array<uint64_t, 4> counter, std::array<uint64_t, 2> key) {
    using Wide = unsigned __int128;
    for (int round = 0; round < 10; ++round) {
        const Wide left = Wide(0xd2e7470ee14c6c93u) * counter[0];
        const Wide right = Wide(0xca5a826395121157u) * counter[2];
        counter = {uint64_t(right >> 64) ^ counter[1] ^ key[0], uint64_t(right),
                   uint64_t(left >> 64) ^ counter[3] ^ key[1], uint64_t(left)};
        key[0] += 0x9e3779b97f4a7c15u;
        key[1] += 0xbb67ae8584caa73bu;
    }
    return counter;
}

llama_sampler * keyed_init(uint32_t seed, uint64_t position) {
    static llama_sampler_i iface = [] {
        llama_sampler_i i = {};
        i.name = name;
        i.accept = accept;
        i.apply = apply;
        i.reset = reset;
        i.clone = clone;
        i.free = destroy;
        i.copy_state = copy_state;
        return i;
    }();
    llama_sampler * sampler = llama_sampler_init(&iface, new KeyedSampler{seed, 0, 0});
    reset(sampler);
    self(sampler).position = position;
    return sampler;
}

} // namespace lloyal
