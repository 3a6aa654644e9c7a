"""A temperature that follows the model's doubt: bold where many tokens would do, careful where one is meant.

The entropy of the next token is known before it is picked; `set_sampling` keeps the random generator and what the
penalties remember.
"""

import lloyal

PROMPT = "def read_lines(path):\n"

ctx = lloyal.Context(lloyal.Model(lloyal.models.path()), n_ctx=512, n_seq_max=2, n_threads=1)
with lloyal.BranchStore(ctx) as store:
    branch = store.create(PROMPT, sampling=lloyal.Sampling(seed=4))
    fixed = branch.fork()
    print("entropy  temperature  token")
    for _ in range(32):
        entropy = branch.entropy(bits=True)
        temperature = round(min(1.2, 0.2 + 0.25 * entropy), 1)
        branch.set_sampling(lloyal.Sampling(temperature=temperature))
        token = branch.step()
        if branch.ended:
            break
        print(f"{entropy:7.2f}  {temperature:11.1f}  {ctx.vocab.token_to_piece(token)!r}")
    print(f"\nperplexity {branch.perplexity:.2f}:\n{PROMPT}{branch.text}")
    text = "".join(fixed.stream(max_tokens=32))
    print(f"\nat a fixed temperature, perplexity {fixed.perplexity:.2f}:\n{PROMPT}{text}")
