#include "core/pattern.hpp"

#include "core/status.hpp"

#include <algorithm>
#include <cctype>
#include <memory>
#include <utility>

namespace lloyal {
namespace {

constexpr size_t MAX_BYTES = 16 * 1024;
constexpr int MAX_DEPTH = 100;            // of parentheses
constexpr size_t MAX_INSTRUCTIONS = 4000; // after repetitions are written out: the steps a byte of text may take
constexpr size_t MAX_GROUPS = 50;
constexpr size_t MAX_LOOKAHEAD = 256;
constexpr uint32_t MANY = UINT32_MAX; // of a repetition without an end

using Set = std::bitset<256>;
using Op = Pattern::Op;

struct Node {
    enum class Kind { set, sequence, choice, repeat, group, assertion, ahead } kind = Kind::sequence;
    Set set;
    std::vector<std::unique_ptr<Node>> children;
    uint32_t least = 0;
    uint32_t most = 0;
    bool greedy = true;
    bool negative = false; // ahead
    uint32_t group = 0;
    Op assertion = Op::begin;
};
using NodePtr = std::unique_ptr<Node>;

NodePtr make(Node::Kind kind) {
    auto node = std::make_unique<Node>();
    node->kind = kind;
    return node;
}

template <typename F> Set set_of(F && is) {
    Set set;
    for (int c = 0; c < 256; ++c) {
        set[size_t(c)] = is(c);
    }
    return set;
}

bool is_space(int c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}
bool is_digit(int c) {
    return c >= '0' && c <= '9';
}

// The classes \d \D \w \W \s \S.
bool escaped_class(char c, Set & out) {
    switch (std::tolower(static_cast<unsigned char>(c))) {
        case 'd': out = set_of(is_digit); break;
        case 'w': out = set_of(is_word_byte); break;
        case 's': out = set_of(is_space); break;
        default: return false;
    }
    if (c < 'a') {
        out.flip();
    }
    return true;
}

// The classes [:alpha:] and so on, of ASCII.
Set named_class(const std::string & name) {
    static const std::pair<const char *, int (*)(int)> classes[] = {
        {"alnum", std::isalnum}, {"alpha", std::isalpha}, {"blank", std::isblank}, {"cntrl", std::iscntrl},
        {"digit", std::isdigit}, {"graph", std::isgraph}, {"lower", std::islower}, {"print", std::isprint},
        {"punct", std::ispunct}, {"space", std::isspace}, {"upper", std::isupper}, {"xdigit", std::isxdigit},
    };
    for (const auto & [known, is] : classes) {
        if (name == known) {
            return set_of([is = is](int c) { return c < 128 && is(c) != 0; });
        }
    }
    Set set;
    if (name.size() == 1 && escaped_class(name[0], set)) {
        return set;
    }
    throw PatternError("[:" + name + ":] is no class");
}

class Parser {
  public:
    explicit Parser(const std::string & source) : source_(source) {}

    NodePtr run() {
        if (source_.size() > MAX_BYTES) {
            throw PatternError(text("it has ", source_.size(), " bytes, ", MAX_BYTES, " are the limit"));
        }
        NodePtr root = choice();
        if (more()) {
            throw PatternError("a ) closes nothing");
        }
        return root;
    }
    uint32_t n_groups() const { return n_groups_; }

  private:
    const std::string & source_;
    size_t at_ = 0;
    int depth_ = 0;
    uint32_t n_groups_ = 0;

    bool more() const { return at_ < source_.size(); }
    bool take(const char * word) {
        const size_t length = std::char_traits<char>::length(word);
        if (source_.compare(at_, length, word) != 0) {
            return false;
        }
        at_ += length;
        return true;
    }
    char next(const char * inside) {
        if (!more()) {
            throw PatternError(text("it ends in ", inside));
        }
        return source_[at_++];
    }

    NodePtr choice() {
        NodePtr out = make(Node::Kind::choice);
        do {
            out->children.push_back(sequence());
        } while (take("|"));
        return out->children.size() == 1 ? std::move(out->children[0]) : std::move(out);
    }

