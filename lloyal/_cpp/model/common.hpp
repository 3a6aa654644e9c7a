// What we use of llama-common: chat templates and JSON schemas as grammars. Only the `common` extension links it.
#pragma once

#include "core/handles.hpp"
#include "core/status.hpp"

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

struct common_chat_templates;

namespace lloyal {

// A JSON schema, as text, to a GBNF grammar.
Status grammar_from_json_schema(const std::string & schema, std::string & out) noexcept;

struct ChatInputs {
    std::string messages;                      // JSON: an array of messages as chat completion APIs take them
    std::string tools;                         // JSON: an array of functions, or empty
    std::string tool_choice = "auto";          // "auto", "required" or "none"
    std::string grammar;                       // GBNF that the answer must follow, or empty
    std::string json_schema;                   // the same as a JSON schema, or empty
    std::map<std::string, std::string> kwargs; // JSON values for variables of the template
    bool add_generation_prompt = true;
    bool enable_thinking = true;
    bool parallel_tool_calls = false;
};

// A rendered chat, and what is to be known for reading the answer.
struct ChatPrompt {
    std::string prompt;
    std::string generation_prompt; // the part of `prompt` that opens the answer
    std::string grammar;
    bool grammar_lazy = false;                                 // the grammar starts at a trigger
    std::vector<std::pair<int, std::string>> grammar_triggers; // type and value
    std::vector<std::string> stops;
    std::vector<std::string> preserved_tokens;
    bool supports_thinking = false;
    std::string thinking_start_tag;
    std::vector<std::string> thinking_end_tags;
    int format = 0;
    std::string parser; // how to read the answer, in llama-common's own form
};

class ChatTemplates {
  public:
    // The template of the model, or `source` if it is not empty. Throws; runs under the budget of who calls.
    ChatTemplates(ModelHandle model, const std::string & source);
    ~ChatTemplates();

    std::string source(const std::string & variant) const;
    std::map<std::string, bool> capabilities() const;
    Status apply(const ChatInputs & inputs, ChatPrompt & out) const noexcept;

  private:
    Status run(const ChatInputs & inputs, ChatPrompt & out) const;

    ModelHandle model_;
    std::unique_ptr<common_chat_templates, void (*)(common_chat_templates *)> templates_;
};
using ChatTemplatesHandle = std::shared_ptr<ChatTemplates>;

Status chat_templates_load(ModelHandle model, const std::string & source, ChatTemplatesHandle & out) noexcept;

// Read an answer to `prompt`: a message as JSON. A partial answer gives what is certain so far.
Status chat_parse(const ChatPrompt & prompt, const std::string & answer, bool partial, std::string & message) noexcept;

} // namespace lloyal
