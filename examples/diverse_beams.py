"""Beams that differ: groups of beams, and what one group has picked costs the later ones something.

A plain beam search finds texts that differ in a word. Here each group is one beam that takes its best token, after
the tokens that earlier groups took in the same place have lost some of their logits.
"""

from collections import Counter

import lloyal

PROMPT = "import "
GROUPS, LENGTH, COST = 4, 16, 2.0

ctx = lloyal.Context(lloyal.Model(lloyal.models.path()), n_ctx=1024, n_seq_max=GROUPS + 1, n_threads=1)

print("plain beams:")
for found in lloyal.beam_search(ctx, PROMPT, width=GROUPS, max_tokens=LENGTH):
    print(f"  {found.log_prob:7.2f}  {PROMPT + found.text!r}")

print("diverse beams:")
with lloyal.BranchStore(ctx) as store:
    prompt = store.create(PROMPT, sampling=lloyal.Sampling(temperature=0))
    beams = going = prompt.fork(GROUPS)
    for _ in range(LENGTH):
        taken: Counter[int] = Counter()
        picks = []
        for beam in going:
            beam.set_bias({token: -COST * times for token, times in taken.items()})
            token = beam.sample()
            taken[token] += 1
            if not ctx.vocab.is_eog(token):
                picks.append((beam, token))
        store.commit(picks)  # one batch for all
        going = [beam for beam, _ in picks]
    for beam in beams:
        print(f"  {sum(beam.log_probs):7.2f}  {PROMPT + beam.text!r}")
