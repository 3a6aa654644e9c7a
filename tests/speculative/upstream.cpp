// What llama.cpp's own speculation guesses, greedily, for texts side by side: one line for each guess, with the text so far.
//   upstream TYPE TARGET DRAFT N_GUESSES N_TOKENS PROMPT...     (DRAFT "-": the target's own head; PROMPT: ids with commas)
#include "common.h"
#include "speculative.h"

#include "llama.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

namespace {

struct Text {
    llama_tokens tokens; // the last one is picked, and not yet read
    llama_tokens guesses;
    int32_t first = 0; // of its rows in the batch
};

llama_context * open(llama_model * model, llama_context * other, bool mtp, uint32_t n_seqs, uint32_t ring) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 1024;
    params.n_batch = params.n_ubatch = 512;
    params.n_seq_max = n_seqs;
    params.n_rs_seq = ring;
    params.n_threads = params.n_threads_batch = 1;
    params.type_k = params.type_v = GGML_TYPE_F32;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.kv_unified = true;
    params.ctx_other = other;
    if (mtp) {
        params.ctx_type = LLAMA_CONTEXT_TYPE_MTP;
    }
    llama_context * ctx = llama_init_from_model(model, params);
    if (!ctx) {
        std::exit(2);
    }
    return ctx;
}

llama_model * load(const char * path) {
    llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = 0;
    params.load_mtp = true;
    llama_model * model = llama_model_load_from_file(path, params);
    if (!model) {
        std::exit(2);
    }
    return model;
}

llama_token best(llama_context * ctx, int32_t row) {
    const float * logits = llama_get_logits_ith(ctx, row);
    const int32_t n = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx)));
    return llama_token(std::max_element(logits, logits + n) - logits);
}

} // namespace

int main(int argc, char ** argv) {
    if (argc < 7) {
        return 2;
    }
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    const bool own_head = std::string(argv[3]) == "-";
    const int n_guesses = std::atoi(argv[4]);
    const size_t n_tokens = size_t(std::atoi(argv[5]));
    std::vector<Text> texts;
    for (int i = 6; i < argc; ++i) {
        Text text;
        std::stringstream list(argv[i]);
        for (std::string id; std::getline(list, id, ',');) {
            text.tokens.push_back(std::atoi(id.c_str()));
        }
        texts.push_back(text);
    }
    llama_model * target = load(argv[2]);
    llama_model * draft = own_head ? target : load(argv[3]);
    llama_context * ctx = open(target, nullptr, false, uint32_t(texts.size()), own_head ? uint32_t(n_guesses) : 0);
    llama_context * head = open(draft, ctx, own_head, uint32_t(texts.size()), 0);

    common_params_speculative params;
    params.types = {common_speculative_type_from_name(argv[1])};
    params.draft.n_max = n_guesses;
    params.draft.backend_sampling = false;
    params.draft.ctx_tgt = ctx;
    params.draft.ctx_dft = head;
    common_speculative * spec = common_speculative_init(params, uint32_t(texts.size()));

    common_batch batch(ctx);
    const auto read = [&] {
        if (llama_process(ctx, LLAMA_PROCESS_TYPE_DECODE, batch.get()) != 0 ||
            !common_speculative_process(spec, batch)) {
            std::exit(3);
        }
    };
    for (size_t s = 0; s < texts.size(); ++s) { // prompts one after another
        llama_tokens & tokens = texts[s].tokens;
        batch.clear();
        for (size_t i = 0; i < tokens.size(); ++i) {
            batch.add(tokens[i], llama_pos(i), llama_seq_id(s), i + 1 == tokens.size());
        }
        read();
        common_speculative_begin(spec, llama_seq_id(s), tokens);
        tokens.push_back(best(ctx, int32_t(batch.size()) - 1));
    }
    const size_t begin = texts[0].tokens.size();
    while (texts[0].tokens.size() < begin + n_tokens) {
        for (size_t s = 0; s < texts.size(); ++s) {
            Text & text = texts[s];
            text.guesses.clear();
            common_speculative_draft_params & asked = common_speculative_get_draft_params(spec, llama_seq_id(s));
            asked.drafting = true;
            asked.n_max = n_guesses;
            asked.pos0 = llama_pos(text.tokens.size() - 1);
            asked.id_last = text.tokens.back();
            asked.prompt = &text.tokens;
            asked.result = &text.guesses;
        }
        common_speculative_draft(spec);
        batch.clear();
        for (size_t s = 0; s < texts.size(); ++s) {
            Text & text = texts[s];
            for (const llama_token token : text.tokens) {
                std::printf("%d ", token);
            }
            std::printf("|");
            for (const llama_token token : text.guesses) {
                std::printf(" %d", token);
            }
            std::printf("\n");
            const llama_pos pos = llama_pos(text.tokens.size() - 1);
            llama_memory_seq_rm(llama_get_memory(head), llama_seq_id(s), pos, -1);
            text.first = batch.add(text.tokens.back(), pos, llama_seq_id(s), true);
            for (size_t i = 0; i < text.guesses.size(); ++i) {
                batch.add(text.guesses[i], pos + 1 + llama_pos(i), llama_seq_id(s), true);
            }
        }
        read();
        for (size_t s = 0; s < texts.size(); ++s) {
            Text & text = texts[s];
            size_t kept = 0;
            llama_token next = best(ctx, text.first);
            while (kept < text.guesses.size() && text.guesses[kept] == next) {
                text.tokens.push_back(next);
                next = best(ctx, text.first + int32_t(++kept));
            }
            common_speculative_accept(spec, llama_seq_id(s), uint16_t(kept));
            for (llama_context * one : {ctx, head}) {
                llama_memory_seq_rm(llama_get_memory(one), llama_seq_id(s), llama_pos(text.tokens.size()), -1);
            }
            text.tokens.push_back(next);
        }
    }
    common_speculative_free(spec);
    llama_free(head);
    llama_free(ctx);
    if (draft != target) {
        llama_model_free(draft);
    }
    llama_model_free(target);
}
