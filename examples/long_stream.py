"""A text longer than its context: when the cache is full, begin anew with the first tokens and the last ones.

`lloyal.kv.clear_and_reseed` reads those again, so that their positions have no gap. The sampler is made here and stays:
its penalties and its random numbers go on.
"""

import lloyal

PROMPT = "import os\nimport sys\n\n\nclass Reader:\n"
N_FIRST, N_LAST, N_TOKENS = 4, 100, 700

ctx = lloyal.Context(lloyal.Model(lloyal.models.path()), n_ctx=256, n_seq_max=1, n_threads=1)
endless = {token: -float("inf") for token in range(len(ctx.vocab)) if ctx.vocab.is_eog(token)}
sampler = lloyal.Sampling(seed=1, repeat_penalty=1.1, logit_bias=endless).build(ctx.vocab)
tokens = coming = ctx.vocab.tokenize(PROMPT)
times = 0
while True:
    room = min(ctx.n_ctx - 1 - ctx.memory.seq_pos_max(0) - len(coming), N_TOKENS - len(tokens))
    tokens = tokens + list(lloyal.generate(ctx, coming, max_tokens=room, sampling=sampler))
    if len(tokens) == N_TOKENS:
        break
    # All but the last token: decoding that one gives the logits to go on from.
    lloyal.kv.clear_and_reseed(ctx, tokens[:N_FIRST], tokens[-N_LAST:-1])
    coming, times = tokens[-1:], times + 1
print(ctx.vocab.detokenize(tokens))
print(f"--- {len(tokens)} tokens in a context of {ctx.n_ctx}, which began anew {times} times")
