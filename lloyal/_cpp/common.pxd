# Declarations of common.hpp.

from libcpp cimport bool
from libcpp.map cimport map as cppmap
from libcpp.memory cimport shared_ptr
from libcpp.pair cimport pair
from libcpp.string cimport string
from libcpp.vector cimport vector

cimport lloyal._cpp.core as core

cdef extern from "common.hpp" namespace "lloyal" nogil:
    cppclass ChatInputs:
        string messages
        string tools
        string tool_choice
        string grammar
        string json_schema
        cppmap[string, string] kwargs
        bool add_generation_prompt
        bool enable_thinking
        bool parallel_tool_calls
    cppclass ChatPrompt:
        string prompt
        string generation_prompt
        string grammar
        bool grammar_lazy
        vector[pair[int, string]] grammar_triggers
        vector[string] stops
        vector[string] preserved_tokens
        bool supports_thinking
        string thinking_start_tag
        vector[string] thinking_end_tags
        int format
        string parser
    cppclass ChatTemplates:
        string source(const string& variant) except +
        cppmap[string, bool] capabilities() except +
        core.Status apply(const ChatInputs& inputs, ChatPrompt& out)
    ctypedef shared_ptr[ChatTemplates] ChatTemplatesHandle

    core.Status grammar_from_json_schema(const string& schema, string& out)
    core.Status chat_templates_load(core.ModelHandle model, const string& source, ChatTemplatesHandle& out)
    core.Status chat_parse(const ChatPrompt& prompt, const string& answer, bool partial, string& message)