    NodePtr sequence() {
        NodePtr out = make(Node::Kind::sequence);
        while (more() && source_[at_] != '|' && source_[at_] != ')') {
            out->children.push_back(term());
        }
        return out;
    }

    NodePtr assertion(Op op) {
        NodePtr out = make(Node::Kind::assertion);
        out->assertion = op;
        return out;
    }

    NodePtr inside(NodePtr out) {
        if (++depth_ > MAX_DEPTH) {
            throw PatternError(text("its parentheses go more than ", MAX_DEPTH, " deep"));
        }
        out->children.push_back(choice());
        if (!take(")")) {
            throw PatternError("a ( is not closed");
        }
        --depth_;
        return out;
    }

    NodePtr term() {
        if (take("^")) {
            return assertion(Op::begin);
        }
        if (take("$")) {
            return assertion(Op::end);
        }
        if (take("\\b")) {
            return assertion(Op::word);
        }
        if (take("\\B")) {
            return assertion(Op::not_word);
        }
        if (const bool positive = take("(?="); positive || take("(?!")) {
            NodePtr out = make(Node::Kind::ahead);
            out->negative = !positive;
            return inside(std::move(out));
        }
        NodePtr out = atom();
        int n_repeats = 0;
        while (repeats(out)) {
            if (++n_repeats > MAX_DEPTH) {
                throw PatternError(text("more than ", MAX_DEPTH, " repetitions follow each other"));
            }
        }
        return out;
    }

    NodePtr atom() {
        if (take("(?:")) {
            return inside(make(Node::Kind::sequence));
        }
        if (take("(?<=") || take("(?<!")) {
            throw PatternError("look-behind (?<= and (?<! is not supported");
        }
        if (take("(?")) {
            throw PatternError("(? must go on with : = or !");
        }
        if (take("(")) {
            NodePtr out = make(Node::Kind::group);
            out->group = ++n_groups_;
            if (n_groups_ > MAX_GROUPS) {
                throw PatternError(text("it has more than ", MAX_GROUPS, " groups"));
            }
            return inside(std::move(out));
        }
        NodePtr out = make(Node::Kind::set);
        if (take("[")) {
            out->set = brackets();
            return out;
        }
        const char c = source_[at_++];
        switch (c) {
            case '.': out->set = set_of([](int byte) { return byte != '\n' && byte != '\r'; }); break;
            case '*':
            case '+':
            case '?':
            case '{': throw PatternError(text("there is nothing that ", std::string(1, c), " could repeat"));
            case '\\':
                if (!escaped_class(next("a \\"), out->set)) {
                    --at_;
                    out->set.set(escape(false));
                }
                break;
            default: out->set.set(static_cast<unsigned char>(c));
        }
        return out;
    }

    size_t hex(int digits) {
        size_t value = 0;
        for (int i = 0; i < digits; ++i) {
            const char c = next("a hexadecimal number");
            if (!std::isxdigit(static_cast<unsigned char>(c))) {
                throw PatternError(text("'", std::string(1, c), "' is no hexadecimal digit"));
            }
            value = value * 16 + size_t(is_digit(c) ? c - '0' : std::tolower(c) - 'a' + 10);
        }
        return value;
    }

    // Behind the \ of one character.
    size_t escape(bool in_brackets) {
        const char c = next("a \\");
        switch (c) {
            case 't': return '\t';
            case 'n': return '\n';
            case 'v': return '\v';
            case 'f': return '\f';
            case 'r': return '\r';
            case '0': return 0;
            case 'b':
                if (in_brackets) {
                    return '\b';
                }
                break;
            case 'c': return size_t(static_cast<unsigned char>(next("a \\c")) % 32);
            case 'x': return hex(2);
            case 'u':
                if (const size_t value = hex(4); value < 128) {
                    return value;
                }
                throw PatternError("\\u with more than 007f is not supported: write the character");
            default: break;
        }
        if (is_digit(c)) {
            throw PatternError(text("the back reference \\", std::string(1, c), " is not supported"));
        }
        return static_cast<unsigned char>(c);
    }

