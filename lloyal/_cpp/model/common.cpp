#include "model/common.hpp"

#include "core/budget.hpp"

#include "chat.h"
#include "json-schema-to-grammar.h"
#include "json.h"
#include "log.h"

#include <mutex>
#include <stdexcept>
#include <string>

namespace lloyal {
namespace {

// llama-common writes its log to stderr; what matters of it comes back as exceptions.
void silence_log() {
    static std::once_flag once;
    std::call_once(once, [] { common_log_set_verbosity_thold(-1); });
}

// Parsing and conversion recurse; a document deeper than anybody writes would end the process. llama-common matches names
// with std::regex, which recurses at every character.
constexpr int MAX_DEPTH = 128;
constexpr size_t MAX_STRING = 64 * 1024; // bytes of a name
constexpr size_t MAX_SCHEMA = 1024 * 1024;

const std::string & checked_depth(const std::string & json) {
    int depth = 0;
    for (size_t i = 0; i < json.size(); ++i) {
        const char c = json[i];
        if (c == '"') {
            while (++i < json.size() && json[i] != '"') {
                i += json[i] == '\\';
            }
        } else if (c == '{' || c == '[') {
            if (++depth > MAX_DEPTH) {
                throw std::runtime_error("the JSON is nested more than " + std::to_string(MAX_DEPTH) + " levels deep");
            }
        } else if (c == '}' || c == ']') {
            --depth;
        }
    }
    return json;
}

const std::string & checked_schema(const std::string & json) {
    if (json.size() > MAX_SCHEMA) {
        throw std::runtime_error(text("the schema has ", json.size(), " bytes, more than ", MAX_SCHEMA));
    }
    checked_depth(json);
    for (size_t i = 0; i < json.size(); ++i) {
        if (json[i] == '"') {
            const size_t first = i;
            while (++i < json.size() && json[i] != '"') {
                i += json[i] == '\\';
            }
            if (i - first > MAX_STRING) {
                throw std::runtime_error(
                    text("the schema has a string of ", i - first, " bytes, more than ", MAX_STRING));
            }
        }
    }
    return json;
}

// A template is parsed, run and dropped by recursion.
constexpr size_t MAX_TEMPLATE = 128 * 1024;
constexpr size_t STACK = 4 * 1024 * 1024; // an exception takes a quarter of a second to leave it

// Honest ones go over the chat again for every message.
TextBudget apply_budget(size_t size) {
    return {"the template", size, STACK, true, 0.3, 5e-5};
}

// It is parsed and tried out. Both, and what it takes to leave either, are a second at most.
TextBudget load_budget(size_t size) {
    return {"the template", size, STACK, true, 0.35, 0.0};
}

common_chat_tool_choice tool_choice(const std::string & name) {
    return common_chat_tool_choice_parse_oaicompat(name);
}

} // namespace

Status grammar_from_json_schema(const std::string & schema, std::string & out) noexcept {
    return guarded(Code::invalid_grammar, [&]() -> Status {
        silence_log();
        checked_schema(schema);
        return budgeted({"the schema", schema.size(), STACK, true, 0.8, 0.0}, Code::invalid_grammar, [&]() -> Status {
            out = json_schema_to_grammar(common_json::parse(schema), /*force_gbnf =*/true);
            return {};
        });
    });
}

ChatTemplates::ChatTemplates(ModelHandle model, const std::string & source)
    : model_(std::move(model)), templates_(nullptr, common_chat_templates_free) {
    silence_log();
    // llama-common loses the message of a parse error on its way out; parsing here first keeps it.
    const char * own = llama_model_chat_template(model_->ptr, nullptr);
    const std::string text = !source.empty() ? source : own ? own : "";
    if (text.size() > MAX_TEMPLATE) {
        throw std::runtime_error(lloyal::text("the template has ", text.size(), " bytes, more than ", MAX_TEMPLATE));
    }
    if (!text.empty() && text != "chatml") {
        common_chat_template(text, "", "");
    }
    templates_.reset(common_chat_templates_init(model_->ptr, source).release());
}

ChatTemplates::~ChatTemplates() {
    const TextBudget budget = load_budget(MAX_TEMPLATE);
    try {
        on_big_stack(budget.stack + budget.unwind_stack(), [this] { templates_.reset(); });
    } catch (const std::runtime_error &) {
        // No thread to be had: it is dropped on this one.
    }
}

std::string ChatTemplates::source(const std::string & variant) const {
    return common_chat_templates_source(templates_.get(), variant);
}

std::map<std::string, bool> ChatTemplates::capabilities() const {
    return common_chat_templates_get_caps(templates_.get());
}

Status ChatTemplates::apply(const ChatInputs & inputs, ChatPrompt & out) const noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        checked_depth(inputs.messages);
        checked_depth(inputs.tools);
        checked_schema(inputs.json_schema);
        size_t size = inputs.messages.size() + inputs.tools.size() + inputs.json_schema.size() + inputs.grammar.size();
        for (const auto & [name, value] : inputs.kwargs) {
            checked_depth(value);
            size += name.size() + value.size();
        }
        return budgeted(apply_budget(size), Code::invalid_argument, [&] { return run(inputs, out); });
    });
}

