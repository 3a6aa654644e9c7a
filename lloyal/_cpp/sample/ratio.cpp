#include "sample/ratio.hpp"

#include <algorithm>

namespace lloyal {
namespace {

double total_of(const Chances & list) {
    double total = 0.0;
    for (const Chance & chance : list) {
        total += chance.p;
    }
    return total;
}

} // namespace

double chance_of(const Chances & list, llama_token id) {
    const auto found = std::find_if(list.begin(), list.end(), [id](const Chance & chance) { return chance.id == id; });
    return found == list.end() ? 0.0 : found->p;
}

bool ratio_keeps(const Chances & p, const Chances & q, llama_token guess, double u, Chances & rest) {
    const double p_total = total_of(p);
    const double q_total = total_of(q);
    const double p_guess = chance_of(p, guess) / p_total;
    const double q_guess = q_total > 0.0 ? chance_of(q, guess) / q_total : 0.0;
    const bool certain = !(q_guess > 0.0);
    if (u * (certain ? 1.0 : q_guess) < p_guess) {
        return true;
    }
    const auto by_id = [](const Chance & a, const Chance & b) { return a.id < b.id; };
    Chances sorted = certain ? Chances{{guess, 1.0}} : q;
    if (!std::is_sorted(sorted.begin(), sorted.end(), by_id)) {
        std::sort(sorted.begin(), sorted.end(), by_id);
    }
    rest.clear();
    rest.reserve(p.size());
    for (const Chance & chance : p) {
        const auto other = std::lower_bound(sorted.begin(), sorted.end(), chance, by_id);
        const bool there = other != sorted.end() && other->id == chance.id;
        const double left = chance.p / p_total - (there ? other->p / (certain ? 1.0 : q_total) : 0.0);
        if (left > 0.0) {
            rest.push_back({chance.id, left});
        }
    }
    if (rest.empty()) { // equal but for rounding
        rest = p;
    }
    return false;
}

const Chance * draw_one(const Chances & list, double u) {
    const double target = u * total_of(list);
    double reached = 0.0;
    const Chance * found = nullptr;
    for (const Chance & chance : list) {
        if (chance.p > 0.0) {
            found = &chance; // rounding may leave the sum short of the target
            reached += chance.p;
            if (reached > target) {
                break;
            }
        }
    }
    return found;
}

} // namespace lloyal
