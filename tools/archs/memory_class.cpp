// Prints the class of the memory that llama.cpp gives a context of each model: one name per line, "none" without memory.
// Reads run-time type information only, so it knows nothing of how lloyal tells the kinds apart.
#include "llama-memory.h"
#include "llama.h"

#include <cxxabi.h>

#include <cstdio>
#include <cstdlib>
#include <typeinfo>

int main(int argc, char ** argv) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    for (int i = 1; i < argc; ++i) {
        llama_model * model = llama_model_load_from_file(argv[i], llama_model_default_params());
        if (!model) {
            std::fprintf(stderr, "%s: cannot be loaded\n", argv[i]);
            return 1;
        }
        llama_context_params params = llama_context_default_params();
        params.n_ctx = 256;
        llama_context * context = llama_init_from_model(model, params);
        if (!context) {
            std::fprintf(stderr, "%s: no context\n", argv[i]);
            return 1;
        }
        if (const llama_memory_i * memory = llama_get_memory(context)) {
            char * name = abi::__cxa_demangle(typeid(*memory).name(), nullptr, nullptr, nullptr);
            std::puts(name);
            std::free(name);
        } else {
            std::puts("none");
        }
        llama_free(context);
        llama_model_free(model);
    }
    return 0;
}
