#include "core/pattern.hpp"

#include <algorithm>
#include <utility>

namespace lloyal {
namespace {

using Op = Pattern::Op;

} // namespace

PatternSearch::PatternSearch(Pattern pattern) : pattern_(std::move(pattern)), visited_(pattern_.code.size(), 0) {}

bool PatternSearch::holds(Op op, const std::string & text, size_t position) const {
    const bool before = position > 0 && is_word_byte(static_cast<unsigned char>(text[position - 1]));
    const bool after = position < text.size() && is_word_byte(static_cast<unsigned char>(text[position]));
    switch (op) {
        case Op::begin: return position == 0;
        case Op::end: return position == text.size();
        case Op::word: return before != after;
        default: return before == after;
    }
}

// Whether the body of a lookahead, which ends in a match, fits behind `position`.
bool PatternSearch::ahead(const std::string & text, size_t position, uint32_t begin, uint32_t end) const {
    std::vector<uint32_t> threads = {begin};
    std::vector<uint32_t> next;
    std::vector<bool> seen;
    for (; !threads.empty(); ++position) {
        next.clear();
        seen.assign(end - begin, false);
        while (!threads.empty()) {
            const uint32_t at = threads.back();
            threads.pop_back();
            if (seen[at - begin]) {
                continue;
            }
            seen[at - begin] = true;
            const Pattern::Instruction & todo = pattern_.code[at];
            switch (todo.op) {
                case Op::match: return true;
                case Op::jump: threads.push_back(todo.x); break;
                case Op::split:
                    threads.push_back(todo.x);
                    threads.push_back(todo.y);
                    break;
                case Op::save: threads.push_back(at + 1); break;
                case Op::set:
                    if (position < text.size() && pattern_.sets[todo.x][static_cast<unsigned char>(text[position])]) {
                        next.push_back(at + 1);
                    }
                    break;
                case Op::ahead:
                case Op::not_ahead:
                    if (ahead(text, position, at + 1, todo.x) == (todo.op == Op::ahead)) {
                        threads.push_back(todo.x);
                    }
                    break;
                default:
                    if (holds(todo.op, text, position)) {
                        threads.push_back(at + 1);
                    }
            }
        }
        std::swap(threads, next);
    }
    return false;
}

// From `start`, with slots_, to the instructions that take a byte, which go to next_ if they take this one.
void PatternSearch::follow(const std::string & text, size_t position, uint32_t start, bool & matched,
                           std::vector<size_t> & best) {
    struct Todo {
        uint32_t at;
        uint32_t slot; // not at all: put `value` back into this slot
        size_t value;
    };
    constexpr uint32_t none = UINT32_MAX;
    std::vector<Todo> todo = {{start, none, 0}};
    while (!todo.empty()) {
        const Todo now = todo.back();
        todo.pop_back();
        if (now.slot != none) {
            slots_[now.slot] = now.value;
            continue;
        }
        if (visited_[now.at] == round_) {
            continue;
        }
        visited_[now.at] = round_;
        const Pattern::Instruction & instruction = pattern_.code[now.at];
        switch (instruction.op) {
            case Op::match:
                matched = true;
                best = slots_;
                return;
            case Op::jump: todo.push_back({instruction.x, none, 0}); break;
            case Op::split:
                todo.push_back({instruction.y, none, 0});
                todo.push_back({instruction.x, none, 0});
                break;
            case Op::save:
                todo.push_back({0, instruction.x, slots_[instruction.x]});
                slots_[instruction.x] = position;
                todo.push_back({now.at + 1, none, 0});
                break;
            case Op::set:
                if (position < text.size() &&
                    pattern_.sets[instruction.x][static_cast<unsigned char>(text[position])]) {
                    next_.at.push_back(now.at + 1);
                    next_.slots.insert(next_.slots.end(), slots_.begin(), slots_.end());
                }
                break;
            case Op::ahead:
            case Op::not_ahead:
                if (ahead(text, position, now.at + 1, instruction.x) == (instruction.op == Op::ahead)) {
                    todo.push_back({instruction.x, none, 0});
                }
                break;
            default:
                if (holds(instruction.op, text, position)) {
                    todo.push_back({now.at + 1, none, 0});
                }
        }
    }
}

// Take the byte at the position, or see what matches at the end.
void PatternSearch::step(State & state, const std::string & text) {
    if (++round_ == 0) {
        std::fill(visited_.begin(), visited_.end(), 0);
        round_ = 1;
    }
    next_.at.clear();
    next_.slots.clear();
    bool matched = false; // what is found now is preferred to what was found before, and to what comes behind it
    const size_t n = pattern_.n_slots;
    for (size_t i = 0; i < state.threads.at.size() && !matched; ++i) {
        slots_.assign(state.threads.slots.begin() + std::ptrdiff_t(i * n),
                      state.threads.slots.begin() + std::ptrdiff_t((i + 1) * n));
        follow(text, state.position, state.threads.at[i], matched, state.best);
    }
    if (!matched && !state.matched) {
        slots_.assign(n, std::string::npos);
        follow(text, state.position, 0, matched, state.best);
    }
    state.matched = state.matched || matched;
    std::swap(state.threads, next_);
    ++state.position;
}

size_t PatternSearch::find(const std::string & text) {
    while (state_.position < text.size() && state_.position + pattern_.lookahead <= text.size()) {
        step(state_, text);
    }
    trial_ = state_;
    while (trial_.position <= text.size()) {
        step(trial_, text);
    }
    if (!trial_.matched) {
        return std::string::npos;
    }
    for (uint32_t slot = 2; slot < pattern_.n_slots; slot += 2) {
        if (trial_.best[slot + 1] != std::string::npos && trial_.best[slot + 1] > trial_.best[slot]) {
            return trial_.best[slot];
        }
    }
    return trial_.best[0];
}

} // namespace lloyal
