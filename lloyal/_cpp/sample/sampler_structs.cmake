# lloyal_sampler_structs(llama-sampler.cpp header): what llama.cpp's samplers keep, as a header of the build.
#
# Their state (random generator, penalty window, mirostat's mu) has no accessor, and the structures are defined in the
# source file. Taking the definitions from the very file that is compiled keeps both sides the same by construction; a
# field that is renamed in another version is a compile error here, never a wrong offset.
function(lloyal_sampler_structs source header)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${source})
    file(READ ${source} text)
    set(out "// Generated from ${source}: do not edit.\n#pragma once\n#include \"llama-grammar.h\"\n#include \"ggml.h\"\n")
    string(APPEND out "#include <algorithm>\n#include <random>\n#include <stdexcept>\n#include <unordered_map>\n")
    foreach(name IN ITEMS ring_buffer llama_sampler_empty llama_sampler_backend llama_sampler_dist llama_sampler_top_k
            llama_sampler_top_p llama_sampler_min_p llama_sampler_typical llama_sampler_temp llama_sampler_temp_ext
            llama_sampler_xtc llama_sampler_mirostat llama_sampler_mirostat_v2 llama_sampler_grammar
            llama_sampler_penalties llama_sampler_top_n_sigma llama_sampler_dry llama_sampler_adaptive_p
            llama_sampler_logit_bias llama_sampler_infill)
        string(REGEX MATCH "\nstruct ${name} (: [a-z_ ]+)?{" head "${text}")
        if(NOT head)
            message(FATAL_ERROR "${source} does not define struct ${name}: lloyal/_cpp/sampler_state.cpp must follow it")
        endif()
        string(FIND "${text}" "${head}" begin)
        string(SUBSTRING "${text}" ${begin} -1 tail)
        string(FIND "${tail}" "\n};" length)
        math(EXPR length "${length} + 4")
        string(SUBSTRING "${tail}" 0 ${length} definition)
        if(name STREQUAL "ring_buffer")
            string(PREPEND definition "\ntemplate<typename T>")
        endif()
        string(APPEND out "${definition}")
    endforeach()
    file(CONFIGURE OUTPUT ${header} CONTENT "${out}" @ONLY)
endfunction()
