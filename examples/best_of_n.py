"""Eight ways on from one prompt, written side by side, and the one that the model itself finds most likely."""

import lloyal

PROMPT = "def read_lines(path):\n"

# One sequence more than texts: the prompt stays where it is.
ctx = lloyal.Context(lloyal.Model(lloyal.models.path()), n_ctx=1024, n_seq_max=9, n_threads=1)
with lloyal.BranchStore(ctx) as store:
    texts = store.create(PROMPT, name="prompt").fork(8, seed=1)
    for _ in range(40):
        store.step()  # one token for each text that has not ended, all in one batch
    print(store.tree())
    best = min(texts, key=lambda text: text.perplexity)
    print(f"\nthe best is {best.name}, of perplexity {best.perplexity:.2f}:\n\n{PROMPT}{best.text}")
