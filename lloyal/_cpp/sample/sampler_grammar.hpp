// Grammar samplers: llama.cpp's own, made, copied and moved on by us where it would take time or stack without bound.
#pragma once

#include "core/budget.hpp"
#include "core/pattern.hpp"
#include "core/status.hpp"

#include "llama-grammar.h"
#include "llama.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace lloyal {

struct SamplerBox;

// Null if llama.cpp refuses the grammar; the reason is in its log. Its trigger patterns are ours to search for: the regular
// expressions beside them match nothing.
llama_sampler * grammar_make(const llama_vocab * vocab, const std::string & grammar, const std::string & root,
                             bool lazy, const std::vector<std::string> & patterns,
                             const std::vector<llama_token> & tokens);

// One search per trigger pattern of a grammar that waits for them.
std::vector<PatternSearch> grammar_searches(const llama_sampler * sampler);

// Moves the grammar on, or throws and leaves it as it was. Its searches follow the text it has waited over.
void grammar_accept(llama_sampler * sampler, std::vector<PatternSearch> & searches, llama_token token);

void grammar_reset(llama_sampler * sampler);

// What a grammar leaves no choice about, behind `after`, in code points.
struct Forced {
    std::vector<uint32_t> text;
    std::vector<uint32_t> choices; // what may stand behind that, if they are few; the end of the text is not among them
    bool may_end = false;
};
constexpr size_t MOST_CHOICES = 8;
// Nothing with several grammars, or where the grammar waits or forbids `after`. At most `most` code points. The grammar stays
// where it is.
Status sampler_forced(SamplerBox & box, const std::vector<uint32_t> & after, size_t most, Forced & out) noexcept;

// What a grammar may take that looks at `n` tokens or characters.
TextBudget grammar_budget(size_t n);

// What has accepted a token already does not get it again through its chain.
class GrammarsAside {
  public:
    explicit GrammarsAside(const std::vector<llama_sampler *> & grammars);
    ~GrammarsAside();
    GrammarsAside(const GrammarsAside &) = delete;

  private:
    std::vector<std::pair<llama_sampler *, llama_grammar *>> kept_;
};

// Where an element of a grammar stands: its rule, and its place there.
class ElementPlaces {
  public:
    explicit ElementPlaces(const llama_grammar_rules & rules);
    std::pair<uint32_t, uint32_t> operator()(const llama_grammar_element * element) const;

  private:
    std::vector<std::pair<const llama_grammar_element *, uint32_t>> starts_;
};

// While llama.cpp copies a sampler: for every element of every stack it would look through every rule.
class StacksAside {
  public:
    explicit StacksAside(const llama_sampler * sampler);
    ~StacksAside();
    StacksAside(const StacksAside &) = delete;
    void give(llama_sampler * copy) const;

  private:
    std::vector<std::pair<llama_grammar *, llama_grammar_stacks>> kept_;
};

} // namespace lloyal