    // One entry of [...]: a class, whose end is -1, or a byte.
    int entry(Set & set) {
        if (take("[:")) {
            const size_t end = source_.find(":]", at_);
            if (end == std::string::npos) {
                throw PatternError("a [: is not closed");
            }
            set |= named_class(source_.substr(at_, end - at_));
            at_ = end + 2;
            return -1;
        }
        if (take("[.") || take("[=")) {
            throw PatternError("[. and [= are not supported");
        }
        const char c = next("a [");
        if (c != '\\') {
            return static_cast<unsigned char>(c);
        }
        Set escaped;
        if (escaped_class(next("a \\"), escaped)) {
            set |= escaped;
            return -1;
        }
        --at_;
        return int(escape(true));
    }

    Set brackets() {
        Set set;
        const bool negative = take("^");
        while (!take("]")) {
            const int first = entry(set);
            if (source_.compare(at_, 1, "-") != 0 || source_.compare(at_, 2, "-]") == 0) {
                if (first >= 0) {
                    set.set(size_t(first));
                }
                continue;
            }
            ++at_;
            const int last = entry(set);
            if (first < 0 || last < first) {
                throw PatternError("a range in [] must go from a lower character to a higher one");
            }
            for (int c = first; c <= last; ++c) {
                set.set(size_t(c));
            }
        }
        return negative ? ~set : set;
    }

    uint32_t number() {
        uint32_t value = 0;
        if (!more() || !is_digit(source_[at_])) {
            throw PatternError("a { must go on with a number");
        }
        for (; more() && is_digit(source_[at_]); ++at_) {
            value = std::min<uint32_t>(value * 10 + uint32_t(source_[at_] - '0'), 1'000'000);
        }
        return value;
    }

    // The repetition behind an atom, if there is one.
    bool repeats(NodePtr & node) {
        uint32_t least = 0;
        uint32_t most = MANY;
        if (take("+")) {
            least = 1;
        } else if (take("?")) {
            most = 1;
        } else if (take("{")) {
            least = number();
            most = !take(",") ? least : source_.compare(at_, 1, "}") == 0 ? MANY : number();
            if (!take("}")) {
                throw PatternError("a { is not closed");
            }
            if (most < least) {
                throw PatternError(text("{", least, ",", most, "} asks for fewer at most than at least"));
            }
        } else if (!take("*")) {
            return false;
        }
        NodePtr out = make(Node::Kind::repeat);
        out->least = least;
        out->most = most;
        out->greedy = !take("?");
        out->children.push_back(std::move(node));
        node = std::move(out);
        return true;
    }
};

bool can_be_empty(const Node & node) {
    const auto child = [](const NodePtr & part) { return can_be_empty(*part); };
    switch (node.kind) {
        case Node::Kind::set: return false;
        case Node::Kind::choice: return std::any_of(node.children.begin(), node.children.end(), child);
        case Node::Kind::repeat: return node.least == 0 || child(node.children[0]);
        case Node::Kind::assertion:
        case Node::Kind::ahead: return true;
        default: return std::all_of(node.children.begin(), node.children.end(), child);
    }
}

// Bytes that decide whether it matches at a position. A choice never needs more than its longest part.
size_t longest(const Node & node) {
    size_t out = 0;
    switch (node.kind) {
        case Node::Kind::set: return 1;
        case Node::Kind::assertion: return 1; // \b and $ look at the next byte
        case Node::Kind::repeat:
            out = longest(*node.children[0]);
            if (node.most == MANY && out > 0) {
                return MAX_LOOKAHEAD + 1;
            }
            out *= node.most == MANY ? 1 : node.most;
            break;
        case Node::Kind::choice:
            for (const NodePtr & child : node.children) {
                out = std::max(out, longest(*child));
            }
            break;
        default:
            for (const NodePtr & child : node.children) {
                out += longest(*child);
            }
    }
    return std::min(out, MAX_LOOKAHEAD + 1);
}

class Compiler {
  public:
    explicit Compiler(Pattern & out) : out_(out) {}

    void run(const Node & root) {
        put(Op::save, 0);
        node(root);
        put(Op::save, 1);
        put(Op::match);
    }

  private:
    Pattern & out_;
    size_t looking_ = 0; // what lookaheads cost at a byte

    uint32_t here() const { return uint32_t(out_.code.size()); }

