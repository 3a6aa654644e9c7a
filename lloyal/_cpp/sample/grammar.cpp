#include "sample/grammar.hpp"

#include "llama-grammar.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <vector>

namespace lloyal {
namespace {

constexpr size_t MAX_BYTES = size_t(1) << 20; // of text
constexpr int MAX_DEPTH = 200;                // of parentheses
constexpr uint64_t MAX_ELEMENTS = 4'000'000;  // after repetitions are written out
constexpr uint64_t MAX_CHAIN = 5000;          // of rules that begin with a rule
constexpr uint64_t MAX_VISITS = 50'000'000;   // of elements in llama.cpp's own search for left recursion
constexpr uint64_t MAX_TIMES = 2000;          // llama.cpp's own limit of a repetition

Status invalid(std::string message) {
    return Status(Code::invalid_grammar, std::move(message));
}

// Past white space and comments.
const char * skip_space(const char * at) {
    while (*at == ' ' || *at == '\t' || *at == '\r' || *at == '\n' || *at == '#') {
        if (*at == '#') {
            while (*at && *at != '\r' && *at != '\n') {
                ++at;
            }
        } else {
            ++at;
        }
    }
    return at;
}

// A pass over the text that knows strings, classes, comments, parentheses and repetitions, and nothing else: the parser
// says what is wrong with the rest.
class Scanner {
  public:
    explicit Scanner(const std::string & text) : at_(text.c_str()), begin_(at_) {}

    Status run() {
        while (*at_) {
            if (Status status = step(); !status.ok()) {
                return status;
            }
        }
        return {};
    }

  private:
    const char * at_;
    const char * begin_;
    int depth_ = 0;
    uint64_t symbol_ = 0; // elements of the last symbol
    uint64_t total_ = 0;

    std::string where() const { return text("line ", std::count(begin_, at_, '\n') + 1, ": "); }

    Status step() {
        switch (*at_) {
            case '"': return enclosed('"');
            case '[': return enclosed(']');
            case '<': return enclosed('>');
            case '{': return repetition();
            case '#':
            case ' ':
            case '\t':
            case '\r':
            case '\n': at_ = skip_space(at_); return {};
            case '(':
                ++at_;
                return ++depth_ <= MAX_DEPTH ? Status()
                                             : invalid(where() + text("parentheses go more than ", MAX_DEPTH, " deep"));
            case ')': --depth_; [[fallthrough]];
            default:
                symbol_ = 1;
                ++at_;
                return {};
        }
    }

    Status enclosed(char end) {
        symbol_ = 0;
        for (++at_; *at_ && *at_ != end; ++at_) {
            if (*at_ == '\\' && end != '>' && at_[1]) {
                ++at_;
            }
            ++symbol_;
        }
        at_ += *at_ != 0;
        total_ += symbol_;
        return {};
    }

    // False without a number; too large a one is as good as 2**32.
    bool number(uint64_t & out) {
        at_ = skip_space(at_);
        const char * first = at_;
        for (out = 0; *at_ >= '0' && *at_ <= '9'; ++at_) {
            out = std::min<uint64_t>(out * 10 + uint64_t(*at_ - '0'), uint64_t(1) << 32);
        }
        const bool found = at_ != first;
        at_ = skip_space(at_);
        return found;
    }

    // {m}, {m,} or {m,n}. llama.cpp counts from m to n and never arrives if n is smaller.
    Status repetition() {
        ++at_;
        uint64_t least = 0;
        uint64_t most = 0;
        if (!number(least)) {
            return {};
        }
        if (*at_ == ',') {
            ++at_;
            if (number(most) && most < least) {
                return invalid(where() + text("{", least, ",", most, "} asks for fewer at most than at least"));
            }
        }
        const uint64_t times = std::min(std::max(least, most), MAX_TIMES);
        symbol_ = std::max<uint64_t>(symbol_, 1) * std::max<uint64_t>(times, 1);
        total_ += symbol_;
        return total_ <= MAX_ELEMENTS ? Status() : invalid(where() + "the repetitions written out are too long");
    }
};

// The message of llama.cpp's parser ends in all the text that was left.
std::string first_line(const std::string & message) {
    constexpr size_t length = 100;
    const size_t end = message.find_first_of("\r\n");
    return message.size() > length || end != std::string::npos ? message.substr(0, std::min(end, length)) + " ..."
                                                               : message;
}

struct Rules {
    const llama_grammar_rules & list;
    const std::map<std::string, uint32_t> & ids;