Status ChatTemplates::run(const ChatInputs & inputs, ChatPrompt & out) const {
    common_chat_templates_inputs native;
    native.messages = common_chat_msgs_parse_oaicompat(common_json::parse(inputs.messages));
    if (!inputs.tools.empty()) {
        native.tools = common_chat_tools_parse_oaicompat(common_json::parse(inputs.tools));
    }
    native.tool_choice = tool_choice(inputs.tool_choice);
    native.grammar = inputs.grammar;
    native.json_schema = inputs.json_schema;
    native.chat_template_kwargs = inputs.kwargs;
    native.add_generation_prompt = inputs.add_generation_prompt;
    native.enable_thinking = inputs.enable_thinking;
    native.parallel_tool_calls = inputs.parallel_tool_calls;
    native.reasoning_format = COMMON_REASONING_FORMAT_AUTO;

    common_chat_params params = common_chat_templates_apply(templates_.get(), native);
    out.prompt = std::move(params.prompt);
    out.generation_prompt = std::move(params.generation_prompt);
    out.grammar = std::move(params.grammar);
    out.grammar_lazy = params.grammar_lazy;
    out.stops = std::move(params.additional_stops);
    out.preserved_tokens = std::move(params.preserved_tokens);
    out.supports_thinking = params.supports_thinking;
    out.thinking_start_tag = std::move(params.thinking_start_tag);
    out.thinking_end_tags = std::move(params.thinking_end_tags);
    out.format = params.format;
    out.parser = std::move(params.parser);
    for (const common_grammar_trigger & trigger : params.grammar_triggers) {
        out.grammar_triggers.emplace_back(trigger.type, trigger.value);
    }
    return {};
}

Status chat_templates_load(ModelHandle model, const std::string & source, ChatTemplatesHandle & out) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        return budgeted(load_budget(MAX_TEMPLATE), Code::invalid_argument, [&]() -> Status {
            out = std::make_shared<ChatTemplates>(std::move(model), source);
            return {};
        });
    });
}

Status chat_parse(const ChatPrompt & prompt, const std::string & answer, bool partial, std::string & message) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        silence_log();
        const TextBudget budget = {"the answer", answer.size() + prompt.parser.size(), STACK};
        return budgeted(budget, Code::invalid_argument, [&]() -> Status {
            common_chat_parser_params params;
            params.format = common_chat_format(prompt.format);
            params.generation_prompt = prompt.generation_prompt;
            params.reasoning_format = COMMON_REASONING_FORMAT_AUTO;
            if (!prompt.parser.empty()) {
                params.parser.load(prompt.parser);
            }
            message = common_chat_parse(answer, partial, params).to_json_oaicompat().dump();
            return {};
        });
    });
}

} // namespace lloyal