    uint32_t put(Op op, uint32_t x = 0, uint32_t y = 0) {
        if (out_.code.size() + looking_ >= MAX_INSTRUCTIONS) {
            throw PatternError(text("its repetitions written out take more than ", MAX_INSTRUCTIONS, " steps"));
        }
        out_.code.push_back({op, x, y});
        return here() - 1;
    }

    void node(const Node & node) {
        switch (node.kind) {
            case Node::Kind::set: {
                const auto found = std::find(out_.sets.begin(), out_.sets.end(), node.set);
                const auto index = uint32_t(found - out_.sets.begin());
                if (found == out_.sets.end()) {
                    out_.sets.push_back(node.set);
                }
                put(Op::set, index);
                break;
            }
            case Node::Kind::sequence:
                for (const NodePtr & child : node.children) {
                    this->node(*child);
                }
                break;
            case Node::Kind::choice: choice(node); break;
            case Node::Kind::group:
                put(Op::save, 2 * node.group);
                this->node(*node.children[0]);
                put(Op::save, 2 * node.group + 1);
                break;
            case Node::Kind::assertion:
                put(node.assertion);
                out_.lookahead = std::max<size_t>(out_.lookahead, 1);
                break;
            case Node::Kind::ahead: ahead(node); break;
            case Node::Kind::repeat: repeat(node); break;
        }
    }

    void choice(const Node & node) {
        std::vector<uint32_t> ends;
        for (size_t i = 0; i + 1 < node.children.size(); ++i) {
            const uint32_t split = put(Op::split);
            out_.code[split].x = here();
            this->node(*node.children[i]);
            ends.push_back(put(Op::jump));
            out_.code[split].y = here();
        }
        this->node(*node.children.back());
        for (uint32_t end : ends) {
            out_.code[end].x = here();
        }
    }

    void ahead(const Node & node) {
        const size_t length = longest(*node.children[0]);
        if (length > MAX_LOOKAHEAD) {
            throw PatternError(text("a look-ahead (?= or (?! must not need more than ", MAX_LOOKAHEAD, " bytes"));
        }
        const uint32_t begin = put(node.negative ? Op::not_ahead : Op::ahead);
        this->node(*node.children[0]);
        put(Op::match);
        out_.code[begin].x = here();
        out_.lookahead = std::max(out_.lookahead, length);
        looking_ += length * (here() - begin);
    }

    // A split that goes on at the next instruction, or elsewhere; which is preferred depends.
    uint32_t fork(bool greedy) {
        const uint32_t at = put(Op::split);
        (greedy ? out_.code[at].x : out_.code[at].y) = here();
        return at;
    }
    void leave(uint32_t fork, bool greedy) { (greedy ? out_.code[fork].y : out_.code[fork].x) = here(); }

    void repeat(const Node & node) {
        const Node & body = *node.children[0];
        const size_t before = out_.code.size();
        for (uint32_t i = 0; i < node.least; ++i) {
            this->node(body);
            if (i == 0 && out_.code.size() == before) {
                return; // nothing, however often
            }
        }
        if (node.most == MANY) {
            // A body that can be empty runs once and repeats: (x+)?, or the order of preference would be another.
            const bool nullable = can_be_empty(body);
            const uint32_t first = fork(node.greedy);
            const uint32_t again = here();
            this->node(body);
            if (nullable) {
                const uint32_t split = put(Op::split);
                (node.greedy ? out_.code[split].x : out_.code[split].y) = again;
                leave(split, node.greedy);
            } else {
                put(Op::jump, first);
            }
            leave(first, node.greedy);
            return;
        }
        std::vector<uint32_t> forks;
        for (uint32_t i = node.least; i < node.most; ++i) {
            forks.push_back(fork(node.greedy));
            this->node(body);
        }
        for (uint32_t at : forks) {
            leave(at, node.greedy);
        }
    }
};

} // namespace

Pattern::Pattern(const std::string & source) {
    Parser parser(source);
    const NodePtr root = parser.run();
    n_slots = 2 * (parser.n_groups() + 1);
    Compiler(*this).run(*root);
}

} // namespace lloyal