    std::string name(size_t id) const {
        for (const auto & [name, value] : ids) {
            if (value == id) {
                return name;
            }
        }
        return text("rule ", id);
    }
};

bool ends_alternative(const llama_grammar_element & element) {
    return element.type == LLAMA_GRETYPE_END || element.type == LLAMA_GRETYPE_ALT;
}

Status check_defined(const Rules & rules) {
    for (const llama_grammar_rule & rule : rules.list) {
        for (const llama_grammar_element & element : rule) {
            if (element.type == LLAMA_GRETYPE_RULE_REF &&
                (element.value >= rules.list.size() || rules.list[element.value].empty())) {
                return invalid("rule '" + rules.name(element.value) + "' is used and not defined");
            }
        }
    }
    return {};
}

// Rules that can produce nothing at all. llama.cpp sees only those that say so directly, and fills the memory on a left
// recursion behind another one.
std::vector<bool> find_empty(const llama_grammar_rules & rules) {
    struct Alternative {
        uint32_t rule;
        size_t left; // rules in it that are not known to be empty
    };
    std::vector<Alternative> alternatives;
    std::vector<std::vector<size_t>> users(rules.size()); // alternatives that name a rule, as often as they do
    std::vector<bool> empty(rules.size(), false);
    std::vector<uint32_t> found;
    const auto mark = [&](uint32_t rule) {
        if (!empty[rule]) {
            empty[rule] = true;
            found.push_back(rule);
        }
    };
    for (uint32_t id = 0; id < rules.size(); ++id) {
        std::vector<uint32_t> named;
        bool other = false; // something that is no rule
        for (const llama_grammar_element & element : rules[id]) {
            if (!ends_alternative(element)) {
                other = other || element.type != LLAMA_GRETYPE_RULE_REF;
                named.push_back(element.value);
                continue;
            }
            if (!other && named.empty()) {
                mark(id);
            } else if (!other) {
                for (uint32_t rule : named) {
                    users[rule].push_back(alternatives.size());
                }
                alternatives.push_back({id, named.size()});
            }
            named.clear();
            other = false;
        }
    }
    while (!found.empty()) {
        const uint32_t rule = found.back();
        found.pop_back();
        for (size_t user : users[rule]) {
            if (--alternatives[user].left == 0) {
                mark(alternatives[user].rule);
            }
        }
    }
    return empty;
}

// Rules that an expansion of `rule` can begin with, as often as they are named. Not those at the end of an alternative
// behind rules that can be empty: coming back there leaves llama.cpp with a stack it has seen.
std::vector<uint32_t> leftmost(const llama_grammar_rule & rule, const std::vector<bool> & empty) {
    std::vector<uint32_t> out;
    bool first = true;
    bool begins = true;
    for (size_t i = 0; i < rule.size(); ++i) {
        if (ends_alternative(rule[i])) {
            first = begins = true;
            continue;
        }
        if (rule[i].type == LLAMA_GRETYPE_RULE_REF) {
            if (first && (begins || !ends_alternative(rule[i + 1]))) {
                out.push_back(rule[i].value);
            }
            first = first && empty[rule[i].value];
        } else {
            first = false;
        }
        begins = false;
    }
    return out;
}

// Depth first without recursion: a cycle is a left recursion; the longest chain bounds llama.cpp's recursion, and the
// number of ways down the work of its search, which forgets where it has been.
Status check_recursion(const Rules & rules) {
    const std::vector<bool> empty = find_empty(rules.list);
    enum class Mark : uint8_t { fresh, open, done };
    struct Frame {
        uint32_t id;
        std::vector<uint32_t> next;
    };
    std::vector<Mark> marks(rules.list.size(), Mark::fresh);
    std::vector<uint64_t> depths(rules.list.size(), 1);
    std::vector<uint64_t> visits(rules.list.size()); // of elements
    for (size_t id = 0; id < rules.list.size(); ++id) {
        visits[id] = rules.list[id].size();
    }
    for (uint32_t start = 0; start < rules.list.size(); ++start) {
        std::vector<Frame> path;
        const auto enter = [&](uint32_t id) {
            marks[id] = Mark::open;
            path.push_back({id, leftmost(rules.list[id], empty)});
        };
        if (marks[start] == Mark::fresh) {
            enter(start);
        }
        while (!path.empty()) {
            const uint32_t id = path.back().id;
            if (path.back().next.empty()) {
                marks[id] = Mark::done;
                path.pop_back();
                if (depths[id] > MAX_CHAIN || visits[id] > MAX_VISITS) {
                    return invalid("rule '" + rules.name(id) +
                                   "' begins with rules that begin with rules, too many to follow");
                }
                continue;
            }
            const uint32_t child = path.back().next.back();
            if (marks[child] == Mark::open) {
                return invalid("rule '" + rules.name(child) + "' can begin with itself (left recursion)");
            }
            if (marks[child] == Mark::fresh) {
                enter(child);
                continue;
            }
            path.back().next.pop_back();
            depths[id] = std::max(depths[id], depths[child] + 1);
            visits[id] = std::min(visits[id] + visits[child], MAX_VISITS + 1);
        }
    }
    return {};
}

} // namespace

Status grammar_check(const llama_vocab * vocab, const std::string & grammar, const std::string & root) {
    if (grammar.size() > MAX_BYTES) {
        return invalid(text("the grammar has ", grammar.size(), " bytes, ", MAX_BYTES, " are the limit"));
    }
    if (grammar.find('\0') != std::string::npos || root.find('\0') != std::string::npos) {
        return invalid("a grammar cannot hold NUL characters");
    }
    if (Status status = Scanner(grammar).run(); !status.ok()) {
        return status;
    }
    llama_grammar_parser parser(vocab);
    const char * at = skip_space(grammar.c_str());
    const char * counted = grammar.c_str();
    ptrdiff_t line = 1;
    while (*at) {
        line += std::count(counted, at, '\n');
        counted = at;
        try {
            at = parser.parse_rule(at);
        } catch (const std::exception & e) {
            return invalid(text("line ", line, ": ", first_line(e.what())));
        }
    }
    const auto found = parser.symbol_ids.find(root);
    if (found == parser.symbol_ids.end()) {
        return invalid("the grammar has no rule '" + root + "'");
    }
    const Rules rules = {parser.rules, parser.symbol_ids};
    if (found->second >= parser.rules.size() || parser.rules[found->second].empty()) {
        return invalid("rule '" + root + "' is used and not defined");
    }
    if (Status status = check_defined(rules); !status.ok()) {
        return status;
    }
    return check_recursion(rules);
}

} // namespace lloyal
