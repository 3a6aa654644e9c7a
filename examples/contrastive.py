"""Contrastive decoding: prefer what the prompt makes likely over what the model would say without it.

Two branches read the same text, one behind the whole prompt and one behind the end of it alone. Before each token the
second one's logits are taken from the first one's.
"""

import lloyal

CONTEXT = """class Account:
    def __init__(self, owner, balance):
        self.owner = owner
        self.balance = balance

"""
OPENING = "    def __str__(self):\n        return "
ALPHA = -0.5

ctx = lloyal.Context(lloyal.Model(lloyal.models.path()), n_ctx=1024, n_seq_max=3, n_threads=1)
with lloyal.BranchStore(ctx) as store:
    expert = store.create(CONTEXT + OPENING, sampling=lloyal.Sampling(temperature=0), name="expert")
    plain = expert.fork(name="plain")
    amateur = store.create(OPENING, sampling=lloyal.Sampling(temperature=0), name="amateur")
    for _ in range(24):
        store.merge_logits(expert, [amateur], ALPHA)
        token = expert.sample()
        if ctx.vocab.is_eog(token):
            break
        store.commit([(expert, token), (amateur, token)])
    alone = "".join(plain.stream(max_tokens=24))
    print(f"{CONTEXT}{OPENING}...\n\nthe model alone: {alone!r}\ncontrasted:      {expert.text!r}")
