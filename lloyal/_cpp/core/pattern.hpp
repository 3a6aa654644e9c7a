// Regular expressions in ECMAScript's syntax, without backtracking: time is linear in the text, and a text that grows is
// read once. std::regex takes exponential time for some patterns, and recurses at every character.
#pragma once

#include <bitset>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace lloyal {

// Says what is wrong, or what is not supported: back references, look-behind, look-ahead without a longest text.
struct PatternError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// What \w and \b take for a letter.
inline bool is_word_byte(int c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

// A compiled pattern over bytes. Of the ways to match it takes the one that backtracking would find first.
class Pattern {
  public:
    explicit Pattern(const std::string & source); // throws PatternError

    enum class Op : uint8_t { set, jump, split, save, begin, end, word, not_word, ahead, not_ahead, match };
    struct Instruction {
        Op op = Op::match;
        uint32_t x = 0; // set: which; jump, split: where to; save: the slot; ahead: where to go on behind its body
        uint32_t y = 0; // split: where to if x fails
    };

    std::vector<Instruction> code;
    std::vector<std::bitset<256>> sets;
    uint32_t n_slots = 2; // begin and end of the match and of each group
    size_t lookahead = 0; // bytes behind a position that decide what matches there
};

// The first match in a text that grows at its end.
class PatternSearch {
  public:
    explicit PatternSearch(Pattern pattern);

    // Where the first group that is not empty begins, or else the match; npos if there is none. `text` begins with the
    // text of the call before.
    size_t find(const std::string & text);

  private:
    // Positions in the code in the order of preference, each with its slots.
    struct Threads {
        std::vector<uint32_t> at;
        std::vector<size_t> slots;
    };
    struct State {
        size_t position = 0;
        Threads threads; // before jumps and assertions are followed
        bool matched = false;
        std::vector<size_t> best;
    };

    Pattern pattern_;
    State state_; // up to where no further text changes anything
    State trial_;
    Threads next_;
    std::vector<size_t> slots_;
    std::vector<uint32_t> visited_;
    uint32_t round_ = 0;

    void step(State & state, const std::string & text);
    void follow(const std::string & text, size_t position, uint32_t start, bool & matched, std::vector<size_t> & best);
    bool holds(Pattern::Op op, const std::string & text, size_t position) const;
    bool ahead(const std::string & text, size_t position, uint32_t begin, uint32_t end) const;
};

} // namespace lloyal
