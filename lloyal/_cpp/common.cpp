#include "common.hpp"

#include "big_stack.hpp"

#include "chat.h"
#include "common_guard.h"
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

// Parsing and conversion recurse; a document deeper than anybody writes would end the process.
constexpr int MAX_DEPTH = 128;

const std::string & checked_depth(const std::string & json) {
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < json.size(); ++i) {
        const char c = json[i];
        if (in_string) {
            i += c == '\\';
            in_string = c != '"';
        } else if (c == '"') {
            in_string = true;
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

// A template is parsed, run and dropped recursively too: long chains of operators and filters are deep trees, whose depth
// is bounded by the length, and macros may call themselves. What is left at the limit is for unwinding.
constexpr size_t MAX_TEMPLATE = 128 * 1024;
constexpr size_t STACK_PER_BYTE = 8 * 1024;
constexpr size_t STACK = 8 * 1024 * 1024;
constexpr size_t RESERVE = 2 * 1024 * 1024;

size_t template_stack(const std::string & source) {
    if (source.size() > MAX_TEMPLATE) {
        throw std::runtime_error("the template has " + std::to_string(source.size()) + " bytes, more than " +
                                 std::to_string(MAX_TEMPLATE));
    }
    return STACK + source.size() * STACK_PER_BYTE;
}

template <typename F> void run_template(size_t stack, F && body) {
    on_big_stack(stack, [&] { // a thread of its own: the limit ends with it
        lloyal_template_stack(static_cast<const char *>(__builtin_frame_address(0)) - (stack - RESERVE));
        body();
    });
}

common_chat_tool_choice tool_choice(const std::string & name) {
    return common_chat_tool_choice_parse_oaicompat(name);
}

} // namespace

Status grammar_from_json_schema(const std::string & schema, std::string & out) noexcept {
    return guarded(Code::invalid_grammar, [&]() -> Status {
        silence_log();
        out = json_schema_to_grammar(common_json::parse(checked_depth(schema)), /*force_gbnf =*/true);
        return {};
    });
}

ChatTemplates::ChatTemplates(ModelHandle model, const std::string & source)
    : model_(std::move(model)), templates_(nullptr, common_chat_templates_free) {
    silence_log();
    // llama-common loses the message of a parse error on its way out; parsing here first keeps it.
    const char * own = llama_model_chat_template(model_->ptr, nullptr);
    const std::string text = !source.empty() ? source : own ? own : "";
    stack_ = template_stack(text);
    run_template(stack_, [&] {
        if (!text.empty() && text != "chatml") {
            common_chat_template(text, "", "");
        }
        templates_.reset(common_chat_templates_init(model_->ptr, source).release());
    });
}

ChatTemplates::~ChatTemplates() {
    try {
        on_big_stack(stack_, [this] { templates_.reset(); });
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
        common_chat_templates_inputs native;
        native.messages = common_chat_msgs_parse_oaicompat(common_json::parse(checked_depth(inputs.messages)));
        if (!inputs.tools.empty()) {
            native.tools = common_chat_tools_parse_oaicompat(common_json::parse(checked_depth(inputs.tools)));
        }
        native.tool_choice = tool_choice(inputs.tool_choice);
        native.grammar = inputs.grammar;
        native.json_schema = checked_depth(inputs.json_schema);
        native.chat_template_kwargs = inputs.kwargs;
        native.add_generation_prompt = inputs.add_generation_prompt;
        native.enable_thinking = inputs.enable_thinking;
        native.parallel_tool_calls = inputs.parallel_tool_calls;
        native.reasoning_format = COMMON_REASONING_FORMAT_AUTO;

        common_chat_params params;
        run_template(stack_, [&] { params = common_chat_templates_apply(templates_.get(), native); });
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
    });
}

Status chat_templates_load(ModelHandle model, const std::string & source, ChatTemplatesHandle & out) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        out = std::make_shared<ChatTemplates>(std::move(model), source);
        return {};
    });
}

Status chat_parse(const ChatPrompt & prompt, const std::string & answer, bool partial, std::string & message) noexcept {
    return guarded(Code::invalid_argument, [&]() -> Status {
        silence_log();
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
}

} // namespace lloyal
